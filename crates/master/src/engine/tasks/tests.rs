use rpicluster_core::tasks::{JobSpec, Step};
use rpicluster_protocol::limits::{RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{
    AttemptKey, JobAccepted, Outcome, Stream, TaskOffer, TaskStarted, TaskState, Timestamp, ToSlave, parse_to_slave,
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::outgoing::ACK_WAIT;
use super::*;
use crate::store::{Pieces, private_folder};

const LIMITS: TaskLimits = TaskLimits { jobs_max: 3, output_bytes_max: 1_000 };

/// A desk for an engine that is tested for something else.
pub(crate) fn desk(store: &Store) -> (TaskDesk, mpsc::Receiver<Letter>, Arc<Board>) {
    let (letters, receiver) = mpsc::channel(1_000);
    let board = Arc::new(Board::default());
    (TaskDesk::open(store, LIMITS, board.clone(), letters, beginning()).unwrap(), receiver, board)
}

fn beginning() -> Now {
    Now { moment: Moment::from_millis(1_000_000), wall: Timestamp::from_unix_ms(1_000_000) }
}

type Answer<T> = oneshot::Receiver<Result<T, AskError>>;

/// A desk and its store, without the engine between them.
struct Bench {
    store: Store,
    desk: TaskDesk,
    letters: mpsc::Receiver<Letter>,
    board: Arc<Board>,
    view: View,
    now: Now,
    folder: TempDir,
}

fn pi() -> SlaveId {
    "pi".parse().unwrap()
}

fn session(name: &str) -> SessionId {
    name.parse().unwrap()
}

/// A job that `pi` has for itself, a task for each input.
fn spec(inputs: u32) -> Arc<JobSpec> {
    let spec = serde_json::from_value(serde_json::json!({"kind": "exec", "argv": ["{}"], "output_limit": 400}));
    Arc::new(JobSpec {
        name: None,
        requester: "tester".into(),
        steps: vec![Step {
            name: None,
            on: "pi".into(),
            spec: spec.unwrap(),
            slaves: vec![pi()],
            inputs: Some((0..inputs).map(|n| n.to_string()).collect()),
            retries: 0,
            idempotent: false,
            wait_ms: None,
            batch: None,
            max_failures: None,
            after: Vec::new(),
        }],
    })
}

impl Bench {
    fn new() -> Bench {
        Bench::open(private_folder())
    }

    fn open(folder: TempDir) -> Bench {
        let store = Store::open(folder.path()).unwrap();
        let (desk, letters, board) = desk(&store);
        Bench { store, desk, letters, board, view: View::new(10), now: beginning(), folder }
    }

    /// A crash: what is not written is gone.
    fn restart(self) -> Bench {
        let Bench { store, desk, folder, .. } = self;
        drop((store, desk));
        Bench::open(folder)
    }

    fn submit(&mut self, spec: Arc<JobSpec>, key: Option<&str>) -> Answer<JobAccepted> {
        let (done, answer) = oneshot::channel();
        let accepted = JobAccepted { job: None, steps: Vec::new() };
        let submission = Submission { spec, accepted, key: key.map(str::to_owned) };
        self.desk.ask(Ask::Submit(Box::new(submission), done), &self.store, self.now);
        answer
    }

    fn ask(&mut self, ask: impl FnOnce(Done<()>) -> Ask) -> Answer<()> {
        let (done, answer) = oneshot::channel();
        self.desk.ask(ask(done), &self.store, self.now);
        answer
    }

    fn pass(&mut self, time: Duration) {
        self.now.moment = self.now.moment + time;
        self.desk.timeout(self.now);
    }

    /// The slave is there, with an empty journal.
    fn come(&mut self, name: &str, slots: u32) {
        self.desk.presence(&pi(), Some((session(name), Slots { at_once: slots, ahead: 0 })), self.now);
        self.news(TaskNews::Journal(session(name), JournalId(1), Vec::new()));
    }

    fn news(&mut self, news: TaskNews) {
        self.desk.news(&pi(), news, self.now);
    }

    fn started(&mut self, key: AttemptKey) {
        self.news(TaskNews::Events(vec![JournalEntry::Started(TaskStarted { key, seq: 1, boot_id: None })]));
    }

    fn finished(&mut self, key: AttemptKey, outcome: Outcome, stdout: u64) {
        let finished = TaskFinished { duration_ms: 1, stdout, ..TaskFinished::new(key, 2, outcome) };
        self.news(TaskNews::Events(vec![JournalEntry::Finished(Box::new(finished))]));
    }

    fn output(&mut self, key: AttemptKey, offset: u64, bytes: usize) {
        let piece = TaskOutput { key, stream: Stream::Stdout, offset, gap: false, data: vec![b'x'; bytes] };
        self.news(TaskNews::Output(vec![piece], None));
    }

    /// What is said once everything is written, if it can be.
    fn commit(&mut self) -> Vec<ToSlave> {
        while self.desk.wants_save(self.now.moment) {
            match self.store.save_all(&[], [], &self.desk.rows()) {
                Ok(swept) => self.desk.saved(swept, &self.view),
                Err(_) => self.desk.not_saved(self.now.moment),
            }
        }
        self.desk.pay(&self.view, self.now.moment);
        let letters = std::iter::from_fn(|| self.letters.try_recv().ok());
        letters.flat_map(|letter| letter.messages).map(|text| parse_to_slave(&text).unwrap().message).collect()
    }

    fn offers(&mut self) -> Vec<TaskOffer> {
        let offers = |message| if let ToSlave::TaskOffer(offers) = message { offers } else { Vec::new() };
        self.commit().into_iter().flat_map(offers).collect()
    }

    fn state(&self, index: u32) -> TaskState {
        let rows = self.store.reader().tasks(JobId(1), index, index + 1).unwrap();
        rows.first().map_or(TaskState::Queued, |(_, task)| task.state)
    }

    fn job_state(&self) -> JobState {
        self.store.reader().job(JobId(1)).unwrap().unwrap().row.state
    }

    /// Runs a job of one task that writes so much, to its end.
    fn run(&mut self, bytes: usize) -> JobId {
        let answer = self.submit(spec(1), None);
        let offer = self.offers().remove(0);
        self.started(offer.key);
        self.output(offer.key, 0, bytes);
        self.finished(offer.key, Outcome::Succeeded, bytes as u64);
        self.commit();
        accepted(answer)
    }

    fn kept_output(&self, job: JobId) -> usize {
        let pieces = self.store.reader().output(Pieces::OfJob(job, i64::MIN)).unwrap().0;
        pieces.iter().map(|piece| piece.data.len()).sum()
    }
}

fn accepted(mut answer: Answer<JobAccepted>) -> JobId {
    answer.try_recv().unwrap().unwrap().job.unwrap()
}

#[test]
fn nobody_is_told_anything_before_it_is_written() {
    let mut bench = Bench::new();
    bench.come("s1", 1);
    let mut answer = bench.submit(spec(1), None);
    bench.desk.pay(&bench.view, bench.now.moment);
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    assert!(bench.letters.try_recv().is_err());
    let offers = bench.offers();
    assert_eq!(offers.len(), 1);
    assert_eq!(accepted(answer), JobId(1));
    assert_eq!(bench.state(0), TaskState::Offered);
    let bench = bench.restart();
    assert_eq!(bench.board.row(JobId(1)).unwrap().counts, BTreeMap::from([(TaskState::Offered, 1)]));
}

#[test]
fn a_submission_that_cannot_be_written_never_was() {
    let mut bench = Bench::new();
    bench.come("s1", 1);
    bench.commit();
    bench.store.break_down();
    let mut answer = bench.submit(spec(1), Some("key"));
    assert_eq!(bench.commit(), []);
    assert_eq!(answer.try_recv().unwrap(), Err(AskError::NotWritten));
    let mut next = bench.submit(spec(1), None);
    assert_eq!(next.try_recv().unwrap(), Err(AskError::NotWritten), "at once");
    bench.store.mend();
    bench.now.moment = bench.now.moment + RETRY_PAUSE;
    assert_eq!(bench.commit(), []);
    assert!(!bench.store.has_job(JobId(1)).unwrap());
    let answer = bench.submit(spec(1), Some("key"));
    assert_eq!(bench.offers().len(), 1);
    assert_eq!(accepted(answer), JobId(2), "a number is given out once");
}

#[test]
fn effects_wait_for_a_store_that_fails_and_leases_do_not() {
    let mut bench = Bench::new();
    bench.come("s1", 2);
    drop(bench.submit(spec(2), None));
    let offers = bench.offers();
    bench.store.break_down();
    bench.started(offers[0].key);
    assert_eq!(bench.commit(), []);
    // What is repeated is left to be repeated.
    bench.finished(offers[0].key, Outcome::Succeeded, 0);
    let attempts = vec![rpicluster_protocol::LeasedAttempt { task: offers[0].key.task, attempt: 1 }];
    let lease = TaskLease { epoch: bench.desk.epoch(), renewal: 7, attempts };
    bench.news(TaskNews::Lease(lease.clone()));
    assert_eq!(bench.commit(), [ToSlave::LeaseAck(lease)]);
    let mut refused = bench.ask(|done| Ask::Cancel { job: JobId(1), running: true, requester: "x".into(), done });
    assert_eq!(refused.try_recv().unwrap(), Err(AskError::NotWritten));
    bench.store.mend();
    assert_eq!(bench.commit(), [], "it is not tried again at once");
    bench.now.moment = bench.now.moment + RETRY_PAUSE;
    assert_eq!(bench.commit(), [], "it waits for others");
    bench.now.moment = bench.now.moment + ACK_WAIT;
    let said = bench.commit();
    assert!(matches!(&said[..], [ToSlave::TaskAck(acks)] if acks[0].seq == 1), "{said:?}");
    assert_eq!(bench.state(0), TaskState::Running);
    bench.finished(offers[0].key, Outcome::Succeeded, 0);
    bench.commit();
    assert_eq!(bench.state(0), TaskState::Succeeded);
}

#[test]
fn a_late_result_settles_a_lost_task_of_an_ended_job_also_after_a_restart() {
    let mut bench = Bench::new();
    bench.come("s1", 1);
    drop(bench.submit(spec(1), None));
    let key = bench.offers()[0].key;
    bench.started(key);
    bench.commit();
    bench.desk.presence(&pi(), None, bench.now);
    bench.pass(3 * LEASE);
    bench.commit();
    assert_eq!((bench.state(0), bench.job_state()), (TaskState::Lost, JobState::Failed));
    assert_eq!(bench.store.unsettled_jobs(0).unwrap(), [], "no more than there is room for");
    let mut bench = bench.restart();
    bench.desk.presence(&pi(), Some((session("s2"), Slots { at_once: 1, ahead: 0 })), bench.now);
    let end = JournalEntry::Finished(Box::new(TaskFinished::new(key, 2, Outcome::Succeeded)));
    bench.news(TaskNews::Journal(session("s2"), JournalId(1), vec![end]));
    bench.commit();
    assert_eq!((bench.state(0), bench.job_state()), (TaskState::Succeeded, JobState::Succeeded));
    let bench = bench.restart();
    assert!(bench.desk.tasks.job(JobId(1)).is_none(), "nothing of it can change any more");
}

#[test]
fn the_same_key_is_the_same_job_also_within_a_batch_and_after_a_restart() {
    let mut bench = Bench::new();
    let answers =
        [bench.submit(spec(1), Some("a")), bench.submit(spec(1), Some("a")), bench.submit(spec(1), Some("b"))];
    bench.commit();
    assert_eq!(answers.map(accepted), [JobId(1), JobId(1), JobId(2)]);
    let mut bench = bench.restart();
    assert_eq!(accepted(bench.submit(spec(1), Some("a"))), JobId(1));
    let another = bench.submit(spec(1), None);
    bench.commit();
    assert_eq!(accepted(another), JobId(3));
}

#[test]
fn who_has_no_slots_gets_nothing_and_who_sends_no_journal_is_asked_for_it() {
    let mut bench = Bench::new();
    drop(bench.submit(spec(1), None));
    bench.come("s1", 0);
    assert_eq!(bench.commit(), []);
    bench.pass(RESEND_MIN);
    assert_eq!(bench.desk.ask_for_journals(), BTreeSet::new());
    bench.desk.presence(&pi(), Some((session("s2"), Slots { at_once: 1, ahead: 0 })), bench.now);
    assert_eq!(bench.desk.ask_for_journals(), BTreeSet::new());
    bench.pass(RESEND_MIN);
    assert_eq!(bench.desk.ask_for_journals(), BTreeSet::from([pi()]));
    bench.come("s2", 1);
    assert_eq!(bench.offers().len(), 1);
    bench.pass(RESEND_MAX);
    assert_eq!(bench.desk.ask_for_journals(), BTreeSet::new());
}

#[test]
fn output_is_bounded_by_task_and_that_of_ended_jobs_makes_room() {
    let mut bench = Bench::new();
    bench.come("s1", 3);
    let first = bench.run(900);
    assert_eq!(bench.kept_output(first), 400, "the limit of the task");
    let second = bench.run(390);
    let third = bench.run(300);
    assert_eq!([first, second, third].map(|job| bench.kept_output(job)), [0, 390, 300]);
    let stored = bench.store.reader().job(first).unwrap().unwrap();
    assert!(stored.output_dropped);
    // Running jobs alone need it all: what is too much is not kept, and nothing of theirs goes.
    drop(bench.submit(spec(3), None));
    let offers = bench.offers();
    for offer in &offers {
        bench.started(offer.key);
        bench.output(offer.key, 0, 400);
        bench.commit();
    }
    let running = offers[0].key.task.job;
    assert_eq!([second, third, running].map(|job| bench.kept_output(job)), [0, 0, 800]);
    let bench = bench.restart();
    assert_eq!((bench.desk.output_bytes, bench.desk.cut.len()), (800, 1));
}

#[test]
fn the_oldest_ended_jobs_are_forgotten_with_all_they_had() {
    let mut bench = Bench::new();
    bench.come("s1", 1);
    for _ in 0..LIMITS.jobs_max + 2 {
        bench.run(10);
    }
    let left: Vec<u64> = bench.store.reader().newest_jobs(10).unwrap().iter().map(|job| job.row.job.0).collect();
    assert_eq!(left, [5, 4, 3]);
    assert_eq!(bench.kept_output(JobId(1)) + bench.store.reader().tasks(JobId(1), 0, 9).unwrap().len(), 0);
    let mut unknown = bench.ask(|done| Ask::Cancel { job: JobId(1), running: false, requester: "x".into(), done });
    assert_eq!(unknown.try_recv().unwrap(), Err(AskError::NoJob(JobId(1))));
    let mut bench = bench.restart();
    bench.come("s2", 1);
    assert_eq!(bench.run(0), JobId(6));
}

#[test]
fn an_ended_job_is_tried_again_as_far_as_it_failed() {
    let mut bench = Bench::new();
    bench.come("s1", 2);
    drop(bench.submit(spec(2), None));
    for (offer, outcome) in bench.offers().into_iter().zip([Outcome::Succeeded, Outcome::Failed]) {
        bench.started(offer.key);
        bench.finished(offer.key, outcome, 0);
    }
    bench.commit();
    assert_eq!(bench.store.unsettled_jobs(KEPT_TASKS_MAX).unwrap(), []);
    assert_eq!(bench.board.row(JobId(1)), None);
    let mut bench = bench.restart();
    bench.come("s2", 2);
    let retry = |done| Ask::Retry { job: JobId(1), failed_only: true, requester: "x".into(), done };
    let mut answer = bench.ask(retry);
    let offers = bench.offers();
    assert_eq!(answer.try_recv().unwrap(), Ok(()));
    assert_eq!(offers.iter().map(|offer| (offer.key.task.index, offer.key.attempt)).collect::<Vec<_>>(), [(1, 2)]);
    assert_eq!(bench.store.unsettled_jobs(KEPT_TASKS_MAX).unwrap(), [JobId(1)]);
    bench.started(offers[0].key);
    bench.finished(offers[0].key, Outcome::Succeeded, 0);
    bench.commit();
    assert_eq!(bench.state(1), TaskState::Succeeded);
    // Nothing is left to be tried again, and nothing is kept in memory for it.
    let mut answer = bench.ask(retry);
    bench.commit();
    assert_eq!((answer.try_recv().unwrap(), bench.desk.tasks.task_count()), (Ok(()), 0));
    assert_eq!(bench.store.unsettled_jobs(KEPT_TASKS_MAX).unwrap(), []);
}

#[test]
fn a_drained_slave_stays_so_and_a_removed_one_is_forgotten() {
    let mut bench = Bench::new();
    bench.view.get_or_meet(&pi(), bench.now.wall).unwrap();
    let shown = |bench: &Bench| bench.view.get(pi().as_str()).unwrap().work().drain;
    let (reason, deadline) = ("disk".to_owned(), None);
    let mut answer = bench.ask(|done| Ask::Drain { slave: pi(), reason, deadline, requester: "x".into(), done });
    assert_eq!((answer.try_recv(), shown(&bench)), (Err(TryRecvError::Empty), None));
    bench.commit();
    assert_eq!((answer.try_recv().unwrap(), shown(&bench).as_deref()), (Ok(()), Some("disk")), "at once");
    let mut bench = bench.restart();
    bench.come("s1", 1);
    drop(bench.submit(spec(1), None));
    assert_eq!(bench.offers(), []);
    drop(bench.ask(|done| Ask::Undrain { slave: pi(), requester: "x".into(), done }));
    assert_eq!(bench.offers().len(), 1);
    bench.desk.removed(&pi(), bench.now);
    bench.commit();
    assert_eq!(bench.store.task_nodes().unwrap(), []);
    assert_eq!(bench.state(0), TaskState::Lost);
}

#[tokio::test]
async fn watchers_are_told_what_was_written_output_first_and_the_end_last() {
    let mut bench = Bench::new();
    bench.come("s1", 1);
    drop(bench.submit(spec(1), None));
    let offer = bench.offers().remove(0);
    let mut watch = bench.board.watch(JobId(1), true).unwrap();
    bench.started(offer.key);
    bench.output(offer.key, 0, 3);
    bench.finished(offer.key, Outcome::Succeeded, 3);
    bench.commit();
    let told = watch.next().await.unwrap();
    let told = std::str::from_utf8(&told).unwrap();
    let kinds: Vec<&str> = told.lines().filter_map(|line| line.split('"').nth(3)).collect();
    assert_eq!(kinds, ["output", "task", "job"], "{told}");
    assert!(told.contains(r#""state":"succeeded""#));
    assert_eq!(watch.next().await, None);
}

#[test]
fn what_a_backup_held_unended_is_not_run_after_a_restore() {
    let mut bench = Bench::new();
    let submitted = bench.submit(spec(2), None);
    bench.commit();
    let job = accepted(submitted);
    let epoch = bench.desk.epoch();
    bench.store.begin_anew().unwrap();
    let mut bench = bench.restart();
    assert_ne!(bench.desk.epoch(), epoch);
    bench.come("s1", 2);
    bench.commit();
    assert_eq!(bench.offers().len(), 0);
    let stored = bench.store.reader().job(job).unwrap().unwrap();
    assert_eq!((stored.row.state, stored.row.counts[&TaskState::Canceled]), (JobState::Canceled, 2));
}
