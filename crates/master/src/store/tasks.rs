//! The rows of jobs and tasks: what was asked for, how far it is, and what it said.

use std::collections::BTreeMap;

use rpicluster_core::tasks::{JobRecord, JobSpec, NodeRecord, Task};
use rpicluster_protocol::{
    JobId, JobState, JournalId, SessionId, SlaveId, StepInfo, Stream, TaskFinished, TaskId, TaskOutput, TaskState,
    Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, Statement, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Unreadable, json, parsed};

/// The fourth version of the schema. A task that was never tried has no row.
pub(super) const SCHEMA: &str = "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, -- counts from 1, never given out twice
        submitted_ms INTEGER NOT NULL,        -- milliseconds since 1970 UTC
        ended_ms INTEGER,                     -- likewise
        canceled INTEGER NOT NULL,            -- 1 if somebody canceled it
        state TEXT NOT NULL,                  -- how it stood when this row was written last
        counts TEXT NOT NULL,                 -- JSON: how many of its tasks stood where then
        output_bytes INTEGER NOT NULL,        -- of its rows in output
        output_dropped INTEGER NOT NULL,      -- 1 if some output is not kept (any more)
        idempotency_key TEXT UNIQUE,
        answer TEXT,                          -- JSON: what whoever shows that key again is answered
        about TEXT NOT NULL,                  -- JSON: what of the spec is shown in lists
        spec TEXT NOT NULL                    -- JSON: core's JobSpec
    ) STRICT;
    CREATE INDEX jobs_unended ON jobs (id) WHERE ended_ms IS NULL;
    CREATE TABLE tasks (
        job INTEGER NOT NULL,
        place INTEGER NOT NULL,               -- within the job, from 0
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,             -- the latest; the columns below are about it
        failures INTEGER NOT NULL,            -- attempts that count against retries
        slave TEXT,
        started INTEGER NOT NULL,             -- 1 if its slave has said so
        cancel INTEGER NOT NULL,              -- 1 if somebody wants it to end
        gap INTEGER NOT NULL,                 -- 1 if some of its output is lost
        reason TEXT,
        result TEXT,                          -- JSON: task_finished
        stdout INTEGER NOT NULL,              -- bytes that were recorded
        stderr INTEGER NOT NULL,              -- likewise
        started_ms INTEGER,
        ended_ms INTEGER,
        PRIMARY KEY (job, place)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE late_results (               -- of attempts that a later one has replaced
        job INTEGER NOT NULL,
        place INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        result TEXT NOT NULL,                 -- JSON: task_finished
        PRIMARY KEY (job, place, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE task_nodes (
        slave TEXT PRIMARY KEY,
        journal TEXT,                         -- 16 hexadecimal digits
        session TEXT,                         -- in which it was last offered tasks
        drain TEXT,                           -- why it gets no tasks
        drain_until_ms INTEGER                -- when what still runs there is ended
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE output (
        job INTEGER NOT NULL,
        place INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        stream INTEGER NOT NULL,              -- 0 stdout, 1 stderr
        position INTEGER NOT NULL,            -- in the stream, in bytes
        gap INTEGER NOT NULL,                 -- 1 if what lies before is lost
        data BLOB NOT NULL
    ) STRICT;
    CREATE INDEX output_pieces ON output (job, place, attempt, stream, position);
    CREATE INDEX output_order ON output (job);
    CREATE TABLE garbage (                    -- jobs that are forgotten, whose rows are still to go
        job INTEGER PRIMARY KEY
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        requester TEXT NOT NULL,
        deed TEXT NOT NULL,                   -- submit, cancel, retry, drain or undrain
        subject TEXT NOT NULL                 -- a job or a slave, with what matters beside
    ) STRICT;
    PRAGMA user_version = 4;";

/// Rows of the audit trail that are kept: years of what people do, days of what a script does every minute.
const AUDIT_ROWS_MAX: i64 = 10_000;

/// Rows of forgotten jobs that go in one transaction, so that it stays short.
const GARBAGE_ROWS_MAX: usize = 5_000;

/// What a batch of the engine writes of tasks.
#[derive(Debug, Default)]
pub(crate) struct TaskRows<'a> {
    pub(crate) submitted: Vec<SubmittedJob<'a>>,
    pub(crate) jobs: Vec<JobRow>,
    pub(crate) tasks: Vec<(TaskId, &'a Task)>,
    pub(crate) late_results: Vec<&'a TaskFinished>,
    /// Without a record the slave is forgotten.
    pub(crate) nodes: Vec<(&'a SlaveId, Option<NodeRecord>)>,
    pub(crate) output: &'a [TaskOutput],
    pub(crate) audit: &'a [Deed],
    /// Jobs of whose output something was not kept.
    pub(crate) cut: Vec<JobId>,
    /// Ended jobs whose output makes room, until so many bytes are free.
    pub(crate) output_to_free: Option<(Vec<JobId>, u64)>,
    /// Ended jobs to be forgotten.
    pub(crate) forgotten: Vec<JobId>,
    /// Some rows of forgotten jobs are still there.
    pub(crate) sweep: bool,
}

/// A job that is new.
#[derive(Debug)]
pub(crate) struct SubmittedJob<'a> {
    pub(crate) record: JobRecord,
    pub(crate) about: &'a About,
    /// The idempotency key, and what is answered under it.
    pub(crate) key: Option<(&'a str, String)>,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobRow {
    pub(crate) job: JobId,
    pub(crate) canceled: bool,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) state: JobState,
    pub(crate) counts: BTreeMap<TaskState, u32>,
}

/// What somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deed {
    pub(crate) at: Timestamp,
    pub(crate) requester: String,
    pub(crate) deed: &'static str,
    pub(crate) subject: String,
}

/// What a transaction did beside.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Swept {
    /// Bytes of output that went, by job.
    pub(crate) freed: BTreeMap<JobId, u64>,
    /// Rows of forgotten jobs are left.
    pub(crate) more_garbage: bool,
}

/// What is known of a job without looking at its spec, which may be long.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredJob {
    pub(crate) row: JobRow,
    pub(crate) submitted: Timestamp,
    pub(crate) output_dropped: bool,
    pub(crate) about: About,
}

/// What of a job's spec is shown in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) name: Option<String>,
    pub(crate) requester: String,
    pub(crate) tasks: u32,
    pub(crate) steps: Vec<StepInfo>,
}

/// The totals that the engine counts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The highest number ever given out.
    pub(crate) last_job: u64,
    /// Jobs that have ended, the oldest first.
    pub(crate) ended: Vec<JobId>,
    /// Bytes of output that are kept, by job.
    pub(crate) output: BTreeMap<JobId, u64>,
    /// Rows of forgotten jobs are left.
    pub(crate) garbage: bool,
}

pub(super) fn save(transaction: &Transaction<'_>, rows: &TaskRows<'_>) -> Result<Swept, rusqlite::Error> {
    let mut swept = Swept::default();
    for job in &rows.submitted {
        save_submission(transaction, job)?;
    }
    // Each statement is prepared once a batch: for the many rows of a busy cluster that is for nothing, almost.
    for_all(transaction, UPDATE_JOB, &rows.jobs, save_job)?;
    for_all(transaction, SAVE_TASK, &rows.tasks, |save, (task, row)| save_task(save, *task, row))?;
    for_all(transaction, SAVE_LATE_RESULT, &rows.late_results, |save, result| save_late_result(save, result))?;
    let (kept, gone): (Vec<_>, Vec<_>) = rows.nodes.iter().partition(|(_, record)| record.is_some());
    for_all(transaction, SAVE_NODE, &kept, save_node)?;
    for_all(transaction, "DELETE FROM task_nodes WHERE slave = ?1", &gone, |delete, (slave, _)| {
        delete.execute([slave.as_str()])
    })?;
    save_output(transaction, rows.output)?;
    for_all(transaction, "UPDATE jobs SET output_dropped = 1 WHERE id = ?1", &rows.cut, |update, job| {
        update.execute([id(*job)])
    })?;
    for_all(transaction, SAVE_DEED, rows.audit, save_deed)?;
    if !rows.audit.is_empty() {
        let oldest = transaction.last_insert_rowid() - AUDIT_ROWS_MAX;
        transaction.execute("DELETE FROM audit WHERE id <= ?1", [oldest])?;
    }
    if let Some((jobs, bytes)) = &rows.output_to_free {
        free_output(transaction, jobs, *bytes, &mut swept)?;
    }
    for job in &rows.forgotten {
        transaction.execute("INSERT OR IGNORE INTO garbage (job) VALUES (?1)", [id(*job)])?;
        transaction.execute("DELETE FROM jobs WHERE id = ?1", [id(*job)])?;
    }
    if rows.sweep || !rows.forgotten.is_empty() {
        swept.more_garbage = sweep(transaction)?;
    }
    Ok(swept)
}

const UPDATE_JOB: &str = "UPDATE jobs SET canceled = ?2, ended_ms = ?3, state = ?4, counts = ?5 WHERE id = ?1";

const SAVE_TASK: &str = "
    INSERT OR REPLACE INTO tasks (job, place, state, attempt, failures, slave, started, cancel, gap, reason, result, stdout,
    stderr, started_ms, ended_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";

// Whatever a slave says of attempts that never were is not kept.
const SAVE_LATE_RESULT: &str = "
    INSERT OR REPLACE INTO late_results (job, place, attempt, result) SELECT ?1, ?2, ?3, ?4
    WHERE EXISTS (SELECT 1 FROM tasks WHERE job = ?1 AND place = ?2 AND attempt >= ?3)";

const SAVE_NODE: &str = "
    INSERT OR REPLACE INTO task_nodes (slave, journal, session, drain, drain_until_ms) VALUES (?1, ?2, ?3, ?4, ?5)";

const SAVE_DEED: &str = "INSERT INTO audit (at_ms, requester, deed, subject) VALUES (?1, ?2, ?3, ?4)";

fn for_all<T>(
    transaction: &Transaction<'_>,
    sql: &str,
    rows: &[T],
    save: impl Fn(&mut Statement<'_>, &T) -> Result<usize, rusqlite::Error>,
) -> Result<(), rusqlite::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = transaction.prepare(sql)?;
    rows.iter().try_for_each(|row| save(&mut statement, row).map(drop))
}

fn save_submission(transaction: &Transaction<'_>, job: &SubmittedJob<'_>) -> Result<(), rusqlite::Error> {
    let SubmittedJob { record, about, key } = job;
    let counts = BTreeMap::from([(TaskState::Queued, record.spec.tasks())]);
    let (key, answer) = key.as_ref().map(|(key, answer)| (*key, answer.as_str())).unzip();
    transaction.execute(
        "INSERT INTO jobs (id, submitted_ms, canceled, state, counts, output_bytes, output_dropped, idempotency_key, answer,
         about, spec) VALUES (?1, ?2, 0, 'active', ?3, 0, 0, ?4, ?5, ?6, ?7)",
        params![
            id(record.job),
            milliseconds(record.submitted),
            json(&counts)?,
            key,
            answer,
            json(about)?,
            json(&*record.spec)?
        ],
    )?;
    Ok(())
}

fn save_job(update: &mut Statement<'_>, row: &JobRow) -> Result<usize, rusqlite::Error> {
    let state = json(&row.state)?;
    update.execute(params![
        id(row.job),
        row.canceled,
        row.ended.map(milliseconds),
        state.trim_matches('"'),
        json(&row.counts)?
    ])
}

fn save_task(save: &mut Statement<'_>, task: TaskId, row: &Task) -> Result<usize, rusqlite::Error> {
    save.execute(params![
        id(task.job),
        task.index,
        row.state.as_str(),
        row.attempt,
        row.failures,
        row.slave.as_ref().map(SlaveId::as_str),
        row.started,
        row.cancel,
        row.gap,
        row.reason,
        row.result.as_ref().map(json).transpose()?,
        signed(row.stdout),
        signed(row.stderr),
        row.started_at.map(milliseconds),
        row.ended_at.map(milliseconds),
    ])
}

fn save_late_result(save: &mut Statement<'_>, result: &TaskFinished) -> Result<usize, rusqlite::Error> {
    let key = result.key;
    save.execute(params![id(key.task.job), key.task.index, key.attempt, json(result)?])
}

fn save_node(save: &mut Statement<'_>, node: &&(&SlaveId, Option<NodeRecord>)) -> Result<usize, rusqlite::Error> {
    let (slave, record) = node;
    let record = record.as_ref();
    let journal = record.and_then(|record| record.journal).map(|journal| journal.to_string());
    let session = record.and_then(|record| record.session.as_ref()).map(SessionId::as_str);
    let drain = record.and_then(|record| record.drain.as_ref());
    let drain_until = record.and_then(|record| record.drain_until).map(milliseconds);
    save.execute(params![slave.as_str(), journal, session, drain, drain_until])
}

fn save_output(transaction: &Transaction<'_>, pieces: &[TaskOutput]) -> Result<(), rusqlite::Error> {
    let insert = "INSERT INTO output (job, place, attempt, stream, position, gap, data)
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    for_all(transaction, insert, pieces, |insert, piece| {
        let TaskOutput { key, stream, offset, gap, data } = piece;
        let stream = stream_number(*stream);
        insert.execute(params![id(key.task.job), key.task.index, key.attempt, stream, signed(*offset), gap, data])
    })?;
    let mut bytes: BTreeMap<JobId, u64> = BTreeMap::new();
    pieces.iter().for_each(|piece| *bytes.entry(piece.key.task.job).or_default() += piece.data.len() as u64);
    for (job, bytes) in bytes {
        let sql = "UPDATE jobs SET output_bytes = output_bytes + ?2 WHERE id = ?1";
        transaction.execute(sql, params![id(job), signed(bytes)])?;
    }
    Ok(())
}

fn save_deed(save: &mut Statement<'_>, deed: &Deed) -> Result<usize, rusqlite::Error> {
    save.execute(params![milliseconds(deed.at), deed.requester, deed.deed, deed.subject])
}

/// Takes output of these jobs away, the oldest piece first, until so many bytes are free or a transaction has had enough.
fn free_output(
    transaction: &Transaction<'_>,
    jobs: &[JobId],
    bytes: u64,
    swept: &mut Swept,
) -> Result<(), rusqlite::Error> {
    let (mut freed, mut rows_left) = (0, GARBAGE_ROWS_MAX);
    for job in jobs {
        let mut of_job = 0_u64;
        {
            let mut pieces = transaction.prepare(
                "SELECT rowid, length(data) FROM output INDEXED BY output_order WHERE job = ?1 ORDER BY rowid",
            )?;
            let mut delete = transaction.prepare("DELETE FROM output WHERE rowid = ?1")?;
            let mut pieces = pieces.query([id(*job)])?;
            let mut found: Vec<(i64, u64)> = Vec::new();
            while freed + of_job < bytes && found.len() < rows_left {
                let Some(row) = pieces.next()? else { break };
                let length: u64 = row.get(1)?;
                found.push((row.get(0)?, length));
                of_job += length;
            }
            drop(pieces);
            rows_left -= found.len();
            for (piece, _) in found {
                delete.execute([piece])?;
            }
        }
        let sql = "UPDATE jobs SET output_bytes = output_bytes - ?2, output_dropped = 1 WHERE id = ?1";
        transaction.execute(sql, params![id(*job), signed(of_job)])?;
        freed += of_job;
        swept.freed.insert(*job, of_job);
        if freed >= bytes || rows_left == 0 {
            break;
        }
    }
    Ok(())
}

/// Takes rows of a forgotten job away; tells whether there are more.
fn sweep(transaction: &Transaction<'_>) -> Result<bool, rusqlite::Error> {
    let job = transaction.query_row("SELECT min(job) FROM garbage", [], |row| row.get::<_, Option<i64>>(0))?;
    let Some(job) = job else { return Ok(false) };
    let limit = signed(GARBAGE_ROWS_MAX as u64);
    let mut gone = 0;
    for sql in [
        "DELETE FROM output WHERE rowid IN (SELECT rowid FROM output WHERE job = ?1 LIMIT ?2)",
        "DELETE FROM late_results WHERE job = ?1 AND (place, attempt) IN
         (SELECT place, attempt FROM late_results WHERE job = ?1 LIMIT ?2)",
        "DELETE FROM tasks WHERE job = ?1 AND place IN (SELECT place FROM tasks WHERE job = ?1 LIMIT ?2)",
    ] {
        gone += transaction.execute(sql, [job, limit])?;
    }
    if gone == 0 {
        transaction.execute("DELETE FROM garbage WHERE job = ?1", [job])?;
    }
    transaction.query_row("SELECT EXISTS (SELECT 1 FROM garbage)", [], |row| row.get(0))
}

pub(super) fn totals(connection: &Connection) -> Result<Totals, Unreadable> {
    let last = connection.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'", [], |row| row.get(0));
    let mut totals = Totals { last_job: last.optional()?.unwrap_or(0), ..Totals::default() };
    totals.garbage = connection.query_row("SELECT EXISTS (SELECT 1 FROM garbage)", [], |row| row.get(0))?;
    let mut statement =
        connection.prepare("SELECT id, ended_ms IS NOT NULL, output_bytes FROM jobs ORDER BY ended_ms, id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (job, has_ended, bytes) = (JobId(row.get(0)?), row.get::<_, bool>(1)?, row.get(2)?);
        if has_ended {
            totals.ended.push(job);
        }
        if bytes > 0 {
            totals.output.insert(job, bytes);
        }
    }
    Ok(totals)
}

pub(super) fn unended(connection: &Connection) -> Result<Vec<JobId>, Unreadable> {
    let mut statement = connection.prepare("SELECT id FROM jobs WHERE ended_ms IS NULL ORDER BY id")?;
    let jobs = statement.query_map([], |row| row.get(0).map(JobId))?;
    Ok(jobs.collect::<Result<_, _>>()?)
}

pub(super) fn nodes(connection: &Connection) -> Result<Vec<NodeRecord>, Unreadable> {
    let mut statement =
        connection.prepare("SELECT slave, journal, session, drain, drain_until_ms FROM task_nodes ORDER BY slave")?;
    let mut rows = statement.query([])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        let slave: String = row.get(0)?;
        nodes.push(node(row, &slave).map_err(|error| error.in_row(&format!("tasks of slave {slave:?}")))?);
    }
    Ok(nodes)
}

fn node(row: &Row<'_>, slave: &str) -> Result<NodeRecord, Unreadable> {
    let journal: Option<String> = row.get(1)?;
    let journal = journal.map(|text| text.parse::<JournalId>().map_err(|error| error.to_string())).transpose()?;
    let session: Option<String> = row.get(2)?;
    let session = session.map(|text| text.parse::<SessionId>().map_err(|error| error.to_string())).transpose()?;
    let drain_until = moment(row, 4)?;
    let slave = slave.parse().map_err(|error| format!("{error}"))?;
    Ok(NodeRecord { slave, journal, session, drain: row.get(3)?, drain_until })
}

const JOB_COLUMNS: &str = "id, submitted_ms, ended_ms, canceled, state, counts, output_dropped, about";

/// A job, if it is there.
pub(super) fn job(connection: &Connection, job: JobId) -> Result<Option<StoredJob>, Unreadable> {
    let mut statement = connection.prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1"))?;
    let mut rows = statement.query([id(job)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    stored_job(row).map(Some).map_err(|error| error.in_row(&format!("job {job}")))
}

/// Whether a job is there.
pub(super) fn has_job(connection: &Connection, job: JobId) -> Result<bool, Unreadable> {
    Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1)", [id(job)], |row| row.get(0))?)
}

/// The newest jobs, the newest first.
pub(super) fn newest(connection: &Connection, limit: u32) -> Result<Vec<StoredJob>, Unreadable> {
    let mut statement = connection.prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs ORDER BY id DESC LIMIT ?1"))?;
    let mut rows = statement.query([limit])?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next()? {
        let name = format!("job {}", row.get::<_, i64>(0)?);
        jobs.push(stored_job(row).map_err(|error| error.in_row(&name))?);
    }
    Ok(jobs)
}

fn stored_job(row: &Row<'_>) -> Result<StoredJob, Unreadable> {
    let state: String = row.get(4)?;
    Ok(StoredJob {
        row: JobRow {
            job: JobId(row.get(0)?),
            ended: moment(row, 2)?,
            canceled: row.get(3)?,
            state: parsed("state", &format!("{state:?}"))?,
            counts: parsed("counts", &row.get::<_, String>(5)?)?,
        },
        submitted: moment(row, 1)?.unwrap_or(Timestamp::from_unix_ms(0)),
        output_dropped: row.get(6)?,
        about: parsed("about", &row.get::<_, String>(7)?)?,
    })
}

/// What a job does, if it is there.
pub(super) fn spec(connection: &Connection, job: JobId) -> Result<Option<JobSpec>, Unreadable> {
    let found = connection.query_row("SELECT spec FROM jobs WHERE id = ?1", [id(job)], |row| row.get::<_, String>(0));
    let spec = found.optional()?.map(|text| parsed("spec", &text)).transpose();
    spec.map_err(|problem| Unreadable::from(problem).in_row(&format!("job {job}")))
}

/// The rows of a job's tasks from one place to another, `to` excluded.
pub(super) fn tasks(connection: &Connection, job: JobId, from: u32, to: u32) -> Result<Vec<(u32, Task)>, Unreadable> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE job = ?1 AND place >= ?2 AND place < ?3 ORDER BY place");
    let mut statement = connection.prepare(&sql)?;
    collect_tasks(job, statement.query(params![id(job), from, to])?)
}

/// Those of its tasks in that state that have rows.
pub(super) fn tasks_in(
    connection: &Connection,
    job: JobId,
    state: TaskState,
    from: u32,
    limit: u32,
) -> Result<Vec<(u32, Task)>, Unreadable> {
    let sql = format!(
        "SELECT {TASK_COLUMNS} FROM tasks WHERE job = ?1 AND state = ?2 AND place >= ?3 ORDER BY place LIMIT ?4"
    );
    let mut statement = connection.prepare(&sql)?;
    collect_tasks(job, statement.query(params![id(job), state.as_str(), from, limit])?)
}

const TASK_COLUMNS: &str = "place, state, attempt, failures, slave, started, cancel, gap, reason, result, stdout, stderr, \
                            started_ms, ended_ms";

fn collect_tasks(job: JobId, mut rows: rusqlite::Rows<'_>) -> Result<Vec<(u32, Task)>, Unreadable> {
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        let index: u32 = row.get(0)?;
        tasks.push((index, task(row).map_err(|error| error.in_row(&format!("task {job}.{index}")))?));
    }
    Ok(tasks)
}

fn task(row: &Row<'_>) -> Result<Task, Unreadable> {
    let state: String = row.get(1)?;
    let slave: Option<String> = row.get(4)?;
    let result: Option<String> = row.get(9)?;
    Ok(Task {
        state: parsed("state", &format!("{state:?}"))?,
        attempt: row.get(2)?,
        failures: row.get(3)?,
        slave: slave.map(|slave| slave.parse().map_err(|error| format!("{error}"))).transpose()?,
        started: row.get(5)?,
        cancel: row.get(6)?,
        gap: row.get(7)?,
        reason: row.get(8)?,
        result: result.map(|text| parsed("result", &text)).transpose()?,
        stdout: row.get(10)?,
        stderr: row.get(11)?,
        started_at: moment(row, 12)?,
        ended_at: moment(row, 13)?,
    })
}

/// What was answered when a job was submitted under this key.
pub(super) fn answer(connection: &Connection, key: &str) -> Result<Option<String>, Unreadable> {
    let mut statement = connection.prepare("SELECT answer FROM jobs WHERE idempotency_key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?.flatten())
}

fn moment(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>, Unreadable> {
    let at: Option<i64> = row.get(column)?;
    Ok(at.map(|at| Timestamp::from_unix_ms(u64::try_from(at).unwrap_or(0))))
}

pub(super) fn id(job: JobId) -> i64 {
    signed(job.0)
}

/// How a stream is written.
pub(super) fn stream_number(stream: Stream) -> i64 {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn milliseconds(at: Timestamp) -> i64 {
    signed(at.unix_ms())
}
