//! The rows of jobs and tasks: what was asked for, how far it is, and what it said.

use std::collections::BTreeMap;

use rpicluster_core::tasks::{JobRecord, NodeRecord, Task};
use rpicluster_protocol::{
    JobId, JobState, SessionId, SlaveId, StepInfo, Stream, TaskFinished, TaskId, TaskOutput, TaskState, Timestamp,
};
use rusqlite::{Statement, Transaction, params};
use serde::{Deserialize, Serialize};

use super::json;

mod load;
mod sweep;

pub(super) use load::{answer, has_job, job, newest, nodes, spec, tasks, tasks_in, totals, unsettled};
use sweep::{free_output, sweep};

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

pub(super) fn id(job: JobId) -> i64 {
    signed(job.0)
}

#[cfg(test)]
mod tests;
