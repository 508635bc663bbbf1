//! The agent's end of its supervisor, and what is done when that is gone.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::engine::Message;
use crate::supervisor::tree;
use crate::supervisor::wire::{AGENT_MARK, Frames, Order, Report, Setup, push_frame};

/// A process that SIGKILL does not end within this waits for a device.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const KILL_POLL: Duration = Duration::from_millis(5);

/// How the supervisor is started: a program and its arguments, with the agent at the other end of standard input.
#[derive(Debug, Clone)]
pub struct SupervisorCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A running supervisor.
#[derive(Debug)]
pub(crate) struct Runner {
    socket: UnixStream,
    child: Child,
    buffer: Vec<u8>,
}

impl Runner {
    /// Starts one. What it reports arrives in `inputs`, marked with `generation`; its end too.
    pub(crate) fn start(
        command: &SupervisorCommand,
        setup: Setup,
        generation: u64,
        inputs: SyncSender<Message>,
    ) -> io::Result<Runner> {
        let (socket, other) = UnixStream::pair()?;
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            // The next life of the agent finds it too.
            .env(AGENT_MARK, &setup.agent)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .spawn()?;
        let reader = socket.try_clone()?;
        let reading = thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
            if let Err(error) = read(reader, generation, &inputs) {
                tracing::warn!(%error, "the supervisor of tasks cannot be heard");
            }
            // Nobody is left to tell if the agent has stopped.
            let _ = inputs.send(Message::SupervisorGone(generation));
        });
        if let Err(error) = reading {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        let mut runner = Runner { socket, child, buffer: Vec::new() };
        runner.order(&Order::Begin(setup))?;
        Ok(runner)
    }

    pub(crate) fn order(&mut self, order: &Order) -> io::Result<()> {
        self.buffer.clear();
        push_frame(&mut self.buffer, order)?;
        self.socket.write_all(&self.buffer)
    }

    /// Makes sure that it is gone.
    pub(crate) fn bury(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Its reader holds the socket too: only this ends it, and with it all that runs.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn read(mut socket: UnixStream, generation: u64, inputs: &SyncSender<Message>) -> io::Result<()> {
    let mut frames = Frames::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        frames.extend(&buffer[..length]);
        while let Some(report) = frames.next::<Report>()? {
            if inputs.send(Message::Report(generation, report)).is_err() {
                return Ok(());
            }
        }
    }
}

/// Kills whatever agents of this mark have started in earlier lives, or a supervisor that is gone; returns when it is dead.
pub(crate) fn kill_marked(mark: &str, cgroup: Option<&Path>) {
    let patience = Instant::now() + KILL_PATIENCE;
    loop {
        if let Some(cgroup) = cgroup {
            tree::kill_cgroup(cgroup);
        }
        let left = tree::of_agent(mark);
        if left.is_empty() {
            return;
        }
        tree::signal(&left, Signal::KILL);
        if Instant::now() > patience {
            let left: Vec<i32> = left.iter().map(|member| member.pid).collect();
            tracing::error!(?left, "processes of tasks that are over do not die");
            return;
        }
        thread::sleep(KILL_POLL);
    }
}

/// Where the cgroup (v2) of the supervisor and all that it starts belongs, if there is such a thing: below this process's own.
pub(crate) fn cgroup_path(mark: &str) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(Path::new);
    let mount = mount.into_iter().find(|mount| mount.join("cgroup.controllers").exists())?;
    Some(mount.join(own).join(format!("rpicluster-{mark}")))
}

/// Makes it, where this process may and all in it can be killed at once. The supervisor enters it, and removes it at its end.
pub(crate) fn make_cgroup(folder: &Path) -> bool {
    let made = match fs::create_dir(folder) {
        Err(error) => error.kind() == io::ErrorKind::AlreadyExists,
        Ok(()) => true,
    };
    made && folder.join("cgroup.kill").exists()
}
