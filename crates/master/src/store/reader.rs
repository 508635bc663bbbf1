//! Reading beside the engine: connections that cannot write, so that nobody who looks holds up anybody who works.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rpicluster_core::tasks::{JobSpec, Task};
use rpicluster_protocol::{JobId, Stream, TaskId, TaskState};
use rusqlite::{Connection, OpenFlags, params};

use super::tasks::{self, id, signed, stream_number};
use super::{StoreError, StoredJob, Unreadable};

/// How many connections are kept open while nobody reads.
const IDLE_MAX: usize = 4;

/// How long a reader waits for a store that recovers after a crash.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much output is read at once, in bytes, beyond the piece that goes over it.
const PIECES_BYTES_MAX: usize = 256 * 1024;

/// How many pieces are read at once.
const PIECES_MAX: usize = 1_000;

/// See the module. Cheap to clone. Everything here may wait for the disk: call it where that is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Reader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Who looks at a large job looks at it again: its spec was parsed last.
    last_spec: Mutex<Option<(JobId, Arc<JobSpec>)>>,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) task: TaskId,
    pub(crate) attempt: u32,
    pub(crate) stream: Stream,
    pub(crate) offset: u64,
    pub(crate) gap: bool,
    pub(crate) data: Vec<u8>,
    row: i64,
}

/// Which output is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pieces {
    /// Of one stream of an attempt, from this byte on.
    Of(TaskId, u32, Stream, u64),
    /// Of a job's tasks' latest attempts, in the order in which it came, after that piece.
    OfJob(JobId, i64),
}

impl Piece {
    /// Drops what lies before this byte; tells whether something is left.
    fn cut_before(&mut self, byte: u64) -> bool {
        let before = usize::try_from(byte.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        self.data.drain(..before.min(self.data.len()));
        self.offset = self.offset.max(byte);
        !self.data.is_empty()
    }
}

impl Reader {
    pub(super) fn new(path: PathBuf) -> Reader {
        Reader(Arc::new(Inner { path, idle: Mutex::default(), last_spec: Mutex::default() }))
    }

    /// The newest jobs, the newest first.
    pub(crate) fn newest_jobs(&self, limit: u32) -> Result<Vec<StoredJob>, StoreError> {
        self.read(|connection| tasks::newest(connection, limit))
    }

    /// A job, if it is there.
    pub(crate) fn job(&self, job: JobId) -> Result<Option<StoredJob>, StoreError> {
        self.read(|connection| tasks::job(connection, job))
    }

    /// What it does, which never changes.
    pub(crate) fn spec(&self, job: JobId) -> Result<Option<Arc<JobSpec>>, StoreError> {
        if let Some((_, spec)) = self.last_spec().as_ref().filter(|(last, _)| *last == job) {
            return Ok(Some(spec.clone()));
        }
        let spec = self.read(|connection| tasks::spec(connection, job))?.map(Arc::new);
        if let Some(spec) = &spec {
            *self.last_spec() = Some((job, spec.clone()));
        }
        Ok(spec)
    }

    /// The rows of its tasks from one place to another, which is not among them.
    pub(crate) fn tasks(&self, job: JobId, from: u32, to: u32) -> Result<Vec<(u32, Task)>, StoreError> {
        self.read(|connection| tasks::tasks(connection, job, from, to))
    }

    /// Its tasks in that state, as far as they have rows.
    pub(crate) fn tasks_in(
        &self,
        job: JobId,
        state: TaskState,
        from: u32,
        limit: u32,
    ) -> Result<Vec<(u32, Task)>, StoreError> {
        self.read(|connection| tasks::tasks_in(connection, job, state, from, limit))
    }

    /// What was answered when a job was submitted under this key, if one was.
    pub(crate) fn answer(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| tasks::answer(connection, key))
    }

    /// A portion of output, and where to go on if there may be more.
    pub(crate) fn output(&self, wanted: Pieces) -> Result<(Vec<Piece>, Option<Pieces>), StoreError> {
        let mut pieces = self.read(|connection| match wanted {
            Pieces::Of(task, attempt, stream, from) => {
                // A piece may begin before the byte that is asked for, but never by more than its own length.
                let sql = "SELECT rowid, place, attempt, stream, position, gap, data FROM output
                           WHERE job = ?1 AND place = ?2 AND attempt = ?3 AND stream = ?4
                           AND position >= coalesce((SELECT max(position) FROM output WHERE job = ?1 AND place = ?2
                               AND attempt = ?3 AND stream = ?4 AND position <= ?5), 0)
                           ORDER BY position";
                let stream = stream_number(stream);
                portion(connection, sql, task.job, params![id(task.job), task.index, attempt, stream, signed(from)])
            }
            Pieces::OfJob(job, after) => {
                let sql = "SELECT output.rowid, output.place, output.attempt, stream, position, output.gap, data
                           FROM output INDEXED BY output_order JOIN tasks
                           ON tasks.job = output.job AND tasks.place = output.place AND tasks.attempt = output.attempt
                           WHERE output.job = ?1 AND output.rowid > ?2 ORDER BY output.rowid";
                portion(connection, sql, job, params![id(job), after])
            }
        })?;
        if let Pieces::Of(.., from) = wanted {
            pieces.retain_mut(|piece| piece.cut_before(from));
        }
        let Some(last) = pieces.last() else { return Ok((pieces, None)) };
        let next = match wanted {
            Pieces::Of(task, attempt, stream, _) => {
                let end = last.offset.saturating_add(last.data.len() as u64);
                Some(Pieces::Of(task, attempt, stream, end))
            }
            Pieces::OfJob(job, _) => Some(Pieces::OfJob(job, last.row)),
        };
        Ok((pieces, next))
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Unreadable>) -> Result<T, StoreError> {
        let refused = |cause| StoreError::Sql { action: "read", path: self.0.path.clone(), cause };
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().map_err(refused)?,
        };
        let result = read(&connection).map_err(|error| error.of(&self.0.path))?;
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(result)
    }

    fn open(&self) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.0.path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(connection)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_spec(&self) -> std::sync::MutexGuard<'_, Option<(JobId, Arc<JobSpec>)>> {
        self.0.last_spec.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn portion(
    connection: &Connection,
    sql: &str,
    job: JobId,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Piece>, Unreadable> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(parameters)?;
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while bytes < PIECES_BYTES_MAX
        && pieces.len() < PIECES_MAX
        && let Some(row) = rows.next()?
    {
        let stream = if row.get::<_, i64>(3)? == 0 { Stream::Stdout } else { Stream::Stderr };
        let data: Vec<u8> = row.get(6)?;
        bytes += data.len();
        pieces.push(Piece {
            row: row.get(0)?,
            task: TaskId { job, index: row.get(1)? },
            attempt: row.get(2)?,
            stream,
            offset: row.get(4)?,
            gap: row.get(5)?,
            data,
        });
    }
    Ok(pieces)
}
