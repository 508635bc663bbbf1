//! Processes whose output is kept, and which never outlive their test.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit, test_kill_process};

use super::wait::{wait_for, within};
use super::{PATIENCE, wait_until};

/// How many of its last lines a process shows when its test fails.
const SHOWN_LINES_MAX: usize = 60;

/// A running process. Dropped, it is killed together with everything that it started.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
    readers: Vec<JoinHandle<()>>,
}

/// How a process ended, and all that it printed.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Its exit code; `None` after a signal.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
}

struct Line {
    source: Source,
    text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Out,
    Err,
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Finished {
    let name = format!("{command:?}");
    let mut process = Process::start(&name, command);
    process.child.stdin = None;
    process.wait_for_exit()
}

impl Process {
    /// Starts a command. It has a pipe as standard input, which closes at the latest when the test process ends.
    pub(crate) fn start(name: &str, mut command: Command) -> Process {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let lines = Arc::default();
        let readers = vec![
            keep_lines(child.stdout.take().unwrap(), Source::Out, &lines),
            keep_lines(child.stderr.take().unwrap(), Source::Err, &lines),
        ];
        Process { name: name.to_owned(), child, lines, readers }
    }

    /// The same, with each line of its standard output given to `sink` instead of being kept.
    pub(crate) fn start_into(name: &str, mut command: Command, sink: impl FnMut(&str) + Send + 'static) -> Process {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let lines = Arc::default();
        let out = read_lines(child.stdout.take().unwrap(), sink);
        let readers = vec![out, keep_lines(child.stderr.take().unwrap(), Source::Err, &lines)];
        Process { name: name.to_owned(), child, lines, readers }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The memory that it holds now (resident set), in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    }

    /// The lines that it has printed to standard output so far.
    pub(crate) fn out(&self) -> Vec<String> {
        self.printed(Source::Out)
    }

    /// The lines that it has printed to standard error so far.
    pub(crate) fn err(&self) -> Vec<String> {
        self.printed(Source::Err)
    }

    /// Waits for a line of standard output that begins with `prefix`; returns the rest of it.
    pub(crate) fn wait_for_line(&mut self, prefix: &str) -> String {
        wait_for(&format!("{} prints {prefix:?}", self.name), || {
            let ended = self.exit_status();
            let found = self.out().iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
            assert!(ended.is_none() || found.is_some(), "{} ended early ({ended:?})", self.name);
            found
        })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid()), signal).unwrap();
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        wait_until(&format!("{} is killed", self.name), || self.exit_status().is_some());
    }

    /// Its exit status, if it has ended.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended and all that it printed has been read.
    pub(crate) fn wait_for_exit(&mut self) -> Finished {
        within(Instant::now(), 2 * PATIENCE, &format!("{} ends", self.name), || self.exit_status().is_some());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let code = self.exit_status().and_then(|status| status.code());
        let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
        Finished { code, out: text(self.out()), err: text(self.err()) }
    }

    fn printed(&self, source: Source) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.source == source).map(|line| line.text.clone()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut family = descendants(self.pid());
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            family.push(self.pid());
        }
        for process in family {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid(process), Signal::KILL);
        }
        let _ = self.child.wait();
        if thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("--- last lines of {}:", self.name);
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES_MAX)..] {
                eprintln!("{}", line.text);
            }
        }
    }
}

/// Lets this process, and those that it starts later, hold as many sockets as the system allows.
pub(crate) fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(
        maximum.is_none_or(|maximum| maximum >= 4_096),
        "thousands of sockets need more open files: ulimit -Hn 4096"
    );
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Whether a process with this id exists and is no zombie.
pub(crate) fn is_running(process: u32) -> bool {
    test_kill_process(pid(process)).is_ok() && stat(process).is_some_and(|(state, _)| state != 'Z')
}

/// All processes that descend from this one.
pub(crate) fn descendants(ancestor: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = processes.filter_map(|id| Some((id, stat(id)?.1))).collect();
    let mut family = HashSet::from([ancestor]);
    let mut found = Vec::new();
    loop {
        let children = parents.iter().filter(|(id, parent)| family.contains(parent) && !family.contains(id));
        let children: Vec<u32> = children.map(|(id, _)| *id).collect();
        if children.is_empty() {
            return found;
        }
        family.extend(&children);
        found.extend(children);
    }
}

/// State and parent of a process; `None` if it is gone.
fn stat(process: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process.cast_signed()).unwrap()
}

fn keep_lines(stream: impl Read + Send + 'static, source: Source, lines: &Arc<Mutex<Vec<Line>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    read_lines(stream, move |text| {
        let line = Line { source, text: text.to_owned() };
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    })
}

fn read_lines(stream: impl Read + Send + 'static, mut sink: impl FnMut(&str) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut bytes = Vec::new();
        while stream.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            sink(String::from_utf8_lossy(&bytes).trim_end_matches('\n'));
            bytes.clear();
        }
    })
}

/// The same command, which SIGINT ends: who runs the tests in the background may ignore it, and that is inherited.
pub(crate) fn interruptible(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        env.current_dir(folder);
    }
    env
}
