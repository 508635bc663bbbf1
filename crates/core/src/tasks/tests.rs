use std::collections::BTreeMap;

use rpicluster_protocol::limits::{OUTPUT_LIMIT, RESEND_MAX, RESEND_MIN};
use rpicluster_protocol::{Action, LeasedAttempt, Outcome, Stream, TaskRejected, TaskSpec, TaskStarted};

use super::*;

mod attempts;
mod faults;

const EPOCH: Epoch = Epoch(7);
const LEASE: Duration = Duration::from_secs(600);
const JOB: JobId = JobId(1);

fn slave(name: &str) -> SlaveId {
    name.parse().unwrap()
}

fn session(name: &str) -> SessionId {
    name.parse().unwrap()
}

fn step(slaves: &[&str], inputs: Option<&[&str]>) -> Step {
    Step {
        name: None,
        on: "all".to_owned(),
        spec: TaskSpec {
            work: Work::Exec { argv: vec!["echo".to_owned(), "{}".to_owned()] },
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            run_as: None,
            timeout_ms: None,
            output_limit: OUTPUT_LIMIT,
        },
        slaves: slaves.iter().map(|name| slave(name)).collect(),
        inputs: inputs.map(|inputs| inputs.iter().map(|input| (*input).to_owned()).collect()),
        retries: 0,
        idempotent: false,
        wait_ms: None,
        batch: None,
        max_failures: None,
        after: Vec::new(),
    }
}

fn spec(steps: Vec<Step>) -> Arc<JobSpec> {
    Arc::new(JobSpec { name: None, requester: "test".to_owned(), steps })
}

fn id(index: u32) -> TaskId {
    TaskId { job: JOB, index }
}

fn key(index: u32, attempt: u32) -> AttemptKey {
    AttemptKey { task: id(index), attempt, epoch: EPOCH }
}

fn started(index: u32, attempt: u32) -> JournalEntry {
    JournalEntry::Started(TaskStarted { key: key(index, attempt), seq: 1, boot_id: None })
}

fn rejected(index: u32, attempt: u32, reason: RejectReason) -> JournalEntry {
    JournalEntry::Rejected(TaskRejected { key: key(index, attempt), seq: 1, reason, detail: None })
}

fn ended(index: u32, attempt: u32, seq: u32, outcome: Outcome) -> JournalEntry {
    JournalEntry::Finished(Box::new(TaskFinished::new(key(index, attempt), seq, outcome)))
}

fn finished(index: u32, attempt: u32, outcome: Outcome) -> JournalEntry {
    ended(index, attempt, 2, outcome)
}

/// The scheduler, a clock, a store, and what is said to slaves.
struct Desk {
    tasks: Tasks,
    now: Duration,
    jobs: BTreeMap<JobId, JobRecord>,
    stored: BTreeMap<TaskId, Task>,
    nodes: BTreeMap<SlaveId, NodeRecord>,
    offers: Vec<(Duration, String, TaskOffer)>,
    cancels: Vec<AttemptKey>,
    announces: Vec<Duration>,
    acks: Vec<TaskAck>,
    /// Ends that are written beside their task.
    late: Vec<AttemptKey>,
    /// All that came out, in order.
    effects: Effects,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            tasks: Tasks::new(EPOCH, LEASE),
            now: Duration::from_secs(1),
            jobs: BTreeMap::new(),
            stored: BTreeMap::new(),
            nodes: BTreeMap::new(),
            offers: Vec::new(),
            cancels: Vec::new(),
            announces: Vec::new(),
            acks: Vec::new(),
            late: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn clock(&self) -> Now {
        Now { moment: Moment::from(self.now), wall: Timestamp::from_unix_ms(self.now.as_millis() as u64) }
    }

    fn handle(&mut self, input: TaskInput) {
        let mut effects = Vec::new();
        self.tasks.handle(self.clock(), input, &mut effects);
        self.apply(effects);
    }

    /// Time passes, and nothing is missed on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.tasks.poll_timeout().filter(|next| *next <= Moment::from(until)) {
            self.now = self.now.max(Duration::from_millis(next.as_millis()));
            self.timeout();
        }
        self.now = until;
    }

    fn timeout(&mut self) {
        let mut effects = Vec::new();
        self.tasks.timeout(self.clock(), &mut effects);
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<TaskEffect>) {
        for effect in effects {
            self.effects.push(effect.clone());
            match effect {
                TaskEffect::RememberJob(job) => self.jobs.extend(self.tasks.job(job).map(|record| (job, record))),
                TaskEffect::RememberTask(id) => self.stored.extend(self.tasks.task(id).map(|task| (id, task.clone()))),
                TaskEffect::RememberNode(slave) => match self.tasks.node(&slave) {
                    Some(node) => drop(self.nodes.insert(slave, node)),
                    None => drop(self.nodes.remove(&slave)),
                },
                TaskEffect::Offer(slave, offer) => self.offers.push((self.now, slave.as_str().to_owned(), *offer)),
                TaskEffect::Cancel(_, cancel) => self.cancels.push(cancel.key),
                TaskEffect::Announce(_) => self.announces.push(self.now),
                TaskEffect::Ack(_, ack) => self.acks.push(ack),
                TaskEffect::LateResult(finished) => self.late.push(finished.key),
                _ => {}
            }
        }
    }

    /// The master dies and comes back with what it has written.
    fn restart(&mut self) {
        self.tasks = Tasks::new(EPOCH, LEASE);
        self.nodes.values().cloned().for_each(|node| self.tasks.restore_node(node));
        let mut effects = Vec::new();
        for (id, job) in &self.jobs {
            let tasks = self.stored.iter().filter(|(task, _)| task.job == *id);
            let tasks: Vec<(u32, Task)> = tasks.map(|(task, state)| (task.index, state.clone())).collect();
            self.tasks.restore_job(self.clock(), job.clone(), tasks, &mut effects);
        }
        self.apply(effects);
    }

    /// What came out so far is of no interest.
    fn forget(&mut self) {
        self.effects.clear();
        self.offers.clear();
        self.cancels.clear();
        self.acks.clear();
    }

    fn submit(&mut self, steps: Vec<Step>) {
        let spec = JobSpec { name: None, requester: "test".to_owned(), steps };
        self.handle(TaskInput::Submit(JOB, Arc::new(spec)));
    }

    fn up_with(&mut self, name: &str, in_session: &str, slots: Slots) {
        self.handle(TaskInput::SlaveUp(slave(name), session(in_session), slots));
    }

    fn up(&mut self, name: &str, in_session: &str, slots: u32) {
        self.up_with(name, in_session, Slots { at_once: slots, ahead: 0 });
    }

    fn journal(&mut self, name: &str, in_session: &str, entries: Vec<JournalEntry>) {
        self.handle(TaskInput::Journal(slave(name), session(in_session), JournalId(1), entries));
    }

    fn ready(&mut self, name: &str, slots: u32) {
        self.up(name, "s1", slots);
        self.journal(name, "s1", Vec::new());
    }

    fn event(&mut self, name: &str, event: JournalEntry) {
        self.handle(TaskInput::Event(slave(name), event));
    }

    fn down(&mut self, name: &str) {
        self.handle(TaskInput::SlaveDown(slave(name)));
    }

    fn state(&self, index: u32) -> TaskState {
        self.tasks.task(TaskId { job: JOB, index }).unwrap().state
    }

    /// The offers since this was last asked: to whom, which task, which attempt.
    fn offered(&mut self) -> Vec<(String, u32, u32)> {
        let offers = self.offers.drain(..);
        offers.map(|(_, slave, offer)| (slave, offer.key.task.index, offer.key.attempt)).collect()
    }

    fn output(&mut self, name: &str, offset: u64, data: &str, gap: bool) {
        let output = TaskOutput { key: key(0, 1), stream: Stream::Stdout, offset, gap, data: data.into() };
        self.handle(TaskInput::Output(slave(name), output));
    }

    fn states(&self) -> Vec<TaskState> {
        self.tasks.jobs[&JOB].tasks.iter().map(|task| task.state).collect()
    }

    /// The cancels since this was last asked.
    fn canceled(&mut self) -> Vec<AttemptKey> {
        std::mem::take(&mut self.cancels)
    }

    /// The acknowledgements since this was last asked.
    fn acknowledged(&mut self) -> Vec<TaskAck> {
        std::mem::take(&mut self.acks)
    }
}

#[test]
fn every_slave_runs_a_task_once_and_is_acknowledged() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a", "b"], None)]);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.up("b", "s1", 1);
    assert_eq!(desk.offered(), [], "nothing is offered before the journal has come");
    desk.journal("b", "s1", Vec::new());
    assert_eq!(desk.offered(), [("b".to_owned(), 1, 1)]);
    desk.event("a", started(0, 1));
    assert_eq!(desk.state(0), TaskState::Running);
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    assert_eq!(desk.acknowledged().iter().map(|ack| ack.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Active);
    desk.event("b", finished(1, 1, Outcome::Failed));
    assert_eq!(desk.states(), [TaskState::Succeeded, TaskState::Failed]);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Failed);
    assert!(desk.tasks.job(JOB).unwrap().ended.is_some());
    assert_eq!(desk.offered(), []);
    desk.forget();
    desk.event("b", finished(1, 1, Outcome::Succeeded));
    assert_eq!(desk.state(1), TaskState::Failed, "the first outcome stands");
    assert_eq!(desk.acknowledged().len(), 1, "and what is repeated is acknowledged again");
    desk.tasks.forget_ended();
    assert!(desk.tasks.job(JOB).is_none());
    assert_eq!(desk.tasks.poll_timeout(), None, "nothing is left of it");
}

#[test]
fn inputs_are_a_queue_that_slots_share_and_jobs_take_turns() {
    let mut desk = Desk::new();
    desk.ready("a", 2);
    desk.ready("b", 1);
    desk.submit(vec![step(&["a", "b"], Some(&["x", "y", "z", "w", "v"]))]);
    let argv = vec!["echo".to_owned(), "x".to_owned()];
    assert_eq!(desk.offers[0].2.spec.work, Work::Exec { argv });
    let offers = desk.offered();
    assert_eq!(offers.iter().map(|(_, index, _)| *index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(offers.iter().filter(|(name, ..)| name == "a").count(), 2);
    desk.handle(TaskInput::Submit(JobId(2), spec(vec![step(&["a"], Some(&["p", "q"]))])));
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    desk.event("a", finished(1, 1, Outcome::Succeeded));
    let jobs: Vec<JobId> = desk.offers.iter().map(|(_, _, offer)| offer.key.task.job).collect();
    assert_eq!(jobs.len(), 2);
    assert!(jobs.contains(&JOB) && jobs.contains(&JobId(2)), "{jobs:?}");
}

#[test]
fn what_failed_is_tried_again_as_often_as_its_job_allows() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { retries: 2, ..step(&["a"], None) }]);
    for attempt in 1..=3 {
        assert_eq!(desk.offered(), [("a".to_owned(), 0, attempt)]);
        desk.event("a", finished(0, attempt, if attempt == 2 { Outcome::TimedOut } else { Outcome::Failed }));
        if attempt < 3 {
            assert_eq!(desk.state(0), TaskState::Backoff);
            let wait = desk.tasks.poll_timeout().unwrap().since(Moment::from(desk.now));
            assert!((RETRY_WAIT_MIN / 2..=RETRY_WAIT_MAX).contains(&wait), "{wait:?}");
            desk.pass(wait);
        }
    }
    assert_eq!(desk.state(0), TaskState::Failed);
}

#[test]
fn a_new_session_tells_by_its_journal_what_became_of_offers() {
    let mut desk = Desk::new();
    desk.ready("a", 3);
    desk.submit(vec![step(&["a"], Some(&["never", "runs", "ended"]))]);
    desk.event("a", started(1, 1));
    desk.down("a");
    assert_eq!(desk.states(), [TaskState::Unknown; 3]);
    desk.offered();
    desk.up("a", "s2", 3);
    desk.journal("a", "s1", Vec::new());
    assert_eq!(desk.states(), [TaskState::Unknown; 3], "a journal of another session tells nothing");
    desk.journal("a", "s2", vec![started(1, 1), finished(2, 1, Outcome::Succeeded)]);
    assert_eq!(desk.states(), [TaskState::Offered, TaskState::Running, TaskState::Succeeded]);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 2)], "what never began is offered as another attempt");
    // The journal comes again, as after `announce`: the new offer is of this session, and may be under way.
    desk.journal("a", "s2", vec![started(1, 1)]);
    assert_eq!(desk.states(), [TaskState::Offered, TaskState::Running, TaskState::Succeeded]);
}

#[test]
fn another_journal_means_that_what_was_open_is_lost() {
    let mut desk = Desk::new();
    desk.ready("a", 2);
    desk.submit(vec![step(&["a"], Some(&["x", "y"]))]);
    desk.down("a");
    desk.up("a", "s2", 2);
    desk.handle(TaskInput::Journal(slave("a"), session("s2"), JournalId(2), vec![started(1, 1)]));
    assert_eq!(desk.states(), [TaskState::Lost, TaskState::Running]);
    assert_eq!(desk.tasks.node(&slave("a")).unwrap().journal, Some(JournalId(2)));
}

#[test]
fn an_offer_that_came_too_late_costs_no_retry_and_a_policy_is_final() {
    let mut desk = Desk::new();
    desk.ready("a", 2);
    desk.submit(vec![Step { retries: 3, ..step(&["a"], Some(&["x", "y"])) }]);
    desk.offered();
    desk.event("a", rejected(0, 1, RejectReason::Stale));
    desk.event("a", rejected(1, 1, RejectReason::Policy));
    assert_eq!(desk.states(), [TaskState::Backoff, TaskState::Rejected]);
    desk.pass(DECLINED_WAIT);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 2)]);
    assert_eq!(desk.tasks.task(id(0)).unwrap().failures, 0);
}

#[test]
fn a_cancel_is_a_request_and_the_first_outcome_wins() {
    let mut desk = Desk::new();
    desk.ready("a", 2);
    desk.submit(vec![step(&["a"], Some(&["x", "y", "z"]))]);
    desk.event("a", started(0, 1));
    desk.offered();
    desk.handle(TaskInput::CancelJob(JOB, true));
    assert_eq!(desk.states(), [TaskState::Running, TaskState::Offered, TaskState::Canceled]);
    assert_eq!(desk.canceled(), [key(0, 1), key(1, 1)]);
    desk.pass(RESEND_MIN);
    assert_eq!(desk.canceled().len(), 2, "said again until it is answered");
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    desk.event("a", finished(1, 1, Outcome::Canceled));
    assert_eq!(desk.states(), [TaskState::Succeeded, TaskState::Canceled, TaskState::Canceled]);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Canceled);
    assert_eq!(desk.offered(), []);
}

#[test]
fn what_runs_ends_by_itself_if_only_the_queue_is_canceled() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![Step { retries: 9, ..step(&["a"], Some(&["x", "y"])) }]);
    desk.handle(TaskInput::CancelJob(JOB, false));
    assert_eq!(desk.canceled(), []);
    assert_eq!(desk.states(), [TaskState::Offered, TaskState::Canceled]);
    desk.event("a", finished(0, 1, Outcome::Failed));
    assert_eq!(desk.state(0), TaskState::Failed, "and is not tried again");
}

#[test]
fn a_cancel_reaches_a_slave_that_was_away() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], None)]);
    desk.event("a", started(0, 1));
    desk.down("a");
    desk.forget();
    desk.handle(TaskInput::CancelJob(JOB, true));
    assert_eq!(desk.canceled(), []);
    desk.restart();
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", vec![started(0, 1)]);
    assert_eq!(desk.canceled(), [key(0, 1)]);
}

#[test]
fn limits_hold_how_many_run_and_how_many_may_fail() {
    let mut desk = Desk::new();
    desk.ready("a", 5);
    desk.ready("b", 5);
    let inputs = ["1", "2", "3", "4", "5", "6"];
    desk.submit(vec![Step { batch: Some(2), max_failures: Some(2), ..step(&["a", "b"], Some(&inputs)) }]);
    let mut offers = desk.offered();
    assert_eq!(offers.len(), 2);
    for round in 0..2 {
        let (holder, index, attempt) = offers[0].clone();
        desk.event(&holder, finished(index, attempt, Outcome::Failed));
        if round == 0 {
            let next = desk.offered();
            assert_eq!(next.len(), 1, "a place is free");
            offers = next;
        }
    }
    assert_eq!(desk.offered(), [], "two have failed");
    let canceled = desk.states().iter().filter(|state| **state == TaskState::Canceled).count();
    assert_eq!(canceled, 3);
    assert!(desk.tasks.task(id(5)).unwrap().reason.as_deref().unwrap().contains("2 tasks"));
}

#[test]
fn a_step_begins_when_those_before_have_succeeded_and_else_never() {
    let mut desk = Desk::new();
    desk.ready("a", 5);
    let after = |after: u32| Step { after: vec![after], ..step(&["a"], None) };
    desk.submit(vec![step(&["a"], None), after(0), after(1)]);
    assert_eq!(desk.offered(), [("a".to_owned(), 0, 1)]);
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    assert_eq!(desk.offered(), [("a".to_owned(), 1, 1)]);
    desk.event("a", finished(1, 1, Outcome::Failed));
    assert_eq!(desk.states(), [TaskState::Succeeded, TaskState::Failed, TaskState::Canceled]);
    assert!(desk.tasks.job(JOB).unwrap().ended.is_some());
    desk.handle(TaskInput::RetryJob(JOB, true));
    assert_eq!(desk.offered(), [("a".to_owned(), 1, 2)]);
    desk.event("a", finished(1, 2, Outcome::Succeeded));
    assert_eq!(desk.offered(), [("a".to_owned(), 2, 1)], "what came after goes on");
}

#[test]
fn who_is_offline_is_not_waited_for_longer_than_asked() {
    let mut desk = Desk::new();
    desk.ready("a", 0);
    desk.submit(vec![
        Step { wait_ms: Some(0), ..step(&["a", "b"], None) },
        Step { wait_ms: Some(1_000), ..step(&["b", "c"], Some(&["x"])) },
    ]);
    desk.pass(Duration::ZERO);
    assert_eq!(desk.states(), [TaskState::Queued, TaskState::Expired, TaskState::Queued], "who is busy is waited for");
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.state(2), TaskState::Expired);
    desk.down("a");
    assert_eq!(desk.state(0), TaskState::Expired, "its time was over when it went");
}

#[test]
fn a_drained_slave_ends_what_runs_and_gets_nothing() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a"], Some(&["x", "y"]))]);
    desk.event("a", started(0, 1));
    desk.handle(TaskInput::Drain(slave("a"), "repair".to_owned(), Some(Duration::from_secs(60))));
    desk.offered();
    desk.pass(Duration::from_secs(60));
    assert_eq!(desk.canceled(), [key(0, 1)]);
    desk.event("a", finished(0, 1, Outcome::Canceled));
    assert_eq!((desk.offered(), desk.tasks.open_attempts(&slave("a"))), (vec![], 0));
    desk.restart();
    desk.up("a", "s2", 1);
    desk.journal("a", "s2", Vec::new());
    assert_eq!(desk.offered(), [], "also after a restart of the master");
    desk.handle(TaskInput::Undrain(slave("a")));
    assert_eq!(desk.offered(), [("a".to_owned(), 1, 1)]);
}

#[test]
fn a_slave_that_powers_off_has_done_so_when_it_is_gone() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    let mut shutdown = step(&["a"], None);
    shutdown.spec.work = Work::Action { action: Action::Shutdown };
    desk.submit(vec![shutdown]);
    desk.event("a", started(0, 1));
    desk.down("a");
    assert_eq!(desk.state(0), TaskState::Succeeded);
}

#[test]
fn a_removed_slave_takes_its_tasks_along() {
    let mut desk = Desk::new();
    desk.ready("a", 1);
    desk.submit(vec![step(&["a", "b"], None), step(&["a", "b"], Some(&["x"]))]);
    desk.handle(TaskInput::SlaveRemoved(slave("a")));
    assert_eq!(desk.states(), [TaskState::Lost, TaskState::Queued, TaskState::Queued]);
    desk.handle(TaskInput::SlaveRemoved(slave("b")));
    assert_eq!(desk.states(), [TaskState::Lost, TaskState::Canceled, TaskState::Canceled]);
}

#[test]
fn after_a_restart_everything_goes_on_where_it_stood() {
    let mut desk = Desk::new();
    desk.ready("a", 2);
    desk.submit(vec![Step { retries: 1, ..step(&["a"], Some(&["1", "2", "3", "4"])) }]);
    desk.event("a", started(0, 1));
    desk.event("a", finished(1, 1, Outcome::Failed));
    assert_eq!(desk.states(), [TaskState::Running, TaskState::Backoff, TaskState::Offered, TaskState::Queued]);
    desk.forget();
    desk.restart();
    assert_eq!(desk.offered(), []);
    desk.up("a", "s2", 2);
    desk.journal("a", "s2", vec![started(0, 1)]);
    assert_eq!(desk.states(), [TaskState::Running, TaskState::Backoff, TaskState::Queued, TaskState::Offered]);
    desk.pass(master_lease(LEASE) - Duration::from_secs(1));
    assert_eq!(desk.state(0), TaskState::Running, "leases begin anew in full");
    desk.event("a", finished(0, 1, Outcome::Succeeded));
    desk.event("a", finished(3, 1, Outcome::Succeeded));
    desk.event("a", finished(1, 2, Outcome::Succeeded));
    desk.event("a", finished(2, 2, Outcome::Succeeded));
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Succeeded);
}

#[test]
fn a_hundred_thousand_tasks_pass_through() {
    let mut desk = Desk::new();
    let inputs: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    names.iter().for_each(|name| desk.ready(name, 16));
    desk.submit(vec![step(&names, Some(&inputs))]);
    let mut done = 0;
    let mut offers = desk.offered();
    while let Some((holder, index, attempt)) = offers.pop() {
        desk.event(&holder, finished(index, attempt, Outcome::Succeeded));
        offers.extend(desk.offered());
        done += 1;
    }
    assert_eq!(done, 100_000);
    assert_eq!(desk.tasks.job_state(JOB).unwrap().0, JobState::Succeeded);
}

/// The page shows the table as it is; `WRITE_DOCS=1` writes it there.
#[test]
fn the_table_of_transitions_is_on_its_page() {
    let mut table = String::from("| from | when | to |\n|---|---|---|\n");
    for (from, cause, to) in TRANSITIONS {
        let to: Vec<String> = to.iter().map(|state| format!("`{state}`")).collect();
        table.push_str(&format!("| `{from}` | {} | {} |\n", cause.meaning(), to.join(" or ")));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/tasks.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- transitions -->\n", "<!-- end of transitions -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (shown, tail) = rest.split_once(end).unwrap();
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{head}{begin}{table}{end}{tail}")).unwrap();
    } else {
        assert_eq!(shown, table, "docs/tasks.md is not current: WRITE_DOCS=1 cargo test -p rpicluster-core table");
    }
}

#[test]
fn every_way_is_in_the_table_once() {
    for (place, (from, cause, to)) in TRANSITIONS.iter().enumerate() {
        assert!(!TRANSITIONS[..place].iter().any(|(state, why, _)| (state, why) == (from, cause)), "{from} {cause:?}");
        assert!(!to.contains(from));
    }
    let ends: Vec<TaskState> = TaskState::ALL.into_iter().filter(|state| state.has_ended()).collect();
    for end in ends {
        assert!(TRANSITIONS.iter().any(|(_, _, to)| to.contains(&end)), "{end} can be reached");
    }
}
