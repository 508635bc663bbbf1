use std::env::{join_paths, split_paths, var_os};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, Finished, Process, rpicluster, run, wait_until};

/// The master and slaves are killed again and again, while tasks append to files.
mod crashes;
/// Drained slaves, retries, reboots, and a master that restarts under a command.
mod operation;
/// Floods of output and of inputs, and commands that fail in every way.
mod rough;
/// The README's tour, its commands taken from there.
mod tour;

/// A master, and slaves that are online.
struct Work {
    slaves: Vec<Process>,
    cluster: Cluster,
}

impl Work {
    /// So many slaves, `pi-1` and so on, with this configuration.
    fn start(slaves: usize, config: &str) -> Work {
        let cluster = Cluster::with(config);
        let ids: Vec<String> = (1..=slaves).map(|number| format!("pi-{number}")).collect();
        let slaves = ids.iter().map(|id| cluster.slave(id)).collect();
        ids.iter().for_each(|id| cluster.wait_until_online(id));
        Work { slaves, cluster }
    }

    /// A command of this cluster's user, on the master's machine.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = rpicluster(self.cluster.place());
        command.args(arguments);
        self.at_home(&mut command);
        command
    }

    /// The same to its end, with nothing on its standard input.
    fn call(&self, arguments: &[&str]) -> Finished {
        run(self.command(arguments))
    }

    /// A line for a shell that knows `rpicluster`, to its end; what it prints comes mixed, as on a terminal.
    fn shell(&self, line: &str) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec 2>&1; {line}")]);
        let program = Path::new(env!("CARGO_BIN_EXE_rpicluster")).parent().unwrap().to_owned();
        let path = join_paths([program].into_iter().chain(split_paths(&var_os("PATH").unwrap()))).unwrap();
        self.at_home(command.env("PATH", path));
        run(command)
    }

    fn at_home(&self, command: &mut Command) {
        // The folder holds the token, which is another one after each start of the master.
        command.env("RPICLUSTER__MASTER__STATE_DIR", self.cluster.master_folder());
        if !self.cluster.http.ip().is_loopback() {
            command.env("RPICLUSTER_API_TOKEN_FILE", self.cluster.master_folder().join("api-token"));
        }
        command.env("RPICLUSTER_URL", self.cluster.url()).current_dir(self.cluster.slave_folder("."));
    }

    /// The number that a command with `--detach` has printed.
    fn detached(&self, arguments: &[&str]) -> u64 {
        let Finished { code, out, err } = self.call(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        out.trim().parse().unwrap_or_else(|_| panic!("{arguments:?} prints {out:?}"))
    }

    fn job(&self, job: u64) -> Value {
        self.cluster.get(&format!("/api/v1/jobs/{job}"))
    }

    /// The only task of a job.
    fn task(&self, job: u64) -> Value {
        self.cluster.get(&format!("/api/v1/jobs/{job}/tasks/0"))
    }

    fn wait_until_task_is(&self, job: u64, state: &str) {
        wait_until(&format!("task {job}.0 is {state}"), || self.task(job)["state"] == state);
    }

    fn wait_until_job_is(&self, job: u64, state: &str) {
        wait_until(&format!("job {job} is {state}"), || self.job(job)["state"] == state);
    }
}

/// A command that takes its time and may write anything: its output byte for byte, its exit code and its standard error.
fn whole(mut command: Command) -> (Vec<u8>, Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.stdout, output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Lines of a file; none if it is not there.
fn lines(path: &Path) -> Vec<String> {
    match fs::read_to_string(path) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}
