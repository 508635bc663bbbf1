//! Who may connect, publish and subscribe: the one place that says so.
//!
//! The broker knows accounts and topic filters only. Which account a CONNECT belongs to, and what that account may do, the
//! program around the broker says, by an [`Authenticator`]; here these rules are applied.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::codec::reason;
use crate::topic::matches;

/// Decides on every CONNECT.
pub trait Authenticator: Send + Sync + 'static {
    /// The verdict on a CONNECT. It may take its time, but not a thread of the runtime: other clients are served there.
    fn authenticate<'a>(&'a self, login: Login<'a>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;
}

/// What a CONNECT says of its sender, and where it came from. Its `Debug` leaves the password out.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The name of the listener.
    pub listener: &'a str,
    /// Whether that listener lets clients in that name no user.
    pub anonymous: bool,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Where the client is.
    pub address: IpAddr,
    /// The client id; made by the broker if the client left it empty.
    pub client_id: &'a str,
    /// The user name, if there is one.
    pub user_name: Option<&'a str>,
    /// The password, if there is one.
    pub password: Option<&'a [u8]>,
    /// Whether it brings a will.
    pub has_will: bool,
}

/// What becomes of a CONNECT.
#[derive(Debug)]
pub enum Verdict {
    /// The client is let in.
    Admit(Identity),
    /// The CONNECT alone was all: it is answered with success, and the connection ends without becoming a client.
    Done,
    /// The client is not let in.
    Refuse(Refusal),
}

/// Why a client is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, which has a code in both versions of MQTT.
    pub kind: RefusalKind,
    /// For people, in MQTT 5's Reason String. Tells nothing that a stranger should not know.
    pub explanation: Option<String>,
    /// It may have been a guess: the next answers to this address come later and later.
    pub guess: bool,
}

/// The kinds of refusal, with their codes in MQTT 5 and in 3.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// User name or password is wrong: 0x86, or 4.
    BadCredentials,
    /// This client may not connect (here): 0x87, or 5.
    NotAuthorized,
    /// This account may not have this client id: 0x85, or 2.
    ClientId,
    /// Too much is going on to decide now: 0x89, or 3.
    Busy,
}

/// Who a client is, once it is let in.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Whose connection it is. A client id and its session belong to one account: no other can take them over.
    pub account: Arc<str>,
    /// The client id is this account's by right: another account that uses it has to leave.
    pub owns_client_id: bool,
    /// What it may do.
    pub permissions: Arc<Permissions>,
}

/// What an account may do, by topic filters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// It may publish on topics that match one of these, but never on `$`-topics, which are the server's own (MQTT 4.7.2).
    pub publish: Vec<String>,
    /// It may subscribe with filters that reach no further than one of these.
    pub subscribe: Vec<String>,
    /// Messages on topics that match one of these are not delivered to it, whatever it subscribed to.
    pub hidden: Vec<String>,
}

impl Permissions {
    /// Everything but what belongs to the server.
    pub fn all() -> Permissions {
        let all = |filters: &[&str]| filters.iter().map(|filter| (*filter).to_owned()).collect();
        Permissions { publish: all(&["#"]), subscribe: all(&["#", "$SYS/#"]), hidden: Vec::new() }
    }

    /// Whether a message on this topic may be published.
    pub fn may_publish(&self, topic: &str) -> bool {
        !topic.starts_with('$') && self.publish.iter().any(|filter| matches(filter, topic))
    }

    /// Whether this filter reaches no further than one that is allowed. A shared subscription never does.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.subscribe.iter().any(|allowed| covers(allowed, filter))
    }

    /// Whether messages on this topic are kept from the account.
    pub fn hides(&self, topic: &str) -> bool {
        self.hidden.iter().any(|filter| matches(filter, topic))
    }
}

/// Whether every topic that `filter` matches is matched by `allowed` too; both must be valid filters.
pub fn covers(allowed: &str, filter: &str) -> bool {
    // MQTT 4.7.2-1: a wildcard at the first level does not reach topics that begin with '$'.
    if filter.starts_with('$') && allowed.starts_with(['+', '#']) {
        return false;
    }
    let mut allowed = allowed.split('/');
    let mut filter = filter.split('/');
    loop {
        match (allowed.next(), filter.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

impl RefusalKind {
    pub(crate) fn reason(self) -> u8 {
        match self {
            RefusalKind::BadCredentials => reason::BAD_CREDENTIALS,
            RefusalKind::NotAuthorized => reason::NOT_AUTHORIZED,
            RefusalKind::ClientId => reason::CLIENT_ID_NOT_VALID,
            RefusalKind::Busy => reason::SERVER_BUSY,
        }
    }
}

impl fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Login { listener, anonymous, encrypted, address, client_id, user_name, password, has_will } = self;
        f.debug_struct("Login")
            .field("listener", listener)
            .field("anonymous", anonymous)
            .field("encrypted", encrypted)
            .field("address", address)
            .field("client_id", client_id)
            .field("user_name", user_name)
            .field("password", &password.map(|_| "…"))
            .field("has_will", has_will)
            .finish()
    }
}

/// Lets everybody in and do everything: for tests, and for networks that nobody else can reach.
#[derive(Debug)]
pub struct Trusting(Identity);

impl Default for Trusting {
    fn default() -> Trusting {
        let permissions = Arc::new(Permissions::all());
        Trusting(Identity { account: "".into(), owns_client_id: false, permissions })
    }
}

impl Authenticator for Trusting {
    fn authenticate<'a>(&'a self, _: Login<'a>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(std::future::ready(Verdict::Admit(self.0.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_covered_by_one_that_reaches_at_least_as_far() {
        let yes = [
            ("#", "#"),
            ("#", "a/+/#"),
            ("a/#", "a"),
            ("a/#", "a/#"),
            ("a/#", "a/+/b"),
            ("+/b", "+/b"),
            ("+/b", "a/b"),
            ("+/#", "a/#"),
            ("a/+/c", "a/+/c"),
            ("$SYS/#", "$SYS/broker/+"),
            ("/+", "/a"),
        ];
        let no = [
            ("a/#", "#"),
            ("a/#", "+/b"),
            ("a/#", "b/#"),
            ("a/+", "a/#"),
            ("a/+", "a"),
            ("a/b", "a/+"),
            ("a/+", "a/b/c"),
            ("+", "#"),
            ("+/+", "+"),
            ("#", "$SYS/#"),
            ("+/a", "$SYS/a"),
            ("#", "$share/g/a"),
            ("a/#", "$share/g/a/b"),
        ];
        for (allowed, filter) in yes {
            assert!(covers(allowed, filter), "{allowed} covers {filter}");
        }
        for (allowed, filter) in no {
            assert!(!covers(allowed, filter), "{allowed} does not cover {filter}");
        }
    }

    #[test]
    fn what_is_covered_matches_nothing_more() {
        // Every filter and topic of up to three levels over a small alphabet.
        let levels = |words: &[&'static str]| {
            let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let mut last = all.clone();
            for _ in 0..2 {
                last = last.iter().flat_map(|head| words.iter().map(move |word| format!("{head}/{word}"))).collect();
                all.extend(last.iter().cloned());
            }
            all
        };
        let topics = levels(&["a", "b", "$s"]);
        let filters: Vec<_> = levels(&["a", "+", "#", "$s"])
            .into_iter()
            .filter(|filter| crate::topic::is_valid_filter(filter, 9))
            .collect();
        for allowed in &filters {
            for filter in &filters {
                let contained = topics.iter().all(|topic| !matches(filter, topic) || matches(allowed, topic));
                if covers(allowed, filter) {
                    assert!(contained, "{allowed} covers {filter}");
                }
            }
        }
    }

    #[test]
    fn the_servers_own_topics_are_never_published() {
        let all = Permissions::all();
        assert!(all.may_publish("a/b") && !all.may_publish("$SYS/broker/uptime"));
        assert!(all.may_subscribe("#") && all.may_subscribe("$SYS/#") && !all.may_subscribe("$share/g/#"));
        let some = Permissions { hidden: vec!["to/+/command".into()], ..Permissions::default() };
        assert!(some.hides("to/a/command") && !some.hides("to/a/reply"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let login = Login {
            listener: "local",
            anonymous: false,
            encrypted: false,
            address: [127, 0, 0, 1].into(),
            client_id: "c",
            user_name: Some("u"),
            password: Some(b"hunter2"),
            has_will: false,
        };
        let printed = format!("{login:?}");
        assert!(
            printed.contains("\"c\"") && !printed.contains("hunter2") && !printed.contains("104, 117"),
            "{printed}"
        );
    }
}
