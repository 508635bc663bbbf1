//! The verdict on a CONNECT.

use std::pin::Pin;
use std::sync::Arc;

use rpicluster_broker::{Authenticator, Identity, Login, Permissions, Refusal, RefusalKind, Verdict};
use rpicluster_protocol::{
    Downward, ENROL_PREFIX, HOME_ASSISTANT, HOME_ASSISTANT_STATUS, JoinToken, SlaveId, SlaveSecret, Topic, TopicRoot,
    Upward,
};

use super::record::{Account, Hash, Name, Role};
use super::registry::{Denial, Request};
use super::{Access, AccessError};

/// The account of those who name no user. Names have at least one character, so that nobody else has it.
const ANONYMOUS: &str = "";

impl Authenticator for Access {
    fn authenticate<'a>(&'a self, login: Login<'a>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move { self.judge(&login).await.unwrap_or_else(Verdict::Refuse) })
    }
}

impl Access {
    async fn judge(&self, login: &Login<'_>) -> Result<Verdict, Refusal> {
        let Some(user) = login.user_name else { return self.anonymous(login).map(Verdict::Admit) };
        if !login.encrypted && !login.address.to_canonical().is_loopback() {
            let explanation = "names and passwords are taken over TLS only: use the port of a listener with tls = true";
            return Err(refusal(RefusalKind::NotAuthorized, explanation));
        }
        let password = login.password.unwrap_or_default();
        if let Some(id) = user.strip_prefix(ENROL_PREFIX) {
            return self.enrol(id, password, login).await.map(|()| Verdict::Done);
        }
        if let Some(identity) = self.slave(user, password, login)? {
            return Ok(Verdict::Admit(identity));
        }
        self.account(user, password, login).await.map(Verdict::Admit)
    }

    /// A slave that is not known to us shows a token and the secret that it made, and nothing else.
    async fn enrol(&self, id: &str, password: &[u8], login: &Login<'_>) -> Result<(), Refusal> {
        let id: SlaveId = id.parse().map_err(|error| Refusal {
            guess: true,
            ..refusal(RefusalKind::NotAuthorized, &format!("cannot join: {error}"))
        })?;
        if login.has_will {
            return Err(refusal(RefusalKind::NotAuthorized, "to join takes CONNECT alone: leave the will out"));
        }
        let (token, secret) = joining(password).ok_or_else(wrong)?;
        let request = Request::Enrol {
            id: id.clone(),
            secret: Hash::of(secret.to_string().as_bytes()),
            token: Hash::of(&token.secret),
        };
        let error = match self.change(request).await {
            Ok(changes) => {
                if !changes.is_empty() {
                    self.report(login.address, &id, None);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        self.report(login.address, &id, Some(&error));
        Err(match &error {
            AccessError::Denied(Denial::TokenUnknown) => wrong(),
            // What is told from here on is told to somebody who holds a token of ours.
            AccessError::Denied(Denial::TokenExpired | Denial::TokenUsedUp | Denial::TokenOfAnother(_)) => {
                Refusal { guess: true, ..refusal(RefusalKind::BadCredentials, &error.to_string()) }
            }
            AccessError::Denied(denial) => refusal(RefusalKind::NotAuthorized, &denial.to_string()),
            other => refusal(RefusalKind::Busy, &other.to_string()),
        })
    }

    /// The slave of this name, if there is one: otherwise it may be an account's. That a name is an enrolled slave's can be
    /// told by the time this takes; it can be read in every topic as well.
    fn slave(&self, user: &str, password: &[u8], login: &Login<'_>) -> Result<Option<Identity>, Refusal> {
        let id = {
            let registry = self.registry();
            let Some(enrolment) = registry.enrolment(user) else { return Ok(None) };
            if enrolment.secret != Hash::of(password) {
                return Err(wrong());
            }
            enrolment.id.clone()
        };
        // A slave made of a shell script has a connection for each thing it says: they need client ids of their own, and
        // no slave's id has a slash.
        let rest = login.client_id.strip_prefix(user);
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            let problem = "a slave's client id must be its id, like its user name, or begin with it and a slash";
            return Err(refusal(RefusalKind::ClientId, problem));
        }
        let permissions = Arc::new(of_slave(&self.0.root, &id));
        Ok(Some(Identity { account: user.into(), owns_client_id: true, permissions }))
    }

    async fn account(&self, user: &str, password: &[u8], login: &Login<'_>) -> Result<Identity, Refusal> {
        // What cannot be a name needs no slow comparison: it tells only what everybody knows.
        let name: Name = user.parse().map_err(|_| wrong())?;
        let account = self.registry().account(name.as_str()).cloned();
        let verified = self.0.passwords.verify(account.as_ref(), password, login.address).await;
        let is_right = verified.map_err(|_| {
            refusal(RefusalKind::Busy, "too many passwords are being checked: try again in a few seconds")
        })?;
        // It may have been removed while its password was checked.
        let account = account.filter(|account| is_right && self.registry().account(user) == Some(account));
        let account = account.ok_or_else(wrong)?;
        self.check_client_id(login)?;
        let permissions = Arc::new(of_account(&self.0.root, &account));
        Ok(Identity { account: user.into(), owns_client_id: false, permissions })
    }

    fn anonymous(&self, login: &Login<'_>) -> Result<Identity, Refusal> {
        if !login.anonymous {
            return Err(refusal(RefusalKind::NotAuthorized, "this listener wants a user name and a password"));
        }
        self.check_client_id(login)?;
        let permissions = Arc::new(of_strangers(&self.0.root));
        Ok(Identity { account: ANONYMOUS.into(), owns_client_id: false, permissions })
    }

    /// A slave's client id is that slave's alone, also while it is away.
    fn check_client_id(&self, login: &Login<'_>) -> Result<(), Refusal> {
        match self.registry().enrolment(login.client_id) {
            Some(_) => Err(refusal(RefusalKind::ClientId, "this client id is a slave's: choose another")),
            None => Ok(()),
        }
    }
}

/// What a slave may do, which is all that the protocol asks of it.
pub(crate) fn of_slave(root: &TopicRoot, id: &SlaveId) -> Permissions {
    Permissions {
        publish: vec![root.from_slave(id)],
        subscribe: vec![root.to_slave(id), root.name(&Topic::MasterState)],
        hidden: Vec::new(),
    }
}

/// What an account may do, by its role.
pub(crate) fn of_account(root: &TopicRoot, account: &Account) -> Permissions {
    match account.role {
        Role::Observer => observer(),
        Role::HomeAssistant => {
            let told = [Upward::State, Upward::Details, Upward::Vitals, Upward::Message];
            let mut subscribe = vec![HOME_ASSISTANT.to_owned(), root.name(&Topic::MasterState)];
            subscribe.extend(told.map(|leaf| root.from_every_slave(leaf)));
            Permissions { publish: vec![HOME_ASSISTANT_STATUS.to_owned()], subscribe, hidden: Vec::new() }
        }
        Role::Custom => {
            Permissions { publish: account.publish.clone(), subscribe: account.subscribe.clone(), hidden: Vec::new() }
        }
    }
}

/// Who names no user observes, but does not see what may hold secrets: orders, tasks and their output.
pub(crate) fn of_strangers(root: &TopicRoot) -> Permissions {
    let hidden = vec![
        root.to_every_slave(Downward::Command),
        root.from_every_slave(Upward::Task),
        root.from_every_slave(Upward::Output),
    ];
    Permissions { hidden, ..observer() }
}

fn observer() -> Permissions {
    Permissions { publish: Vec::new(), ..Permissions::all() }
}

fn joining(password: &[u8]) -> Option<(JoinToken, SlaveSecret)> {
    let (token, secret) = std::str::from_utf8(password).ok()?.split_once(':')?;
    Some((token.parse().ok()?, secret.parse().ok()?))
}

/// The answer to everything that may be a guess.
fn wrong() -> Refusal {
    Refusal { kind: RefusalKind::BadCredentials, explanation: None, guess: true }
}

fn refusal(kind: RefusalKind, explanation: &str) -> Refusal {
    Refusal { kind, explanation: Some(explanation.to_owned()), guess: false }
}
