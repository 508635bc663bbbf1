//! The one table of exit codes. Every command ends through it.

use std::fmt;
use std::num::NonZeroU8;
use std::process::ExitCode;

/// How the program ends. The numbers are a contract with scripts: 69 and 78 are those of sysexits.h, 124 is that of
/// `timeout`, 126 and 127 are a shell's for what it could not run, and 130 is its for Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Done,
    /// What was asked for did not succeed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The master does not answer.
    Unreachable,
    /// A configuration file or an environment variable is wrong, or a slave has no way in.
    Configuration,
    /// A task ran longer than it may.
    TimedOut,
    /// Nobody knows how far a task came.
    Lost,
    /// A slave's policy said no.
    Rejected,
    /// A task never ran: no slave matched, or its slave stayed offline.
    NotRun,
    /// The user left a job, or ended it.
    Interrupted,
    /// A task's own exit code.
    Task(NonZeroU8),
}

/// Which code counts when tasks end in several ways.
const TASK_RULE: &str = "\
Commands that wait for tasks (run, map, reboot, ...) end with 0 only if all succeeded. Else the largest exit code of a task
that failed counts (128 + N after signal N); if none failed, the largest of 124 to 127; if all others were canceled, 1.";

impl Exit {
    /// All codes of the program itself, in ascending order.
    pub(crate) const ALL: [Exit; 10] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Unreachable,
        Exit::Configuration,
        Exit::TimedOut,
        Exit::Lost,
        Exit::Rejected,
        Exit::NotRun,
        Exit::Interrupted,
    ];

    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 69,
            Exit::Configuration => 78,
            Exit::TimedOut => 124,
            Exit::Lost => 125,
            Exit::Rejected => 126,
            Exit::NotRun => 127,
            Exit::Interrupted => 130,
            Exit::Task(code) => code.get(),
        }
    }

    /// What the code tells, for the help text.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Failed => "failed",
            Exit::Usage => "wrong usage of the command line",
            Exit::Unreachable => "the master is not reachable",
            Exit::Configuration => {
                "a configuration file or RPICLUSTER__ variable is wrong, or this slave has not joined"
            }
            Exit::TimedOut => "a task timed out",
            Exit::Lost => "a task was lost: nobody knows how far it came",
            Exit::Rejected => "a task was rejected by its slave's policy",
            Exit::NotRun => "a task never ran: no slave matches, or its slave is offline",
            Exit::Interrupted => "interrupted: the job was left to itself, or canceled",
            Exit::Task(_) => "the exit code of a task",
        }
    }

    /// The table as it stands at the end of the help text.
    pub(crate) fn table() -> String {
        let line = |exit: Exit| format!("  {:>3}  {}", exit.code(), exit.meaning());
        format!("Exit codes:\n{}\n{TASK_RULE}", Exit::ALL.map(line).join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why a command did not succeed: a message for people and the code for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    /// How the program ends.
    pub(crate) exit: Exit,
    /// What is wrong, where, and what to do.
    pub(crate) message: String,
}

impl Failure {
    /// A failure of that kind.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::new(Exit::Failed, format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_documented_ones() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 69, 78, 124, 125, 126, 127, 130]);
    }

    #[test]
    fn the_table_names_every_code() {
        let table = Exit::table();
        for exit in Exit::ALL {
            assert!(table.lines().any(|line| line.trim_start().starts_with(&format!("{} ", exit.code()))), "{table}");
        }
    }

    #[test]
    fn an_error_with_causes_becomes_one_line() {
        let failure = Failure::from(anyhow::anyhow!("disk is full").context("cannot write /x"));
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Failed, "cannot write /x: disk is full"));
    }
}
