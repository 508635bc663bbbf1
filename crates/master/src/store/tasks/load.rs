//! Jobs and tasks read back.

use rpicluster_core::tasks::{JobSpec, NodeRecord, Task};
use rpicluster_protocol::{JobId, JournalId, SessionId, TaskState, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, Rows, params};

use super::{JobRow, StoredJob, Totals, id};
use crate::store::{Unreadable, parsed};

pub(in crate::store) fn totals(connection: &Connection) -> Result<Totals, Unreadable> {
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

/// Jobs that may still change: those that have not ended, and the newest of those of which a task is lost, with no more
/// than so many tasks together.
pub(in crate::store) fn unsettled(connection: &Connection, tasks_max: usize) -> Result<Vec<JobId>, Unreadable> {
    let mut statement = connection.prepare(
        "SELECT id FROM jobs WHERE ended_ms IS NULL
        UNION
        SELECT id FROM (
            SELECT id, sum((SELECT sum(value) FROM json_each(counts))) OVER (ORDER BY id DESC) AS tasks
            FROM jobs WHERE ended_ms IS NOT NULL AND counts LIKE '%\"lost\"%'
        ) WHERE tasks <= ?1
        ORDER BY id",
    )?;
    let jobs = statement.query_map([i64::try_from(tasks_max).unwrap_or(i64::MAX)], |row| row.get(0).map(JobId))?;
    Ok(jobs.collect::<Result<_, _>>()?)
}

pub(in crate::store) fn nodes(connection: &Connection) -> Result<Vec<NodeRecord>, Unreadable> {
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
pub(in crate::store) fn job(connection: &Connection, job: JobId) -> Result<Option<StoredJob>, Unreadable> {
    let mut statement = connection.prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1"))?;
    let mut rows = statement.query([id(job)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    stored_job(row).map(Some).map_err(|error| error.in_row(&format!("job {job}")))
}

/// Whether a job is there.
pub(in crate::store) fn has_job(connection: &Connection, job: JobId) -> Result<bool, Unreadable> {
    Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1)", [id(job)], |row| row.get(0))?)
}

/// The newest jobs, the newest first.
pub(in crate::store) fn newest(connection: &Connection, limit: u32) -> Result<Vec<StoredJob>, Unreadable> {
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
pub(in crate::store) fn spec(connection: &Connection, job: JobId) -> Result<Option<JobSpec>, Unreadable> {
    let found = connection.query_row("SELECT spec FROM jobs WHERE id = ?1", [id(job)], |row| row.get::<_, String>(0));
    let spec = found.optional()?.map(|text| parsed("spec", &text)).transpose();
    spec.map_err(|problem| Unreadable::from(problem).in_row(&format!("job {job}")))
}

/// The rows of a job's tasks from one place to another, `to` excluded.
pub(in crate::store) fn tasks(
    connection: &Connection,
    job: JobId,
    from: u32,
    to: u32,
) -> Result<Vec<(u32, Task)>, Unreadable> {
    let sql = format!("SELECT {TASK_COLUMNS} FROM tasks WHERE job = ?1 AND place >= ?2 AND place < ?3 ORDER BY place");
    let mut statement = connection.prepare(&sql)?;
    collect_tasks(job, statement.query(params![id(job), from, to])?)
}

/// Those of its tasks in that state that have rows.
pub(in crate::store) fn tasks_in(
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

fn collect_tasks(job: JobId, mut rows: Rows<'_>) -> Result<Vec<(u32, Task)>, Unreadable> {
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
pub(in crate::store) fn answer(connection: &Connection, key: &str) -> Result<Option<String>, Unreadable> {
    let mut statement = connection.prepare("SELECT answer FROM jobs WHERE idempotency_key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?.flatten())
}

fn moment(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>, Unreadable> {
    let at: Option<i64> = row.get(column)?;
    Ok(at.map(|at| Timestamp::from_unix_ms(u64::try_from(at).unwrap_or(0))))
}
