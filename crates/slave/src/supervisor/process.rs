//! One attempt as a process: how it begins, and what is left to do when it has ended.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rpicluster_core::Moment;
use rpicluster_protocol::Stream;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use wait4::Wait4;

use super::folders::{Folders, OwnFolder};
use super::spool::{Spool, Spooled};
use super::wire::{Bounds, Call, Cause, Ended, Program, Start};
use super::worker::{Worker, question};

/// Exit codes of shells: no such command, and one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// A process that was started and not yet taken leave of.
pub(crate) struct Process {
    pub(crate) bounds: Bounds,
    /// Its name in files and marks.
    pub(crate) mark: String,
    pub(crate) pid: i32,
    child: Child,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdin: Option<(ChildStdin, Vec<u8>)>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
    pub(crate) spooled: [Spooled; 2],
    /// The agent has not been told how much output there is.
    pub(crate) is_dirty: bool,
    own_folder: Option<OwnFolder>,
    began: Moment,
    /// When its first process ended.
    pub(crate) exited: Option<Moment>,
    pub(crate) ending: Option<Ending>,
    /// It serves a function, and `bounds` are those of its task, if it is busy.
    pub(crate) worker: Option<Worker>,
}

/// An attempt that is being ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    /// `None` if it has ended itself, and something that it left behind has not.
    pub(crate) cause: Option<Cause>,
    /// From when on it is killed without asking.
    pub(crate) kill_at: Moment,
    /// When it is looked at next, and how long after that.
    pub(crate) check_at: Moment,
    pub(crate) check_wait: Duration,
}

/// Why an attempt did not begin.
pub(crate) struct NotBegun {
    code: i32,
    problem: String,
}

impl NotBegun {
    fn new(code: i32, problem: String) -> NotBegun {
        NotBegun { code, problem }
    }

    pub(crate) fn ended(self, bounds: &Bounds) -> Ended {
        Ended { exit_code: Some(self.code), problem: Some(self.problem), ..nothing(bounds) }
    }
}

/// An end of which no more is known.
pub(crate) fn nothing(bounds: &Bounds) -> Ended {
    Ended {
        key: bounds.key,
        cause: None,
        exit_code: None,
        signal: None,
        problem: None,
        duration_ms: 0,
        stdout: 0,
        stderr: 0,
        truncated: false,
        cpu_ms: None,
        memory_peak: None,
        result: None,
    }
}

impl Process {
    /// Starts what is known by `mark`.
    pub(crate) fn start(
        start: Start,
        mark: String,
        folders: &mut Folders,
        spool: &Spool,
        now: Moment,
    ) -> Result<Process, NotBegun> {
        let Start { bounds, program, stdin, script, after_script, .. } = start;
        let needs_folder = program.cwd.is_none() || script.is_some();
        let own_folder = needs_folder.then(|| folders.take(&program.folder, &mark, program.user.as_ref())).transpose();
        let own_folder = own_folder.map_err(|error| {
            NotBegun::new(NOT_EXECUTABLE, format!("cannot make a folder in {}: {error}", program.folder.display()))
        })?;
        let begun = (|| {
            let mut arguments = program.argv[1..].to_vec();
            if let (Some(script), Some(folder)) = (&script, &own_folder) {
                arguments.push(own_script(folder, script)?);
                arguments.extend(after_script);
            }
            let own = own_folder.as_ref().map_or(&program.folder, |folder| &folder.path);
            let cwd = program.cwd.as_deref().map_or_else(|| Ok(own.clone()), checked_cwd)?;
            let mut child = spawn(&program, &arguments, &cwd, stdin.is_some())?;
            let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
            let pidfd = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process without a number"));
            let pidfd = pidfd.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?));
            match pidfd {
                Ok(pidfd) => Ok((child, pid, pidfd)),
                Err(error) => {
                    // Unheard of, and nothing that could not be watched may run.
                    let _ = child.kill();
                    let _ = child.wait();
                    Err(NotBegun::new(NOT_EXECUTABLE, format!("cannot watch the process: {error}")))
                }
            }
        })();
        let (mut child, pid, pidfd) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                own_folder.into_iter().for_each(|folder| folders.take_back(folder, true));
                return Err(error);
            }
        };
        let spooled = [Stream::Stdout, Stream::Stderr];
        let spooled = spooled.map(|stream| spool.stream(&bounds.key, stream, bounds.output_limit));
        Ok(Process {
            mark,
            pid,
            pidfd,
            stdin: child.stdin.take().zip(stdin.map(String::into_bytes)),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            spooled,
            is_dirty: false,
            own_folder,
            began: now,
            exited: None,
            ending: None,
            worker: None,
            bounds,
        })
    }

    /// Gives a worker its next task.
    pub(crate) fn take_up(&mut self, call: &Call, spool: &Spool, now: Moment) {
        let streams = [Stream::Stdout, Stream::Stderr];
        self.spooled = streams.map(|stream| spool.stream(&call.bounds.key, stream, call.bounds.output_limit));
        self.bounds = call.bounds.clone();
        self.began = now;
        if let Some(worker) = &mut self.worker {
            worker.is_busy = true;
        }
        if let Some((_, unwritten)) = &mut self.stdin {
            unwritten.extend(question(call));
        }
    }

    /// How a worker's task ended; the worker has none now.
    pub(crate) fn put_down(&mut self, answer: Result<Value, String>, now: Moment) -> Ended {
        if let Some(worker) = &mut self.worker {
            worker.is_busy = false;
        }
        let (exit_code, problem, result) = match answer {
            Ok(result) => (Some(0), None, Some(result)),
            Err(problem) => (None, Some(problem), None),
        };
        let ended = Ended {
            exit_code,
            problem,
            result,
            duration_ms: millis(now.since(self.began)),
            stdout: self.spooled[0].kept,
            stderr: self.spooled[1].kept,
            truncated: self.spooled.iter().any(|stream| stream.cut),
            ..nothing(&self.bounds)
        };
        self.is_dirty = false;
        self.spooled.iter_mut().for_each(Spooled::close);
        // It may stay for as long as there is nothing for it.
        self.bounds.lease_end_ms = Moment::NEVER.as_millis();
        self.bounds.timeout_ms = None;
        ended
    }

    /// When something is to be done for it if nothing happens.
    pub(crate) fn deadline(&self) -> Moment {
        match &self.ending {
            Some(ending) => ending.check_at,
            None => self.timeout_at().min(self.lease_end()),
        }
    }

    pub(crate) fn timeout_at(&self) -> Moment {
        self.bounds.timeout_ms.map_or(Moment::NEVER, |timeout| self.began + Duration::from_millis(timeout))
    }

    pub(crate) fn lease_end(&self) -> Moment {
        Moment::from_millis(self.bounds.lease_end_ms)
    }

    /// Takes leave of it: nothing of it runs any more, or nothing can be done about that.
    pub(crate) fn finish(
        mut self,
        folders: &mut Folders,
        spool: &mut Spool,
        buffer: &mut [u8],
        now: Moment,
        left_behind: &[i32],
    ) -> Ended {
        // What was written last is still in the pipes; whoever escaped with one of them is not waited for.
        let mut left = [0, 1].map(|_| self.bounds.output_limit.max(1024 * 1024));
        if let Some(pipe) = &mut self.stdout {
            drain(spool, &mut self.spooled[0], pipe, buffer, &mut left[0]);
        }
        if let Some(pipe) = &mut self.stderr {
            drain(spool, &mut self.spooled[1], pipe, buffer, &mut left[1]);
        }
        let used = self.child.try_wait4().ok().flatten();
        self.own_folder.into_iter().for_each(|folder| folders.take_back(folder, left_behind.is_empty()));
        let problem = (!left_behind.is_empty()).then(|| format!("processes that do not die: {left_behind:?}"));
        Ended {
            cause: self.ending.and_then(|ending| ending.cause),
            exit_code: used.and_then(|used| used.status.code()),
            signal: used.and_then(|used| used.status.signal()),
            problem,
            duration_ms: millis(self.exited.unwrap_or(now).since(self.began)),
            stdout: self.spooled[0].kept,
            stderr: self.spooled[1].kept,
            truncated: self.spooled.iter().any(|stream| stream.cut),
            cpu_ms: used.map(|used| millis(used.rusage.utime + used.rusage.stime)),
            memory_peak: used.map(|used| used.rusage.maxrss),
            ..nothing(&self.bounds)
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn drain(spool: &mut Spool, stream: &mut Spooled, pipe: &mut impl io::Read, buffer: &mut [u8], left: &mut u64) {
    while *left > 0 {
        match pipe.read(buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                spool.write(stream, &buffer[..length]);
                *left = left.saturating_sub(length as u64);
            }
        }
    }
}

/// Starts a process with a clean environment in a process group of its own. It ends up without the supervisor's
/// terminal, because that has none.
pub(crate) fn spawn(program: &Program, arguments: &[String], cwd: &Path, has_stdin: bool) -> Result<Child, NotBegun> {
    let command_name = &program.argv[0];
    // Looked up here: so the system can start it without copying this process (posix_spawn), and the answer is clear.
    let path = program.env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, path)| path);
    let executable = look_up(command_name, path, cwd)?;
    let mut command = match &program.user {
        None => {
            let mut command = Command::new(&executable);
            command.arg0(command_name);
            command
        }
        Some(user) => {
            // Its groups can only be set by a process that is about to be it.
            let mut command = Command::new("/proc/self/exe");
            command.args(super::becoming(user)).arg(&executable);
            command
        }
    };
    command.args(arguments).env_clear().envs(program.env.iter().map(|(key, value)| (key, value)));
    command.current_dir(cwd).process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
    let child = if program.user.is_some() { super::enabling(|| command.spawn()) } else { command.spawn() };
    let child = child.map_err(|error| cannot_execute(command_name, &error))?;
    for pipe in [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
        set_nonblocking(pipe);
    }
    if let Some(pipe) = &child.stdin {
        set_nonblocking(pipe.as_fd());
    }
    Ok(child)
}

fn set_nonblocking(pipe: impl AsFd) {
    // A pipe that was just made has no reason to refuse.
    let _ = rustix::io::ioctl_fionbio(pipe, true);
}

fn cannot_execute(command: &str, error: &io::Error) -> NotBegun {
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    NotBegun::new(code, format!("cannot execute {command:?}: {error}"))
}

/// Finds a command as a shell does.
fn look_up(command: &str, path: &str, cwd: &Path) -> Result<PathBuf, NotBegun> {
    let is_executable = |file: &Path| {
        fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if command.contains('/') {
        let file = cwd.join(command);
        if is_executable(&file) {
            return Ok(file);
        }
        return Err(if file.exists() {
            NotBegun::new(NOT_EXECUTABLE, format!("{command:?} is not executable"))
        } else {
            NotBegun::new(NOT_FOUND, format!("command not found: there is no {command:?}"))
        });
    }
    let found = path.split(':').filter(|folder| !folder.is_empty() && !command.is_empty());
    let found = found.map(|folder| cwd.join(folder).join(command)).find(|file| is_executable(file));
    found.ok_or_else(|| NotBegun::new(NOT_FOUND, format!("command not found: {command:?} is nowhere in PATH={path}")))
}

fn checked_cwd(cwd: &Path) -> Result<PathBuf, NotBegun> {
    match fs::metadata(cwd) {
        Ok(metadata) if metadata.is_dir() => Ok(cwd.to_owned()),
        Ok(_) => Err(NotBegun::new(NOT_EXECUTABLE, format!("cwd {} is no folder", cwd.display()))),
        Err(error) => Err(NotBegun::new(NOT_EXECUTABLE, format!("cwd {}: {error}", cwd.display()))),
    }
}

fn own_script(folder: &OwnFolder, script: &str) -> Result<String, NotBegun> {
    let path = folder.path.join(".script");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
        file.write_all(script.as_bytes())?;
        folder.give(&path, 0o755)
    })();
    written.map_err(|error| NotBegun::new(NOT_EXECUTABLE, format!("cannot write {}: {error}", path.display())))?;
    Ok(String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned())
}
