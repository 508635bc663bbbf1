//! The rules of access for a broker that others run, in that broker's own language.
//!
//! They say what the master's own broker enforces by itself: a slave speaks in its own name only and reads only what is for
//! it; the account of a slave is called by the slave's id.

use std::fmt::Write as _;

use crate::id::SlaveId;
use crate::topic::{Downward, Topic, TopicRoot, Upward};

/// The account that reads what holds no secrets, for people and their programs.
pub const OBSERVER: &str = "observer";

/// Where the files of Debian's mosquitto are advised to lie.
const MOSQUITTO_FOLDER: &str = "/etc/mosquitto";

/// For whom the rules are.
#[derive(Debug, Clone, Copy)]
pub struct Acl<'a> {
    /// The root of the cluster's topics.
    pub root: &'a TopicRoot,
    /// The master's account.
    pub master: &'a str,
    /// Slaves whose accounts are spelled out; the rules hold for all.
    pub slaves: &'a [SlaveId],
}

/// Why there are no rules for these names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// It cannot be written in the language of the rules without meaning something else.
    #[error(
        "{what} {text:?} holds a character that has a meaning of its own in these rules: use letters, digits, '-', '_' and \
         '/'"
    )]
    Character {
        /// As in `the topic root`.
        what: &'static str,
        /// The name.
        text: String,
    },
    /// Two would have one account.
    #[error("{0:?} is the account of the master or of the observer: give this slave another id")]
    Taken(SlaveId),
}

impl Acl<'_> {
    /// An `acl_file` of mosquitto 2, with comments that tell how to use it and how to make the accounts.
    ///
    /// # Errors
    /// If topic root or account cannot be written there.
    pub fn mosquitto(&self) -> Result<String, AclError> {
        self.check(&['%', '#', '+'])?;
        let Acl { root, master, .. } = self;
        let passwords = format!("{MOSQUITTO_FOLDER}/rpicluster.passwd");
        let mut text = format!(
            "# Who may do what below {root:?}, for mosquitto 2. Save this as {MOSQUITTO_FOLDER}/rpicluster.acl, and add to\n\
             # {MOSQUITTO_FOLDER}/conf.d/rpicluster.conf:\n\
             #\n\
             #   allow_anonymous false\n\
             #   password_file {passwords}\n\
             #   acl_file {MOSQUITTO_FOLDER}/rpicluster.acl\n\
             #   use_username_as_clientid true\n\
             #   max_queued_messages 20000\n\
             #   set_tcp_nodelay true\n\
             #\n\
             # The user name as client id keeps each account from taking over the session of another. The last two lines give\n\
             # room to what 1,000 slaves tell the master at once, and send answers without a pause.\n\
             # Accounts, each with a password of its own; a slave's account is called by its id:\n\
             #\n"
        );
        for (number, account) in self.accounts().into_iter().enumerate() {
            let create = if number == 0 { "-c " } else { "" };
            // Writing to a text does not fail.
            let _ = writeln!(text, "#   mosquitto_passwd {create}{passwords} {account}");
        }
        let mut rules = |who: &str, rules: &[(&str, String)]| {
            let _ = writeln!(text, "\n{who}");
            for (may, filter) in rules {
                let _ = writeln!(text, "{may} {filter}");
            }
        };
        let mut of_master = vec![("topic read", root.every_slave()), ("topic write", root.to_all())];
        of_master.push(("topic readwrite", root.name(&Topic::MasterState)));
        of_master.extend(self.put_right().map(|filter| ("topic write", filter)));
        rules(&format!("# The master, who also puts retained states right.\nuser {master}"), &of_master);
        let mut of_observer: Vec<_> = self.secrets().into_iter().map(|filter| ("topic deny", filter)).collect();
        of_observer.push(("topic deny", root.said_by(OBSERVER)));
        of_observer.push(("topic read", root.everything()));
        rules(
            &format!(
                "# Reads all but orders, tasks and their output; says nothing. No slave may have this id.\nuser {OBSERVER}"
            ),
            &of_observer,
        );
        let of_slaves = [
            ("pattern write", root.said_by("%u")),
            ("pattern read", root.told_to("%u")),
            ("pattern read", root.name(&Topic::MasterState)),
        ];
        rules(
            "# Every slave. (mosquitto warns of the last line, which names no user: everybody with an account may read it.)",
            &of_slaves,
        );
        Ok(text)
    }

    /// An `acl.conf` of EMQX 5, with comments that tell how to use it and how to make the accounts.
    ///
    /// # Errors
    /// If topic root or account cannot be written there.
    pub fn emqx(&self) -> Result<String, AclError> {
        self.check(&['"', '\\', '$', '#', '+'])?;
        let Acl { root, master, .. } = self;
        let exactly = |filter: String| format!("{{eq, \"{filter}\"}}");
        let plainly = |filter: String| format!("\"{filter}\"");
        let rule = |verdict: &str, who: &str, what: &str, filters: &[String]| {
            format!("{{{verdict}, {who}, {what}, [{}]}}.\n", filters.join(", "))
        };
        let account = |name: &str| format!("{{username, \"{name}\"}}");
        let (head, observer) = (account(master), account(OBSERVER));
        let master_state = root.name(&Topic::MasterState);
        let accounts = self.accounts().join(", ");
        let mut published = vec![plainly(root.to_all()), plainly(master_state.clone())];
        published.extend(self.put_right().map(plainly));
        let mut observed = vec![plainly(master_state.clone()), plainly(root.to_every_slave(Downward::Reply))];
        let open = [Upward::State, Upward::Details, Upward::Vitals, Upward::Message, Upward::Info];
        observed.extend(open.map(|leaf| plainly(root.from_every_slave(leaf))));
        Ok([
            format!(
                "%% Who may do what below {root:?}, for EMQX 5: its file source of authorization (acl.conf), with\n\
                 %%   authorization.no_match = deny\n\
                 %%   mqtt.use_username_as_clientid = true\n\
                 %%   mqtt.max_mqueue_len = 20000\n\
                 %% The user name as client id keeps each account from taking over the session of another. The last line gives\n\
                 %% room to what 1,000 slaves tell the master at once.\n\
                 %% Accounts (authentication: password_based, built_in_database), each with a password of its own; a slave's\n\
                 %% account is called by its id: {accounts}.\n\n"
            ),
            "%% The master, who also puts retained states right.\n".to_owned(),
            rule("allow", &head, "subscribe", &[exactly(root.every_slave()), exactly(master_state.clone())]),
            rule("allow", &head, "publish", &published),
            "\n%% Reads all but orders, tasks and their output; says nothing. No slave may have this id.\n".to_owned(),
            rule("allow", &observer, "subscribe", &observed),
            rule("deny", &observer, "all", &[plainly("#".to_owned())]),
            "\n%% Every slave.\n".to_owned(),
            rule("allow", "all", "publish", &[plainly(root.said_by("${username}"))]),
            rule("allow", "all", "subscribe", &[plainly(root.told_to("${username}")), exactly(master_state)]),
            "\n{deny, all}.\n".to_owned(),
        ]
        .concat())
    }

    fn accounts(&self) -> Vec<&str> {
        let slaves: Vec<&str> = self.slaves.iter().map(SlaveId::as_str).collect();
        let slaves = if slaves.is_empty() { vec!["SLAVE-ID"] } else { slaves };
        [self.master, OBSERVER].into_iter().chain(slaves).collect()
    }

    /// What the master writes in slaves' names: the truth over a stale state, and nothing over what a removed slave left.
    fn put_right(&self) -> [String; 2] {
        [Upward::State, Upward::Details].map(|leaf| self.root.from_every_slave(leaf))
    }

    /// What may hold secrets.
    fn secrets(&self) -> [String; 3] {
        let root = self.root;
        [
            root.to_every_slave(Downward::Command),
            root.from_every_slave(Upward::Task),
            root.from_every_slave(Upward::Output),
        ]
    }

    fn check(&self, special: &[char]) -> Result<(), AclError> {
        for (what, text) in [("the topic root", self.root.as_str()), ("the master's user name", self.master)] {
            let is_bad = |c: char| c.is_control() || special.contains(&c);
            if text.contains(is_bad) || text.trim() != text || text.is_empty() {
                return Err(AclError::Character { what, text: text.to_owned() });
            }
        }
        let taken = self.slaves.iter().find(|slave| [OBSERVER, self.master].contains(&slave.as_str()));
        taken.map_or(Ok(()), |slave| Err(AclError::Taken(slave.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(root: &str, master: &str, slaves: &[&str], ask: impl FnOnce(Acl<'_>) -> T) -> T {
        let slaves: Vec<SlaveId> = slaves.iter().map(|id| id.parse().unwrap()).collect();
        ask(Acl { root: &root.parse().unwrap(), master, slaves: &slaves })
    }

    fn lines(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with(['#', '%']) && !line.is_empty()).collect()
    }

    #[test]
    fn mosquitto_gets_rules_for_master_observer_and_every_slave() {
        let text = with("site/lab 1", "head", &["pi-1", "pi-2"], |acl| acl.mosquitto()).unwrap();
        assert_eq!(
            lines(&text),
            [
                "user head",
                "topic read site/lab 1/from/+/+",
                "topic write site/lab 1/to/#",
                "topic readwrite site/lab 1/master/state",
                "topic write site/lab 1/from/+/state",
                "topic write site/lab 1/from/+/details",
                "user observer",
                "topic deny site/lab 1/to/+/command",
                "topic deny site/lab 1/from/+/task",
                "topic deny site/lab 1/from/+/output",
                "topic deny site/lab 1/from/observer/#",
                "topic read site/lab 1/#",
                "pattern write site/lab 1/from/%u/#",
                "pattern read site/lab 1/to/%u/#",
                "pattern read site/lab 1/master/state",
            ]
        );
        for command in ["mosquitto_passwd -c /etc/mosquitto/rpicluster.passwd head", "rpicluster.passwd pi-2"] {
            assert!(text.contains(command), "{text}");
        }
        assert!(with("r", "m", &[], |acl| acl.mosquitto()).unwrap().contains("rpicluster.passwd SLAVE-ID"));
    }

    #[test]
    fn emqx_gets_the_same_in_erlang_terms() {
        let text = with("r", "master", &["pi-1"], |acl| acl.emqx()).unwrap();
        let expected = [
            r#"{allow, {username, "master"}, subscribe, [{eq, "r/from/+/+"}, {eq, "r/master/state"}]}."#,
            r#"{allow, {username, "master"}, publish, ["r/to/#", "r/master/state", "r/from/+/state", "r/from/+/details"]}."#,
            r#"{allow, {username, "observer"}, subscribe, ["r/master/state", "r/to/+/reply", "r/from/+/state", "r/from/+/details", "r/from/+/vitals", "r/from/+/message", "r/from/+/info"]}."#,
            r##"{deny, {username, "observer"}, all, ["#"]}."##,
            r#"{allow, all, publish, ["r/from/${username}/#"]}."#,
            r#"{allow, all, subscribe, ["r/to/${username}/#", {eq, "r/master/state"}]}."#,
            "{deny, all}.",
        ];
        assert_eq!(lines(&text), expected);
    }

    #[test]
    fn what_would_mean_something_else_in_a_rule_is_refused() {
        assert!(with("a%u", "m", &[], |acl| acl.mosquitto()).is_err());
        assert!(with("a%u", "m", &[], |acl| acl.emqx()).is_ok());
        assert!(with("a\"", "m", &[], |acl| acl.emqx()).is_err());
        for master in ["", " m", "m\ntopic read #", "m#"] {
            let error = with("a", master, &[], |acl| acl.mosquitto()).unwrap_err();
            assert!(error.to_string().contains("user name"), "{error}");
        }
        for (master, slave) in [("m", "observer"), ("pi", "pi")] {
            let error = with("a", master, &[slave], |acl| acl.emqx()).unwrap_err();
            assert!(error.to_string().contains(slave), "{error}");
        }
    }
}
