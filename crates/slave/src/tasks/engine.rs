//! The thread of tasks: inputs into the journal, its records onto the disk, its effects into the world.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rpicluster_core::Moment;
use rpicluster_core::journal::{Effect, Input, Journal, Record, Verdict};
use rpicluster_machine::Sampler;
use rpicluster_protocol::{AttemptKey, JournalEntry, Outcome, SessionId, Stream, TaskFinished, TaskOffer, ToSlave};
use serde_json::Value;
use tokio::sync::mpsc;

use super::Spoken;
use super::file::JournalFile;
use super::output::Outputs;
use super::policy::{Admitted, Policy, answer};
use super::runner::{Runner, SupervisorCommand, kill_marked, make_cgroup};
use super::speech::Speech;
use crate::supervisor::spool_path;
use crate::supervisor::wire::{Cause, Ended, Order, Report, Setup};

/// Inputs taken before their records are made durable together.
const BATCH_MAX: usize = 1024;
/// Records that nothing waits for are durable after this, so that an idle slave's journal is short.
const LAZY_WAIT: Duration = Duration::from_secs(5);
/// Wait after the disk or the system has refused something.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// The longest result that fits into a message beside the rest.
const RESULT_BYTES_MAX: u64 = 32 * 1024;
/// Exit code of shells for what cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    Announced,
    Told(ToSlave),
    Report(u64, Report),
    SupervisorGone(u64),
    /// The session is another one, or there is room to speak.
    Look,
    Stop,
}

/// Where things go, and come from.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) inputs: SyncSender<Message>,
    pub(crate) session: Arc<Mutex<Option<SessionId>>>,
    pub(crate) outgoing: mpsc::Sender<Spoken>,
    pub(crate) waits_for_room: Arc<AtomicBool>,
    pub(crate) supervisor: SupervisorCommand,
    pub(crate) setup: Setup,
    pub(crate) spool: PathBuf,
}

pub(crate) struct Engine {
    journal: Journal,
    file: JournalFile,
    policy: Policy,
    ways: Ways,
    runner: Option<Runner>,
    generation: u64,
    outputs: Outputs,
    speech: Speech,
    session: Option<SessionId>,
    unwritten: Vec<Record>,
    lazy_at: Option<Moment>,
    /// The disk has refused, and is asked again then.
    disk_retry_at: Option<Moment>,
    /// There is no supervisor, and something that was to begin depends on one.
    runner_missing: bool,
    /// Whose standard output is a result.
    answering: HashSet<AttemptKey>,
    /// Those that have ended and left nothing in the spool.
    mute: HashSet<AttemptKey>,
    sampler: Sampler,
}

fn now() -> Moment {
    rpicluster_machine::boottime().into()
}

impl Engine {
    pub(crate) fn new(journal: Journal, file: JournalFile, policy: Policy, ways: Ways) -> Engine {
        let mut outputs = Outputs::new(ways.spool.clone());
        for entry in journal.held_entries() {
            if let JournalEntry::Finished(finished) = entry {
                outputs.grow(finished.key, [finished.stdout, finished.stderr], true);
            }
        }
        Engine {
            speech: Speech::new(file.id()),
            journal,
            file,
            policy,
            ways,
            runner: None,
            generation: 0,
            outputs,
            session: None,
            unwritten: Vec::new(),
            lazy_at: None,
            disk_retry_at: None,
            runner_missing: false,
            answering: HashSet::new(),
            mute: HashSet::new(),
            sampler: Sampler::default(),
        }
    }

    /// Starts the supervisor when it is needed: a slave that runs nothing has none.
    fn start_runner(&mut self) -> io::Result<()> {
        self.generation += 1;
        let setup = self.ways.setup.clone();
        let cgroup = setup.cgroup.filter(|cgroup| make_cgroup(cgroup));
        let setup = Setup { spool_used: spool_used(&self.ways.spool), cgroup, ..setup };
        let inputs = self.ways.inputs.clone();
        self.runner = Some(Runner::start(&self.ways.supervisor, setup, self.generation, inputs)?);
        Ok(())
    }

    pub(crate) fn run(mut self, inputs: &Receiver<Message>) {
        self.settle(now());
        loop {
            let now_ = now();
            let wait = self.poll_timeout(now_).map_or(Duration::MAX, |at| at.since(now_));
            let mut next = match inputs.recv_timeout(wait.min(Duration::from_secs(3600))) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = now();
            let mut effects = Vec::new();
            for _ in 0..BATCH_MAX {
                match next.take() {
                    Some(Message::Stop) => return,
                    Some(message) => self.handle(now, message, &mut effects),
                    None => break,
                }
                next = inputs.try_recv().ok();
            }
            if let Some(last) = next {
                if matches!(last, Message::Stop) {
                    return;
                }
                self.handle(now, last, &mut effects);
            }
            self.handle_timeout(now, &mut effects);
            self.apply(now, effects);
            self.settle(now);
            if std::mem::take(&mut self.runner_missing) {
                let mut effects = Vec::new();
                self.handle_runner_gone(now, &mut effects);
                self.apply(now, effects);
                self.settle(now);
            }
            self.speak(now);
        }
    }

    /// When to wake up if nothing comes: never for what could not be done then, or it would wake at once for ever.
    fn poll_timeout(&mut self, now: Moment) -> Option<Moment> {
        let due = self.lazy_at.into_iter().chain(self.journal.sync_due()).min();
        let disk = self.disk_retry_at.or(due);
        let may_repeat = self.session.is_some() && self.speech.is_empty();
        let repeats = [self.speech.poll_timeout(), self.outputs.poll_timeout(), self.journal.poll_timeout()];
        let held = self.speech.held_until(&self.journal).filter(|until| self.session.is_some() && *until > now);
        disk.into_iter().chain(held).chain(repeats.into_iter().flatten().filter(|_| may_repeat)).min()
    }

    fn look_at_session(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let session = self.ways.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if session != self.session {
            self.session = session.clone();
            self.speech.clear();
            let input = session.map_or(Input::SessionEnded, Input::SessionBegan);
            self.journal.handle(now, input, effects);
        }
    }

    fn handle(&mut self, now: Moment, message: Message, effects: &mut Vec<Effect>) {
        // First, because an offer may be of a session that has begun just now.
        self.look_at_session(now, effects);
        match message {
            Message::Announced => self.journal.handle(now, Input::Announced, effects),
            Message::Told(told) => self.handle_told(now, told, effects),
            Message::Report(generation, report) if generation == self.generation => {
                self.handle_report(now, report, effects);
            }
            Message::SupervisorGone(generation) if generation == self.generation => {
                self.handle_runner_gone(now, effects);
            }
            Message::Report(..) | Message::SupervisorGone(_) | Message::Look | Message::Stop => {}
        }
    }

    fn handle_told(&mut self, now: Moment, told: ToSlave, effects: &mut Vec<Effect>) {
        match told {
            ToSlave::TaskOffer(offers) => {
                for offer in offers {
                    let verdict = self.judge(&offer);
                    self.journal.handle(now, Input::Offer { offer: Box::new(offer), verdict }, effects);
                }
            }
            ToSlave::TaskCancel(cancels) => {
                for cancel in cancels {
                    self.journal.handle(now, Input::Cancel(cancel), effects);
                }
            }
            ToSlave::TaskAck(acks) => {
                for ack in acks {
                    self.outputs.acked(&ack);
                    self.journal.handle(now, Input::Ack(ack), effects);
                }
            }
            ToSlave::LeaseAck(lease) => self.journal.handle(now, Input::LeaseAck(lease), effects),
            _ => {}
        }
    }

    fn judge(&mut self, offer: &TaskOffer) -> Verdict {
        match self.policy.admit(&offer.spec) {
            Ok(Admitted::Process) => Verdict::Run,
            Ok(Admitted::Alone) => Verdict::RunAlone,
            Ok(Admitted::Answer(action)) => {
                let sampler = &mut self.sampler;
                let details = || serde_json::to_value(sampler.details()).unwrap_or_default();
                Verdict::Answer(answer(action, details, unix_ms()))
            }
            Err(refused) => Verdict::Reject { reason: refused.reason, detail: refused.detail },
        }
    }

    fn handle_report(&mut self, now: Moment, report: Report, effects: &mut Vec<Effect>) {
        match report {
            Report::Output { key, .. } if self.answering.contains(&key) => {}
            Report::Output { key, stdout, stderr } => self.outputs.grow(key, [stdout, stderr], false),
            Report::Ended(ended) => {
                if [ended.stdout, ended.stderr] == [0, 0] {
                    self.mute.insert(ended.key);
                }
                let finished = self.finished(*ended);
                self.outputs.grow(finished.key, [finished.stdout, finished.stderr], true);
                self.journal.handle(now, Input::Exited(Box::new(finished)), effects);
            }
        }
    }

    fn finished(&mut self, ended: Ended) -> TaskFinished {
        let (mut outcome, mut reason) = match ended.cause {
            Some(Cause::Canceled) => (Outcome::Canceled, None),
            Some(Cause::TimedOut) => (Outcome::TimedOut, None),
            Some(Cause::LeaseOver) => (Outcome::Lost, Some("lease over")),
            Some(Cause::AgentGone) => (Outcome::Lost, Some("it could not be watched")),
            None if ended.exit_code == Some(0) => (Outcome::Succeeded, None),
            None => (Outcome::Failed, None),
        };
        let mut result = ended.result;
        let mut stdout = ended.stdout;
        if self.answering.remove(&ended.key) && outcome == Outcome::Succeeded {
            match self.read_result(&ended.key, stdout) {
                // It is told as the result, so not as output too.
                Some(value) => (result, stdout) = (Some(value), 0),
                None => {
                    outcome = Outcome::Failed;
                    reason = Some("what it wrote is no JSON, or longer than 32 KiB");
                }
            }
        }
        TaskFinished {
            key: ended.key,
            seq: 0,
            outcome,
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: ended.problem.or(reason.map(str::to_owned)),
            duration_ms: ended.duration_ms,
            stdout,
            stderr: ended.stderr,
            truncated: ended.truncated,
            cpu_ms: ended.cpu_ms,
            memory_peak: ended.memory_peak,
            result,
        }
    }

    fn read_result(&self, key: &AttemptKey, length: u64) -> Option<Value> {
        if length == 0 {
            return Some(Value::Null);
        }
        let bytes = fs::read(spool_path(&self.ways.spool, key, Stream::Stdout)).ok();
        bytes.filter(|_| length <= RESULT_BYTES_MAX).and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }

    fn handle_runner_gone(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if let Some(runner) = self.runner.take() {
            tracing::error!("the supervisor of tasks is gone: what it ran is killed");
            runner.bury();
        }
        kill_marked(&self.policy.mark, self.ways.setup.cgroup.as_deref());
        self.journal.handle(now, Input::RunnerGone { reason: "supervisor crashed".to_owned() }, effects);
    }

    fn handle_timeout(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.speech.handle_timeout(now);
        // While words wait to be sent, saying them again would only add to them.
        if self.session.is_some() && self.speech.is_empty() {
            self.outputs.handle_timeout(now);
            self.journal.handle_timeout(now, effects);
        }
    }

    fn apply(&mut self, now: Moment, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Record(record) => {
                    self.unwritten.push(record);
                    self.lazy_at.get_or_insert(now + LAZY_WAIT);
                }
                Effect::Spawn { offer, lease_end } => self.spawn(now, *offer, lease_end),
                Effect::Extend { key, lease_end } => self.order(&Order::Extend(key, lease_end.as_millis())),
                Effect::Kill { key } => self.order(&Order::Kill(key)),
                Effect::Forget { key } => {
                    self.outputs.forget(&key);
                    if !self.mute.remove(&key) {
                        self.order(&Order::Forget(key));
                    }
                }
                Effect::Tell(entry) => self.speech.tell(now, entry),
                Effect::TellJournal => {
                    self.speech.tell_journal();
                    self.outputs.restart();
                }
                Effect::Renew(lease) => self.speech.renew(lease),
            }
        }
    }

    fn spawn(&mut self, now: Moment, offer: TaskOffer, lease_end: Moment) {
        let key = offer.key;
        match self.policy.order(offer, lease_end.as_millis()) {
            Ok(order) => {
                if matches!(&order, Order::Start(start) if start.answers) {
                    self.answering.insert(key);
                }
                self.order(&order);
            }
            Err(problem) => {
                let failed = TaskFinished {
                    exit_code: Some(NOT_EXECUTABLE),
                    reason: Some(problem),
                    ..TaskFinished::new(key, 0, Outcome::Failed)
                };
                let mut effects = Vec::new();
                self.journal.handle(now, Input::Exited(Box::new(failed)), &mut effects);
                self.apply(now, effects);
            }
        }
    }

    fn order(&mut self, order: &Order) {
        if self.runner.is_none() {
            match order {
                Order::Start(_) | Order::Call(_) => {
                    if let Err(error) = self.start_runner() {
                        tracing::error!(%error, "the supervisor of tasks cannot be started");
                        self.runner_missing = true;
                        return;
                    }
                }
                // Output of an earlier life.
                Order::Forget(key) => {
                    for stream in [Stream::Stdout, Stream::Stderr] {
                        // There may be none, and what stays is found at the next start.
                        let _ = fs::remove_file(spool_path(&self.ways.spool, key, stream));
                    }
                    return;
                }
                // It runs nothing.
                Order::Begin(_) | Order::Extend(..) | Order::Kill(_) => return,
            }
        }
        if let Some(runner) = &mut self.runner
            && let Err(error) = runner.order(order)
        {
            // That it is gone is told by its reader, and ends whatever was ordered.
            tracing::debug!(%error, "the supervisor of tasks takes no orders");
        }
    }

    /// Makes durable what waits for it, and does what comes of that, until nothing waits. What else is told afterwards is
    /// at least written.
    fn settle(&mut self, now: Moment) {
        if self.disk_retry_at.is_some_and(|at| at > now) {
            return;
        }
        let mut is_due = self.lazy_at.is_some_and(|at| at <= now) || self.disk_retry_at.is_some();
        while is_due || self.journal.sync_due().is_some_and(|at| at <= now) {
            is_due = false;
            if !self.write(now, true) {
                return;
            }
            if self.disk_retry_at.take().is_some() {
                tracing::info!("the journal of tasks can be written again");
            }
            self.lazy_at = None;
            let mut effects = Vec::new();
            let records = self.journal.recorded();
            // It may have taken long, and leases go on meanwhile.
            let now = self::now();
            self.journal.handle(now, Input::Synced { records }, &mut effects);
            self.apply(now, effects);
        }
        if self.unwritten.iter().any(|record| matches!(record, Record::Entry { .. })) {
            self.write(now, false);
        }
    }

    /// Writes what is unwritten; whether that could be done.
    fn write(&mut self, now: Moment, durable: bool) -> bool {
        let journal = &self.journal;
        let written = self.file.commit(&self.unwritten, durable, || journal.records());
        // If it fails, all is in memory, and the next file is written from there.
        self.unwritten.clear();
        let Err(error) = written else { return true };
        if self.disk_retry_at.is_none() {
            tracing::error!(%error, "the journal of tasks cannot be written: no task begins until it can");
        }
        self.lazy_at = None;
        self.disk_retry_at = Some(now + RETRY_WAIT);
        false
    }

    /// Hands over what there is to say, as far as there is room.
    fn speak(&mut self, now: Moment) {
        let Some(session) = self.session.clone() else { return };
        loop {
            let permit = match self.ways.outgoing.try_reserve() {
                Ok(permit) => permit,
                Err(_) => {
                    self.ways.waits_for_room.store(true, Ordering::Release);
                    // Room may have come in between, and nobody would tell.
                    match self.ways.outgoing.try_reserve() {
                        Ok(permit) => permit,
                        Err(_) => return,
                    }
                }
            };
            let Some((leaf, payload)) = self.speech.next(now, &session, &self.journal, &mut self.outputs) else {
                return;
            };
            permit.send(Spoken { session: session.clone(), leaf, payload });
        }
    }
}

/// Bytes that wait in a folder.
fn spool_used(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
