//! The one table of exit codes. Every command ends through it.

use std::fmt;
use std::process::ExitCode;

/// How the program ends. The numbers are a contract with scripts (69 and 78 are those of sysexits.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Done = 0,
    /// What was asked for did not succeed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The master does not answer.
    Unreachable = 69,
    /// A configuration file or an environment variable is wrong, or a slave has no way in.
    Configuration = 78,
}

impl Exit {
    /// All codes, in ascending order.
    pub(crate) const ALL: [Exit; 5] = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unreachable, Exit::Configuration];

    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        self as u8
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
        }
    }

    /// The table as it stands at the end of the help text.
    pub(crate) fn table() -> String {
        let line = |exit: Exit| format!("  {:>2}  {}", exit.code(), exit.meaning());
        format!("Exit codes:\n{}", Exit::ALL.map(line).join("\n"))
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
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 69, 78]);
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
