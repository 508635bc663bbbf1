use std::sync::Arc;

use rpicluster_core::tasks::{JobSpec, KEPT_TASKS_MAX};
use rpicluster_protocol::{AttemptKey, Epoch, Outcome};

use super::*;
use crate::shown::about;
use crate::store::{Pieces, Store, private_folder};

fn task_id(job: u64, index: u32) -> TaskId {
    TaskId { job: JobId(job), index }
}

fn key(job: u64, index: u32, attempt: u32) -> AttemptKey {
    AttemptKey { task: task_id(job, index), attempt, epoch: Epoch(1) }
}

fn spec() -> Arc<JobSpec> {
    let spec = serde_json::json!({
        "name": "ä", "requester": "me", "steps": [{
            "name": null, "on": "all", "spec": {"kind": "exec", "argv": ["echo", "a b", "{}"], "output_limit": 9},
            "slaves": ["pi-1", "pi-2"], "inputs": null, "retries": 1, "idempotent": true, "wait_ms": 5, "batch": 2,
            "max_failures": null, "after": []
        }]
    });
    serde_json::from_value(spec).map(Arc::new).unwrap()
}

fn finished(key: AttemptKey) -> TaskFinished {
    TaskFinished {
        exit_code: Some(3),
        reason: Some("no".into()),
        duration_ms: 7,
        stdout: 5,
        cpu_ms: Some(1),
        result: Some(serde_json::json!({"deep": [1]})),
        ..TaskFinished::new(key, 2, Outcome::Failed)
    }
}

fn task() -> Task {
    Task {
        state: TaskState::Failed,
        attempt: 2,
        failures: 1,
        slave: Some("pi-1".parse().unwrap()),
        started: true,
        cancel: true,
        reason: Some("no".into()),
        result: Some(Box::new(finished(key(1, 1, 2)))),
        stdout: 5,
        stderr: 6,
        gap: true,
        started_at: Some(Timestamp::from_unix_ms(7)),
        ended_at: Some(Timestamp::from_unix_ms(8)),
    }
}

fn piece(key: AttemptKey, stream: Stream, offset: u64, data: &str) -> TaskOutput {
    TaskOutput { key, stream, offset, gap: false, data: data.into() }
}

/// Submits job 1 and writes these rows with it.
fn written(store: &mut Store, rows: TaskRows<'_>) -> Swept {
    let about = about(&spec());
    let submitted = Timestamp::from_unix_ms(1_000);
    let record = JobRecord { job: JobId(1), spec: spec(), canceled: false, submitted, ended: None };
    let key = Some(("key", "the answer".to_owned()));
    let rows = TaskRows { submitted: vec![SubmittedJob { record, about: &about, key }], ..rows };
    store.save_all(&[], [], &rows).unwrap()
}

#[test]
fn what_was_written_of_jobs_is_there_when_it_is_opened_again() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    let (pi, gone): (SlaveId, SlaveId) = ("pi-1".parse().unwrap(), "pi-2".parse().unwrap());
    let node = NodeRecord {
        slave: pi.clone(),
        journal: Some(rpicluster_protocol::JournalId(5)),
        session: Some("s1".parse().unwrap()),
        drain: Some("fan".into()),
        drain_until: Some(Timestamp::from_unix_ms(7)),
    };
    let row = JobRow {
        job: JobId(1),
        canceled: true,
        ended: None,
        state: JobState::Active,
        counts: BTreeMap::from([(TaskState::Queued, 1), (TaskState::Failed, 1)]),
    };
    let task = task();
    written(
        &mut store,
        TaskRows {
            jobs: vec![row.clone()],
            tasks: vec![(task_id(1, 1), &task)],
            nodes: vec![(&pi, Some(node.clone())), (&gone, None)],
            ..TaskRows::default()
        },
    );
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    let (stored, found, tasks) = store.job(JobId(1)).unwrap().unwrap();
    assert_eq!((stored.row, stored.submitted.unix_ms(), stored.output_dropped), (row, 1_000, false));
    assert_eq!((stored.about.steps[0].work.as_str(), stored.about.tasks), ("echo 'a b' {}", 2));
    assert_eq!((found, tasks), (spec(), vec![(1, task)]));
    assert_eq!(store.task_nodes().unwrap(), [node]);
    assert_eq!(store.answer("key").unwrap().as_deref(), Some("the answer"));
    assert_eq!(store.answer("another").unwrap(), None);
    assert_eq!(store.unsettled_jobs(KEPT_TASKS_MAX).unwrap(), [JobId(1)]);
    assert_eq!(store.totals().unwrap(), Totals { last_job: 1, ..Totals::default() });
    let reader = store.reader();
    assert_eq!(reader.tasks_in(JobId(1), TaskState::Failed, 0, 9).unwrap().len(), 1);
    assert_eq!(reader.tasks_in(JobId(1), TaskState::Failed, 2, 9).unwrap(), []);
    assert!(reader.job(JobId(2)).unwrap().is_none() && reader.spec(JobId(2)).unwrap().is_none());
}

#[test]
fn output_is_read_from_any_byte_and_in_the_order_in_which_it_came() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    let task = task();
    let output = [
        piece(key(1, 1, 2), Stream::Stdout, 0, "abc"),
        piece(key(1, 1, 2), Stream::Stderr, 0, "E"),
        piece(key(1, 1, 1), Stream::Stdout, 0, "of an attempt before"),
        piece(key(1, 1, 2), Stream::Stdout, 3, "def"),
    ];
    let rows = TaskRows { tasks: vec![(task_id(1, 1), &task)], output: &output, ..TaskRows::default() };
    written(&mut store, rows);
    let reader = store.reader();
    let all = |mut wanted: Pieces| {
        let mut text = Vec::new();
        loop {
            let (pieces, next) = reader.output(wanted).unwrap();
            text.extend(pieces.into_iter().flat_map(|piece| piece.data));
            let Some(next) = next else { return String::from_utf8(text).unwrap() };
            wanted = next;
        }
    };
    for (from, rest) in ["abcdef", "bcdef", "cdef", "def", "ef", "f", "", ""].into_iter().enumerate() {
        assert_eq!(all(Pieces::Of(task_id(1, 1), 2, Stream::Stdout, from as u64)), rest);
    }
    assert_eq!(all(Pieces::OfJob(JobId(1), i64::MIN)), "abcEdef");
    assert_eq!(store.totals().unwrap().output[&JobId(1)], 27);
}

#[test]
fn late_results_are_kept_of_attempts_that_were_and_deeds_are_bounded() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    let task = task();
    let late = [finished(key(1, 1, 1)), finished(key(1, 1, 3)), finished(key(7, 0, 1)), finished(key(1, 0, 1))];
    let tasks = vec![(task_id(1, 1), &task)];
    let deed = Deed { at: Timestamp::from_unix_ms(1), requester: "me".into(), deed: "cancel", subject: "1".into() };
    let many = vec![deed.clone(); AUDIT_ROWS_MAX as usize];
    written(&mut store, TaskRows { tasks, late_results: late.iter().collect(), audit: &many, ..TaskRows::default() });
    store.save_all(&[], [], &TaskRows { audit: &[deed], ..TaskRows::default() }).unwrap();
    let count = |sql: &str| store.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM late_results"), 1);
    assert_eq!(count("SELECT attempt FROM late_results"), 1);
    assert_eq!(count("SELECT count(*) FROM audit"), AUDIT_ROWS_MAX);
}

#[test]
fn rows_go_a_little_at_a_time_and_an_interrupted_sweep_goes_on() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    let task = task();
    let tasks = (0..12_000).map(|index| (task_id(1, index), &task)).collect();
    let output = [piece(key(1, 0, 1), Stream::Stdout, 0, "x")];
    written(&mut store, TaskRows { tasks, output: &output, ..TaskRows::default() });
    let forget = TaskRows { forgotten: vec![JobId(1)], ..TaskRows::default() };
    assert!(store.save_all(&[], [], &forget).unwrap().more_garbage);
    assert!(!store.has_job(JobId(1)).unwrap());
    drop(store);
    let mut store = Store::open(folder.path()).unwrap();
    assert_eq!(store.totals().unwrap(), Totals { last_job: 1, garbage: true, ..Totals::default() });
    let sweep = TaskRows { sweep: true, ..TaskRows::default() };
    while store.save_all(&[], [], &sweep).unwrap().more_garbage {}
    assert_eq!(store.reader().tasks(JobId(1), 0, u32::MAX).unwrap(), []);
    assert_eq!(store.totals().unwrap(), Totals { last_job: 1, ..Totals::default() });
}

#[test]
fn output_makes_room_piece_by_piece() {
    let folder = private_folder();
    let mut store = Store::open(folder.path()).unwrap();
    let output = [0, 3, 6].map(|offset| piece(key(1, 0, 1), Stream::Stdout, offset, "xyz"));
    written(&mut store, TaskRows { output: &output, ..TaskRows::default() });
    let mut free = |bytes| {
        let rows = TaskRows { output_to_free: Some((vec![JobId(1)], bytes)), ..TaskRows::default() };
        store.save_all(&[], [], &rows).unwrap().freed
    };
    assert_eq!(free(4), BTreeMap::from([(JobId(1), 6)]));
    assert_eq!(free(4), BTreeMap::from([(JobId(1), u64::MAX)]), "there is nothing left to be counted");
    assert_eq!(store.totals().unwrap().output, BTreeMap::new());
    assert!(store.job(JobId(1)).unwrap().unwrap().0.output_dropped);
}
