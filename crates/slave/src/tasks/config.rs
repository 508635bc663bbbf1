//! `[slave.tasks]`: what this slave lets others run on it. Nobody but its own configuration decides that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rpicluster_protocol::Action;
use rpicluster_protocol::limits::KILL_GRACE;
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

const WORKERS_MAX: u32 = 64;

/// `[slave.tasks]` of `rpicluster.toml`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// Which kinds of tasks run here: all of them by default.
    pub allow_kinds: Vec<Kind>,
    /// Which commands and interpreters: patterns with `*` and `?`. One with a `/` is of the whole path, another of the
    /// name of a command in the usual folders. All by default.
    pub allow_commands: Vec<String>,
    /// Which functions of `functions_dir`: patterns with `*` and `?`. All by default.
    pub allow_functions: Vec<String>,
    /// Which actions: those that only tell something, by default.
    pub allow_actions: Vec<Action>,
    /// As which user tasks run whose job names none: the agent's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// As which other users tasks may run: names, or patterns with `*` and `?`. None by default.
    pub allow_users: Vec<String>,
    /// Where functions lie: `/etc/rpicluster/functions.d`.
    pub functions_dir: PathBuf,
    /// Functions that are served by processes that stay.
    pub functions: BTreeMap<String, FunctionConfig>,
    /// Most bytes of each output stream of a task that are kept, whatever its job says: 64 MiB.
    pub output_bytes_max: u64,
    /// Most bytes of output that wait for the master in all; what exceeds it is cut: 512 MiB.
    pub spool_bytes_max: u64,
    /// Between SIGTERM and SIGKILL, at most 10s: `10s`.
    #[serde(with = "humantime_serde")]
    pub kill_grace: Duration,
}

/// What a task may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A command.
    Exec,
    /// A script with its interpreter.
    Script,
    /// Something that every slave can do.
    Action,
    /// An executable of `functions_dir`.
    Function,
}

/// How a function is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionConfig {
    /// By processes that stay and take one line of JSON for each task.
    pub persistent: bool,
    /// How many of them, 1 to 64: as many as the slave has slots by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
}

impl Kind {
    /// Its word in the configuration and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Exec => "exec",
            Kind::Script => "script",
            Kind::Action => "action",
            Kind::Function => "function",
        }
    }
}

impl TasksConfig {
    /// Checks what the types alone cannot.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let refused = |key: &str, problem: String| Err(ConfigError { key: format!("tasks.{key}"), problem });
        if self.kill_grace > KILL_GRACE {
            let most = humantime::format_duration(KILL_GRACE);
            return refused("kill_grace", format!("the master counts on at most {most}"));
        }
        if !self.functions_dir.is_absolute() {
            return refused("functions_dir", "name a folder from the root on".to_owned());
        }
        for (name, function) in &self.functions {
            if function.workers.is_some_and(|workers| !(1..=WORKERS_MAX).contains(&workers)) {
                return refused(&format!("functions.{name}.workers"), format!("use 1 to {WORKERS_MAX}"));
            }
        }
        Ok(())
    }
}

impl Default for TasksConfig {
    fn default() -> Self {
        let everything = || vec!["*".to_owned()];
        TasksConfig {
            allow_kinds: vec![Kind::Exec, Kind::Script, Kind::Action, Kind::Function],
            allow_commands: everything(),
            allow_functions: everything(),
            allow_actions: vec![Action::Ping, Action::Time, Action::Revision, Action::Details],
            user: None,
            allow_users: Vec::new(),
            functions_dir: PathBuf::from("/etc/rpicluster/functions.d"),
            functions: BTreeMap::new(),
            output_bytes_max: 64 * 1024 * 1024,
            spool_bytes_max: 512 * 1024 * 1024,
            kill_grace: KILL_GRACE,
        }
    }
}
