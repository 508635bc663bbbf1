//! What may run here, and as what process.

use std::fs;
use std::path::{Path, PathBuf};

use rpicluster_protocol::{Action, AttemptKey, RejectReason, SlaveId, TaskOffer, TaskSpec, Work};
use serde_json::{Value, json};

use super::account::Account;
use super::config::{Kind, TasksConfig};
use crate::supervisor::is_able;
use crate::supervisor::wire::{AGENT_MARK, ATTEMPT_MARK, Bounds, Call, Order, Program, Start, User, name};

/// Where commands are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where other users may have a folder.
const SHARED_FOLDER: &str = "/tmp";

/// What a process that serves many tasks is not told when it starts.
const OF_ONE_TASK: [&str; 3] = ["RPICLUSTER_JOB", "RPICLUSTER_TASK", ATTEMPT_MARK];

/// The rules of this slave.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) config: TasksConfig,
    pub(crate) slave: SlaveId,
    /// What all processes bear.
    pub(crate) mark: String,
    /// Where processes of the agent's own user work.
    pub(crate) folder: PathBuf,
    pub(crate) workers_default: u32,
    own: Account,
    in_container: bool,
}

/// What an offer means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// The agent answers itself.
    Answer(Action),
    /// A process.
    Process,
    /// A process beside which nothing else runs: it ends all.
    Alone,
}

/// Why an offer is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: RejectReason,
    /// The rule, and what to do.
    pub(crate) detail: String,
}

fn policy(rule: &str, wanted: impl std::fmt::Debug) -> Refused {
    let detail = format!("slave.tasks.{rule} does not hold {wanted:?}");
    Refused { reason: RejectReason::Policy, detail }
}

fn unsupported(detail: String) -> Refused {
    Refused { reason: RejectReason::Unsupported, detail }
}

impl Policy {
    pub(crate) fn new(config: TasksConfig, slave: SlaveId, mark: String, folder: PathBuf, slots: u32) -> Policy {
        let workers_default = slots.max(1);
        Policy { config, slave, mark, folder, workers_default, own: Account::own(), in_container: in_container() }
    }

    /// Whether it may run.
    pub(crate) fn admit(&self, spec: &TaskSpec) -> Result<Admitted, Refused> {
        let kind = match spec.work {
            Work::Exec { .. } => Kind::Exec,
            Work::Script { .. } => Kind::Script,
            Work::Action { .. } => Kind::Action,
            Work::Function { .. } => Kind::Function,
        };
        if !self.config.allow_kinds.contains(&kind) {
            return Err(policy("allow_kinds", kind.as_str()));
        }
        if let Some(user) = &spec.run_as
            && *user != self.own.name
            && Some(user) != self.config.user.as_ref()
            && !matches_any(&self.config.allow_users, user)
        {
            return Err(policy("allow_users", user));
        }
        match &spec.work {
            Work::Exec { argv: command } | Work::Script { interpreter: command, .. } => {
                let Some(command) = command.first() else {
                    return Err(unsupported("there is no command: argv is empty".to_owned()));
                };
                self.admit_command(command, spec)?;
                Ok(Admitted::Process)
            }
            Work::Action { action } => self.admit_action(*action),
            Work::Function { function, .. } => {
                if !matches_any(&self.config.allow_functions, function) {
                    return Err(policy("allow_functions", function));
                }
                if self.function_path(function).is_none() {
                    let folder = self.config.functions_dir.display();
                    let detail = format!("there is no executable {function:?} in {folder}");
                    return Err(Refused { reason: RejectReason::UnknownFunction, detail });
                }
                Ok(Admitted::Process)
            }
        }
    }

    fn admit_action(&self, action: Action) -> Result<Admitted, Refused> {
        if !self.config.allow_actions.contains(&action) {
            return Err(policy("allow_actions", action.as_str()));
        }
        match action {
            Action::Ping | Action::Time | Action::Revision | Action::Details => Ok(Admitted::Answer(action)),
            Action::OsUpgrade => Ok(Admitted::Process),
            Action::Reboot | Action::Shutdown if self.in_container => {
                Err(unsupported(format!("{} is not for a container", action.as_str())))
            }
            Action::Reboot | Action::Shutdown => Ok(Admitted::Alone),
        }
    }

    /// Where only some commands may run, a job may not choose what their names mean.
    fn admit_command(&self, command: &str, spec: &TaskSpec) -> Result<(), Refused> {
        let allowed = &self.config.allow_commands;
        if allowed.iter().any(|pattern| pattern == "*") {
            return Ok(());
        }
        let is_plain = !command.contains('/');
        let is_straight = command.starts_with('/') && !command.split('/').any(|part| part == ".." || part == ".");
        let fits = |pattern: &String| pattern.contains('/') != is_plain && matches(pattern, command);
        if !(is_plain || is_straight) || !allowed.iter().any(fits) {
            return Err(policy("allow_commands", command));
        }
        match spec.env.keys().find(|key| *key == "PATH" || key.starts_with("LD_")) {
            Some(key) => Err(Refused {
                reason: RejectReason::Policy,
                detail: format!("slave.tasks.allow_commands restricts commands, so env may not set {key}"),
            }),
            None => Ok(()),
        }
    }

    fn function_path(&self, function: &str) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        // A name, not a way to elsewhere.
        if function.is_empty() || function.contains('/') || function.starts_with('.') {
            return None;
        }
        let path = self.config.functions_dir.join(function);
        let metadata = fs::metadata(&path).ok()?;
        (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(path)
    }

    /// The order that begins an admitted attempt.
    ///
    /// # Errors
    /// In words, if it cannot be begun.
    pub(crate) fn order(&self, offer: TaskOffer, lease_end_ms: u64) -> Result<Order, String> {
        let TaskOffer { key, spec, .. } = offer;
        // What the machine itself does, the agent does.
        let usual = self.config.user.as_deref().filter(|_| !matches!(spec.work, Work::Action { .. }));
        let user = self.user(spec.run_as.as_deref().or(usual))?;
        let bounds = Bounds {
            key,
            lease_end_ms,
            timeout_ms: spec.timeout_ms,
            output_limit: spec.output_limit.min(self.config.output_bytes_max),
        };
        let mut program = self.program(&key, &spec, user)?;
        let start = |program, stdin: Option<String>| Start {
            bounds: bounds.clone(),
            program,
            stdin,
            script: None,
            after_script: Vec::new(),
            answers: false,
        };
        let start = match spec.work {
            Work::Exec { argv } => start(Program { argv, ..program }, spec.stdin),
            Work::Script { interpreter, script, arguments } => Start {
                script: Some(script),
                after_script: arguments,
                ..start(Program { argv: interpreter, ..program }, spec.stdin)
            },
            Work::Action { action } => {
                program.env.push(("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned()));
                start(Program { argv: command_of(action), ..program }, None)
            }
            Work::Function { function, input } => {
                let path = self.function_path(&function).ok_or_else(|| format!("function {function:?} is gone"))?;
                program.argv = vec![path.display().to_string()];
                let served = self.config.functions.get(&function).filter(|function| function.persistent);
                if let Some(served) = served {
                    if !spec.env.is_empty() || program.cwd.is_some() || spec.run_as.is_some() {
                        let what = "env, cwd and run_as cannot be chosen for one task";
                        return Err(format!("function {function:?} is served by processes that stay: {what}"));
                    }
                    program.env.retain(|(key, _)| !OF_ONE_TASK.contains(&key.as_str()));
                    let workers = served.workers.unwrap_or(self.workers_default);
                    return Ok(Order::Call(Box::new(Call { bounds, function, program, workers, input })));
                }
                Start { answers: true, ..start(program, Some(input.to_string())) }
            }
        };
        Ok(Order::Start(Box::new(start)))
    }

    /// A clean environment, and where it runs.
    fn program(&self, key: &AttemptKey, spec: &TaskSpec, user: Option<Account>) -> Result<Program, String> {
        let account = user.as_ref().unwrap_or(&self.own);
        let language = std::env::var("LANG").unwrap_or_else(|_| "C.UTF-8".to_owned());
        let mut env = vec![
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), account.home.clone()),
            ("USER".to_owned(), account.name.clone()),
            ("LANG".to_owned(), language),
        ];
        for (key, value) in &spec.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return Err(format!("env {key:?} cannot be set: no name of a variable holds = or a zero byte"));
            }
            env.retain(|(known, _)| known != key);
            env.push((key.clone(), value.clone()));
        }
        // Last, so that no job can set them.
        let own = [
            ("RPICLUSTER_JOB", key.task.job.to_string()),
            ("RPICLUSTER_TASK", key.task.to_string()),
            (ATTEMPT_MARK, name(key)),
            ("RPICLUSTER_SLAVE", self.slave.to_string()),
            (AGENT_MARK, self.mark.clone()),
        ];
        for (key, value) in own {
            env.retain(|(known, _)| known != key);
            env.push((key.to_owned(), value));
        }
        let folder = if user.is_some() { Path::new(SHARED_FOLDER) } else { &self.folder }.to_owned();
        let user = user.map(|user| User { uid: user.uid, gid: user.gid, groups: user.groups() });
        Ok(Program { argv: Vec::new(), env, cwd: spec.cwd.clone().map(PathBuf::from), folder, user })
    }

    fn user(&self, name: Option<&str>) -> Result<Option<Account>, String> {
        let Some(name) = name.filter(|name| *name != self.own.name) else { return Ok(None) };
        let account = Account::named(name).ok_or_else(|| format!("there is no user {name:?} on this slave"))?;
        if !is_able() {
            let own = &self.own.name;
            return Err(format!("the agent runs as {own} without the right (CAP_SETUID, CAP_SETGID) to become {name}"));
        }
        Ok(Some(account))
    }
}

/// What the agent answers itself.
pub(crate) fn answer(action: Action, details: impl FnOnce() -> Value, unix_ms: u64) -> Value {
    match action {
        Action::Ping => json!("pong"),
        Action::Time => json!({ "unix_ms": unix_ms }),
        Action::Revision => json!(env!("CARGO_PKG_VERSION")),
        Action::Details => details(),
        Action::Reboot | Action::Shutdown | Action::OsUpgrade => Value::Null,
    }
}

fn command_of(action: Action) -> Vec<String> {
    let command: &[&str] = match action {
        Action::Reboot => &["systemctl", "reboot"],
        Action::Shutdown => &["systemctl", "poweroff"],
        Action::OsUpgrade => &["sh", "-c", "apt-get update && apt-get -y upgrade"],
        Action::Ping | Action::Time | Action::Revision | Action::Details => &["true"],
    };
    command.iter().map(|&word| word.to_owned()).collect()
}

/// Whether this is no machine of its own: booting it would not boot anything.
fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"].iter().any(|file| Path::new(file).exists())
        || !Path::new("/run/systemd/system").exists()
}

fn matches_any(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, text))
}

/// `*` is any text, `?` any one byte.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star does not fit.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_whole_text() {
        for (pattern, text) in [("*", ""), ("*", "a/b"), ("a*c", "abc"), ("a*c", "acc"), ("?b", "ab"), ("a**", "a")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", "ab"), ("a*c", "ab"), ("?", ""), ("*b", "ba"), ("*ab", "aab a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        // A pattern cannot make anybody wait.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(10_000).replace("aa", "ab")));
    }
}
