//! One process of the demo, which never outlives it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child that was told to stop and does not is killed after this.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_POLL: Duration = Duration::from_millis(20);
/// How much of a log is read for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 12;

/// A child: it holds the read end of a pipe as standard input and stops at its end, also if the demo is killed.
pub(super) struct DemoChild {
    name: String,
    process: Child,
    output: PathBuf,
    log: PathBuf,
    /// Whether its end was reported.
    reported: bool,
}

impl DemoChild {
    /// Starts this program with `arguments`; `name` is that of its files in `folder`.
    pub(super) fn start(
        name: &str,
        arguments: &[String],
        variables: &[(&str, &str)],
        folder: &Path,
    ) -> io::Result<DemoChild> {
        let output = folder.join(format!("{name}.out"));
        let log = folder.join(format!("{name}.log"));
        let mut command = Command::new(std::env::current_exe()?);
        for (variable, _) in std::env::vars_os() {
            // The demo shows the defaults, whatever this machine is configured for.
            let name = variable.to_string_lossy();
            if ["RPICLUSTER__", "RPICLUSTER_MASTER", "RPICLUSTER_TOKEN"].iter().any(|start| name.starts_with(start)) {
                command.env_remove(&variable);
            }
        }
        let process = command
            .envs(variables.iter().copied())
            .args(arguments)
            .arg("--stop-on-stdin-close")
            .stdin(Stdio::piped())
            .stdout(File::create(&output)?)
            .stderr(File::create(&log)?)
            // A group of its own: Ctrl-C reaches the demo only, which then stops the children in order.
            .process_group(0)
            .spawn()?;
        Ok(DemoChild { name: name.to_owned(), process, output, log, reported: false })
    }

    /// Its name, that of its files too.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What it has printed so far.
    pub(super) fn printed(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// A sentence with its last lines, once, if it has ended by itself.
    pub(super) fn obituary(&mut self) -> Option<String> {
        let status = self.process.try_wait().ok().flatten()?;
        (!std::mem::replace(&mut self.reported, true)).then(|| self.last_words(status))
    }

    fn last_words(&self, status: ExitStatus) -> String {
        format!("{} has ended ({status}); its last lines:\n{}", self.name, self.tail())
    }

    /// The last lines of its log.
    pub(super) fn tail(&self) -> String {
        let text = tail_of(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }

    /// Closes the pipe: the child begins to stop.
    pub(super) fn tell_to_stop(&mut self) {
        self.process.stdin = None;
    }

    /// Waits until it has stopped, and kills it if it takes too long. False if it had to be killed.
    pub(super) fn stopped(&mut self) -> bool {
        self.tell_to_stop();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            match self.process.try_wait() {
                Ok(None) => std::thread::sleep(STOP_POLL),
                _ => return true,
            }
        }
        // Both fail only if it has ended meanwhile.
        let _ = self.process.kill();
        let _ = self.process.wait();
        false
    }
}

impl Drop for DemoChild {
    fn drop(&mut self) {
        self.stopped();
    }
}

fn tail_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
