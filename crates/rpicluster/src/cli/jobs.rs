//! The part of the command line that gives the cluster work and looks after it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rpicluster_protocol::{JobId, Share, TaskId, TaskIdError};

use super::UrlArgs;
use super::admin::pair;

const RUN_EXAMPLES: &str = "\
Examples:
  rpicluster run --on all -- uname -a                     on every slave; output as it comes
  rpicluster run --on 'role=worker and not pi-3' --fold -- cat /etc/os-release
                                                          slaves that say the same are shown together
  rpicluster run --on 'pi-[1-9]' --batch 2 --max-failures 1 -- systemctl restart app
                                                          two at a time, and no further after a failure
  rpicluster run --on arch=aarch64 --wait 1h -- sh -c 'df -h | tail -1'
                                                          there is no shell unless you ask for one

Slaves that are offline are reported at once, unless --wait is given.
Ctrl-C asks whether to leave the job to itself or to cancel it, and a second Ctrl-C leaves it. Without a terminal, and at
SIGTERM, it is left to itself; the message names the commands that follow and cancel it.";

const MAP_EXAMPLES: &str = "\
Examples:
  rpicluster map --on all -- convert {} {}.png ::: a.tif b.tif
  seq 100 | rpicluster map --on role=worker --keep-order -- factor
  rpicluster map --on all -a list.txt --joblog log.tsv --retries 2 -- fetch --number {#} {}
  rpicluster map --on all --continue 17 -- factor         what has not succeeded in job 17

{} is the input, {#} its number from 1, {slave} who works on it. Without {} the input is appended.
An empty list of inputs is no error: there is nothing to do, and the exit code is 0.
Tasks wait for slaves that are offline as long as it takes, unless --wait is given. Ctrl-C is answered as by run.";

/// How work is tried, limited and watched: the same for all commands that submit it.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// Which slaves: ids, globs, ranges, labels and facts, as in 'pi-[1-4] or role=worker and not ram<2G'
    #[arg(long, value_name = "TARGET")]
    pub(crate) on: String,
    /// End what runs longer than this, as in 5m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Try again so often what fails or times out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// It may run twice: try also again what was lost
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// Let only so many run at once
    #[arg(long, value_name = "N|N%")]
    pub(crate) batch: Option<Share>,
    /// Begin nothing more after so many failures
    #[arg(long, value_name = "N|N%")]
    pub(crate) max_failures: Option<Share>,
    /// How long to wait for slaves that are offline, as in 1h, or "forever"
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    pub(crate) wait: Option<Wait>,
    /// What the job is called in lists
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Show who would do what, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the job's number and leave it to itself
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print what happens as lines of JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// The surroundings of a command.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    /// Set a variable in its otherwise clean environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Run it in this folder of the slave, instead of an empty one
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Run it as this user, if the slave's policy allows that
    #[arg(long, value_name = "USER")]
    pub(crate) run_as: Option<String>,
}

/// `rpicluster run`
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Show slaves that say the same together, at the end
    #[arg(long, conflicts_with_all = ["json", "detach"])]
    pub(crate) fold: bool,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `rpicluster map`
#[derive(Debug, Args)]
#[command(after_help = MAP_EXAMPLES)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Show results in the order of the inputs
    #[arg(short, long, conflicts_with_all = ["json", "detach"])]
    pub(crate) keep_order: bool,
    /// Write a line for each task into this file, with the columns of GNU parallel
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub(crate) joblog: Option<PathBuf>,
    /// Take the inputs of this job that have not succeeded
    #[arg(long = "continue", value_name = "JOB", conflicts_with = "arg_file")]
    pub(crate) continued: Option<JobId>,
    /// Read the inputs from this file, a line each, instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) arg_file: Option<PathBuf>,
    /// The command and its arguments, after --; then perhaps ::: and inputs
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `rpicluster ping`, `reboot`, `shutdown`, `os-upgrade`
#[derive(Debug, Args)]
pub(crate) struct ActionArgs {
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

/// `rpicluster submit`
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The job, as in examples/job.toml; - for standard input
    pub(crate) file: PathBuf,
    /// Stay and show what happens, as run does
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(crate) follow: bool,
    /// Show who would do what, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what the master's API answers; with --follow, what happens as lines of JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster jobs`
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Show only this job, with its tasks that have not succeeded
    pub(crate) job: Option<JobId>,
    /// How many jobs, or tasks of a job, to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u32,
    /// Print what the master's API answers
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Of which job, as in 17, or of which task, as in 17.3
    #[arg(value_name = "JOB", value_parser = job_or_task)]
    pub(crate) job: (JobId, Option<u32>),
    /// Only of this task, counted from 0, and byte for byte
    #[arg(long, value_name = "N")]
    pub(crate) task: Option<u32>,
    /// Go on until the job has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was written to standard error
    #[arg(long)]
    pub(crate) stderr: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster cancel`
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Which job
    pub(crate) job: JobId,
    /// End also what runs, instead of only what has not begun
    #[arg(long)]
    pub(crate) running: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster retry`
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Which job
    pub(crate) job: JobId,
    /// Only what failed or timed out, instead of everything that ended without success
    #[arg(long)]
    pub(crate) failed: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// How long tasks wait for a slave that is offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// So long.
    For(Duration),
    /// Until it comes.
    Forever,
}

fn wait(text: &str) -> Result<Wait, String> {
    match text {
        "forever" => Ok(Wait::Forever),
        text => humantime::parse_duration(text).map(Wait::For).map_err(|error| error.to_string()),
    }
}

fn job_or_task(text: &str) -> Result<(JobId, Option<u32>), TaskIdError> {
    if text.contains('.') {
        return text.parse::<TaskId>().map(|task| (task.job, Some(task.index)));
    }
    text.parse().map(|job| (job, None))
}
