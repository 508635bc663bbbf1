//! The supervisor: the one process that starts, watches and kills what an agent runs.
//!
//! One for each agent, started with its first task, not one for each attempt: an attempt then costs no process beside its own, and a
//! Raspberry Pi with a hundred slots has one supervisor. It is separate from the agent so that something is left when
//! the agent is killed: the end of their socket ends every attempt (SIGTERM, the grace, SIGKILL). It holds the deadlines
//! of leases, reaps the orphans of every attempt, and reads all output into files, so that no process ever waits for
//! agent or network. If it is killed itself, the agent kills what bears its marks, and starts another; if both are, the next
//! agent does. Children are spawned without copying this process (posix_spawn), which has one thread and little memory.
//!
//! There is one cgroup for all attempts of an agent, where one can be made, not one for each: moving a process into
//! another cgroup waits for all processors (8 ms were measured), and a child can only be moved after it has begun.

mod act_as;
mod call;
mod folders;
mod process;
mod spool;
pub(crate) mod tree;
pub(crate) mod wire;
mod worker;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_protocol::AttemptKey;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, Signal, getpid, kill_process_group, set_child_subreaper, setsid};
use rustix::thread::clear_ambient_capability_set;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use self::folders::Folders;
use self::process::{Ending, Process};
use self::spool::{READ_BYTES, Spool};
use self::wire::{Cause, Ended, Frames, Order, Report, Start, name, push_frame};
use self::worker::Pool;

pub(crate) use act_as::{becoming, enabling, is_able};
pub(crate) use spool::spool_path;

/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// Reports of output wait for room when so much waits for the agent; ends never do, and they are as many as attempts.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// How often a tree that is being ended is looked at: first, and at most.
const CHECK_MIN: Duration = Duration::from_millis(5);
const CHECK_MAX: Duration = Duration::from_millis(200);
/// Processes that SIGKILL does not end within this wait for a device, and are reported.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(10);
/// When an attempt is over, what it left behind unseen is looked for after this.
const SWEEP_WAIT: Duration = Duration::from_secs(1);

/// What an event is of: the number of an attempt, and the kind.
const KINDS: u64 = 4;
const PIDFD: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const STDIN: u64 = 3;
/// The numbers below this are not of attempts.
const FIRST_ATTEMPT: u64 = 2;
const AGENT: u64 = 0;
const TIMER: u64 = KINDS;

/// Why the supervisor cannot work, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// It was started by something else than an agent.
    #[error("this is started by `rpicluster slave` alone: {0}")]
    NotForPeople(String),
    /// The system refuses something without which nothing can be watched.
    #[error("the supervisor of tasks cannot {action}: {cause}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system says.
        cause: io::Error,
    },
}

/// Runs the supervisor of an agent, which has the other end of standard input, until the agent is gone and nothing runs;
/// or, given the arguments of `becoming`, turns this process into a task's under another user.
///
/// # Errors
/// If it was not started by an agent, or the system refuses.
pub fn supervise(arguments: &[std::ffi::OsString]) -> Result<(), SuperviseError> {
    if !arguments.is_empty() {
        return act_as::run(arguments);
    }
    let failed = |action| move |cause: io::Error| SuperviseError::System { action, cause };
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed("duplicate standard input"))?;
    if rustix::net::sockopt::socket_type(&socket).is_err() {
        return Err(SuperviseError::NotForPeople("standard input is no socket".to_owned()));
    }
    // A leader of its group already if a shell started it; then it keeps its terminal.
    let _ = setsid();
    // What lets the agent's service become other users is not for its tasks. A kernel that refuses has no such thing.
    let _ = clear_ambient_capability_set();
    set_child_subreaper(Some(getpid())).map_err(io::Error::from).map_err(failed("adopt orphans"))?;
    Supervisor::new(UnixStream::from(socket)).and_then(Supervisor::run).map_err(failed("watch processes"))
}

struct Supervisor {
    socket: UnixStream,
    epoll: OwnedFd,
    timer: OwnedFd,
    frames: Frames,
    unsent: Vec<u8>,
    grace: Duration,
    folders: Folders,
    spool: Spool,
    /// The agent's mark.
    agent: String,
    cgroup: Option<PathBuf>,
    processes: HashMap<u64, Process>,
    numbers: HashMap<AttemptKey, u64>,
    pools: HashMap<String, Pool>,
    next_number: u64,
    buffer: Vec<u8>,
    agent_gone: bool,
    sweep_at: Option<Moment>,
}

fn now() -> Moment {
    rpicluster_machine::boottime().into()
}

impl Supervisor {
    fn new(socket: UnixStream) -> io::Result<Supervisor> {
        socket.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Counts suspend, as leases do.
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &socket, EventData::new_u64(AGENT), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Supervisor {
            socket,
            epoll,
            timer,
            frames: Frames::default(),
            unsent: Vec::new(),
            grace: rpicluster_protocol::limits::KILL_GRACE,
            folders: Folders::default(),
            spool: Spool::new(PathBuf::new(), 0),
            agent: String::new(),
            cgroup: None,
            processes: HashMap::new(),
            numbers: HashMap::new(),
            pools: HashMap::new(),
            next_number: FIRST_ATTEMPT,
            buffer: vec![0; READ_BYTES],
            agent_gone: false,
            sweep_at: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.set_timer()?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let events: Vec<u64> = events.iter().map(|event: &epoll::Event| event.data.u64()).collect();
            for event in &events {
                self.handle_event(*event);
            }
            self.judge(now());
            self.tell_output();
            self.flush();
            if self.agent_gone && self.processes.is_empty() {
                self.kill_strays(&[]);
                self.leave_cgroup();
                return Ok(());
            }
        }
    }

    /// Nothing but this is in it; what cannot be removed is used again by the agent's next life.
    fn leave_cgroup(&self) {
        if let Some(cgroup) = &self.cgroup
            && let Some(parent) = cgroup.parent()
        {
            let _ = fs::write(parent.join("cgroup.procs"), "0").and_then(|()| fs::remove_dir(cgroup));
        }
    }

    fn handle_event(&mut self, event: u64) {
        let (number, kind) = (event / KINDS, event % KINDS);
        match event {
            AGENT => return self.hear_agent(),
            TIMER => {
                // How often it has rung does not matter.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                return;
            }
            _ => {}
        }
        let Some(process) = self.processes.get_mut(&number) else { return };
        match kind {
            PIDFD => {
                // Level-triggered: it would go on telling.
                let _ = epoll::delete(&self.epoll, &process.pidfd);
                process.exited = Some(now());
                self.tend(number, now());
            }
            STDOUT => {
                if process.worker.is_some() {
                    return self.hear_worker(number);
                }
                let [spooled, _] = &mut process.spooled;
                let goes_on =
                    process.stdout.as_mut().is_some_and(|pipe| self.spool.fill(spooled, pipe, &mut self.buffer));
                if !goes_on {
                    process.stdout = None;
                }
                process.is_dirty = true;
            }
            STDERR => {
                let [_, spooled] = &mut process.spooled;
                let goes_on =
                    process.stderr.as_mut().is_some_and(|pipe| self.spool.fill(spooled, pipe, &mut self.buffer));
                if !goes_on {
                    process.stderr = None;
                }
                process.is_dirty = true;
            }
            _ => feed(process),
        }
    }

    fn hear_agent(&mut self) {
        match self.socket.read(&mut self.buffer) {
            Ok(0) => self.lose_agent(),
            Ok(length) => {
                self.frames.extend(&self.buffer[..length]);
                loop {
                    match self.frames.next() {
                        Ok(Some(order)) => self.obey(order),
                        Ok(None) => break,
                        Err(_) => return self.lose_agent(),
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.lose_agent(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Begin(setup) => {
                if let Some(cgroup) = &setup.cgroup {
                    // Without it there are the marks.
                    let _ = fs::write(cgroup.join("cgroup.procs"), "0");
                }
                self.cgroup = setup.cgroup;
                self.spool = Spool::new(setup.spool, setup.spool_max.saturating_sub(setup.spool_used));
                self.grace = Duration::from_millis(setup.grace_ms);
                self.agent = setup.agent;
            }
            Order::Start(start) => self.start(*start),
            Order::Call(call) => self.call(*call),
            Order::Extend(key, lease_end_ms) => {
                if let Some(process) = self.numbers.get(&key).and_then(|number| self.processes.get_mut(number)) {
                    process.bounds.lease_end_ms = lease_end_ms;
                } else if let Some(call) = self.waiting_call(&key) {
                    call.bounds.lease_end_ms = lease_end_ms;
                }
            }
            Order::Kill(key) => match self.numbers.get(&key).copied() {
                Some(number) => self.end(number, Cause::Canceled, now()),
                None => self.drop_call(&key, Cause::Canceled),
            },
            Order::Forget(key) => self.spool.forget(&key),
        }
    }

    fn start(&mut self, start: Start) {
        let bounds = start.bounds.clone();
        match Process::start(start, name(&bounds.key), &mut self.folders, &self.spool, now()) {
            Ok(process) => {
                let number = self.watch(process);
                self.numbers.insert(bounds.key, number);
            }
            Err(not_begun) => self.report_end(not_begun.ended(&bounds)),
        }
    }

    /// Takes a process among those that are watched.
    fn watch(&mut self, process: Process) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let watch = |source: BorrowedFd<'_>, kind, flags| {
            epoll::add(&self.epoll, source, EventData::new_u64(number * KINDS + kind), flags)
        };
        let mut watched = watch(process.pidfd.as_fd(), PIDFD, EventFlags::IN);
        let outputs =
            [(process.stdout.as_ref().map(AsFd::as_fd), STDOUT), (process.stderr.as_ref().map(AsFd::as_fd), STDERR)];
        for (pipe, kind) in outputs {
            watched = watched.and(pipe.map_or(Ok(()), |pipe| watch(pipe, kind, EventFlags::IN)));
        }
        if let Some((pipe, _)) = &process.stdin {
            // Told once when there is room, not for as long as there is.
            watched = watched.and(watch(pipe.as_fd(), STDIN, EventFlags::OUT | EventFlags::ET));
        }
        self.processes.insert(number, process);
        if watched.is_err() {
            // What cannot be watched may not run.
            self.end(number, Cause::AgentGone, now());
        }
        number
    }

    /// What is due.
    fn judge(&mut self, now: Moment) {
        let due = |process: &Process| process.deadline() <= now;
        let due: Vec<u64> =
            self.processes.iter().filter(|(_, process)| due(process)).map(|(number, _)| *number).collect();
        for number in due {
            match self.processes.get(&number) {
                Some(process) if process.ending.is_some() => self.tend(number, now),
                Some(process) if process.lease_end() <= now => self.end(number, Cause::LeaseOver, now),
                Some(_) => self.end(number, Cause::TimedOut, now),
                None => {}
            }
        }
        self.judge_calls(now);
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            let marks: Vec<String> = self.processes.values().map(|process| process.mark.clone()).collect();
            self.kill_strays(&marks);
        }
    }

    /// Begins to end an attempt.
    fn end(&mut self, number: u64, cause: Cause, now: Moment) {
        let grace = self.grace;
        let Some(process) = self.processes.get_mut(&number) else { return };
        if process.ending.is_some() || process.exited.is_some() {
            return;
        }
        process.ending =
            Some(Ending { cause: Some(cause), kill_at: now + grace, check_at: now, check_wait: CHECK_MIN });
        ask_to_end(&self.agent, process);
    }

    /// Looks whether anything is left of an attempt, and does what is next.
    fn tend(&mut self, number: u64, now: Moment) {
        let Some(process) = self.processes.get_mut(&number) else { return };
        let first = process.pid;
        if process.exited.is_some() && !has_heirs(&self.processes) {
            return self.finish(number, now, &[]);
        }
        let Some(process) = self.processes.get_mut(&number) else { return };
        let left = tree::of_attempt(&self.agent, &process.mark, first);
        if process.exited.is_some() && left.is_empty() {
            return self.finish(number, now, &[]);
        }
        let is_new = process.ending.is_none();
        let ending = process.ending.get_or_insert(Ending {
            cause: None,
            kill_at: now + self.grace,
            check_at: now,
            check_wait: CHECK_MIN,
        });
        ending.check_wait = (ending.check_wait * 2).min(CHECK_MAX);
        ending.check_at = now + ending.check_wait;
        if now >= ending.kill_at {
            tree::signal(&left, Signal::KILL);
            if now >= ending.kill_at + UNKILLABLE_AFTER {
                let left: Vec<i32> = left.iter().map(|member| member.pid).collect();
                self.finish(number, now, &left);
            }
        } else {
            // Looked at once more before the grace is over, so that it is over then.
            ending.check_at = ending.check_at.min(ending.kill_at);
            if is_new {
                ask_to_end(&self.agent, process);
            }
        }
    }

    fn finish(&mut self, number: u64, now: Moment, left_behind: &[i32]) {
        let Some(mut process) = self.processes.remove(&number) else { return };
        self.sweep_at.get_or_insert(now + SWEEP_WAIT);
        let worker = process.worker.take();
        if worker.as_ref().is_none_or(|worker| worker.is_busy) {
            self.numbers.remove(&process.bounds.key);
            let mut ended = process.finish(&mut self.folders, &mut self.spool, &mut self.buffer, now, left_behind);
            if worker.is_some() && ended.cause.is_none() {
                // Whatever its code, it has not answered.
                let how = ended.exit_code.map_or("killed".to_owned(), |code| format!("exit code {code}"));
                ended.exit_code = ended.exit_code.filter(|code| *code != 0);
                ended.problem = Some(format!("the function's process ended without an answer ({how})"));
            }
            self.report_end(ended);
        } else {
            process.finish(&mut self.folders, &mut self.spool, &mut self.buffer, now, left_behind);
        }
        if let Some(worker) = worker {
            self.hand_on(&worker.function);
        }
    }

    fn report_end(&mut self, ended: Ended) {
        push_end(&mut self.unsent, self.agent_gone, ended);
    }

    fn tell_output(&mut self) {
        for process in self.processes.values_mut().filter(|process| process.is_dirty) {
            if self.agent_gone || self.unsent.len() >= UNSENT_BYTES_MAX {
                return;
            }
            process.is_dirty = false;
            let [stdout, stderr] = [&process.spooled[0], &process.spooled[1]].map(|stream| stream.kept);
            let _ = push_frame(&mut self.unsent, &Report::Output { key: process.bounds.key, stdout, stderr });
        }
    }

    /// Sends what the agent takes now.
    fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.agent_gone {
            match self.socket.write(&self.unsent) {
                Ok(length) => {
                    self.unsent.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.lose_agent(),
            }
        }
        let wanted = if self.unsent.is_empty() { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        if !self.agent_gone {
            let _ = epoll::modify(&self.epoll, &self.socket, EventData::new_u64(AGENT), wanted);
        }
    }

    fn lose_agent(&mut self) {
        if self.agent_gone {
            return;
        }
        self.agent_gone = true;
        self.unsent = Vec::new();
        self.pools.clear();
        let _ = epoll::delete(&self.epoll, &self.socket);
        for number in self.processes.keys().copied().collect::<Vec<_>>() {
            self.end(number, Cause::AgentGone, now());
        }
    }

    /// Kills what descends from attempts that are over and was not seen then.
    fn kill_strays(&self, running: &[String]) {
        let firsts: Vec<i32> = self.processes.values().map(|process| process.pid).collect();
        for pid in tree::children().into_iter().filter(|pid| !firsts.contains(pid)) {
            if tree::reap(pid) {
                continue;
            }
            let mark = tree::attempt_of(pid);
            let is_stray = mark.map_or(running.is_empty(), |mark| !running.contains(&mark));
            if is_stray {
                tree::signal(&tree::of_process(pid), Signal::KILL);
                tree::reap(pid);
            }
        }
    }

    fn set_timer(&self) -> io::Result<()> {
        let deadlines = self.processes.values().map(Process::deadline);
        let calls = self.pools.values().flat_map(|pool| &pool.waiting);
        let leases = calls.map(|call| Moment::from_millis(call.bounds.lease_end_ms));
        let due = deadlines.chain(leases).chain(self.sweep_at).min().unwrap_or(Moment::NEVER);
        let millis = if due == Moment::NEVER { 0 } else { i64::try_from(due.as_millis()).unwrap_or(0) };
        let it_value = Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

fn push_end(unsent: &mut Vec<u8>, agent_gone: bool, ended: Ended) {
    if !agent_gone {
        // It cannot be too long: a result was bounded when it was read.
        let _ = push_frame(unsent, &Report::Ended(Box::new(ended)));
    }
}

/// Whether this process has adopted anybody: living descendants of an attempt whose first process has ended always have
/// a parent that is its child. Costs one read where all attempts leave nothing behind.
fn has_heirs(processes: &HashMap<u64, Process>) -> bool {
    let children = tree::children();
    // Nobody in the table has been taken leave of, so each is among the children.
    if children.len() <= processes.len() {
        return false;
    }
    let firsts: HashSet<i32> = processes.values().map(|process| process.pid).collect();
    children.into_iter().filter(|pid| !firsts.contains(pid)).fold(false, |any, pid| !tree::reap(pid) | any)
}

/// SIGTERM to its group at once, then to all others that belong to it.
fn ask_to_end(agent: &str, process: &Process) {
    if let Some(group) = Pid::from_raw(process.pid) {
        // The group is still its own: its first process has not been taken leave of.
        let _ = kill_process_group(group, Signal::TERM);
    }
    let others = tree::of_attempt(agent, &process.mark, process.pid);
    let others: Vec<tree::Member> = others.into_iter().filter(|member| !member.is_in_group(process.pid)).collect();
    tree::signal(&others, Signal::TERM);
}

/// Writes what the pipe takes. A worker's stays open; another's is closed when all is written, or nobody reads.
fn feed(process: &mut Process) {
    let Some((pipe, bytes)) = &mut process.stdin else { return };
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(length) => {
                bytes.drain(..length);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => break,
        }
    }
    if process.worker.is_none() {
        process.stdin = None;
    }
}
