//! Who may connect, with which permissions, and how that changes.
//!
//! [`Registry`] decides, here it is done: a change is decided on what holds now, written by the engine, then made to hold,
//! and only then answered. Changes come one after another, so that no use of a token is given away twice.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rpicluster_broker::{BrokerHandle, ClientReport, Permissions};
use rpicluster_protocol::{JoinToken, SlaveId, SlaveSecret, TopicRoot};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use tracing::info;

use crate::clock;
use crate::engine::{Input, NotWritten};
use crate::loglimit::{Permit, SharedLogLimit};
use crate::view::View;

mod login;
mod passwords;
mod record;
mod registry;

use passwords::{PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, Passwords};
pub(crate) use record::{Account, ApiToken, Change, Enrolment, Hash, Labels, Name, PasswordHash, Role, Token, TokenId};
pub(crate) use registry::Denial;
use registry::{Decision, Registry, Request};

/// How long the removal of a slave waits for what that slave said last: usually a millisecond, but the master may be busy.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(5);

/// What the text of an API token begins with: the version of its form.
const API_TOKEN_PREFIX: &str = "rpiapi1.";

/// Lines about joining: 1,000 slaves that join at once are a few dozen lines.
const LOG: (u32, Duration) = (40, Duration::from_secs(2));

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Access(Arc<Inner>);

struct Inner {
    root: TopicRoot,
    registry: RwLock<Registry>,
    /// Held from a decision until it holds.
    turn: Arc<Mutex<()>>,
    /// Weak: the broker, which holds us, outlives the engine.
    engine: mpsc::WeakSender<Input>,
    view: Arc<View>,
    passwords: Passwords,
    ca_fingerprint: Option<[u8; 32]>,
    is_external: bool,
    /// Set once the broker is bound, which asks us who may connect.
    broker: OnceLock<BrokerHandle>,
    log: SharedLogLimit,
}

/// What access works with.
pub(crate) struct Surroundings {
    pub(crate) root: TopicRoot,
    pub(crate) view: Arc<View>,
    pub(crate) engine: mpsc::WeakSender<Input>,
    /// SHA-256 of the CA's certificate: without it nobody could join by a token, which names the master to trust.
    pub(crate) ca_fingerprint: Option<[u8; 32]>,
    /// Others run the broker, and say who may connect there.
    pub(crate) is_external: bool,
    pub(crate) slaves_max: usize,
}

/// What a new token is for.
#[derive(Debug, Clone)]
pub(crate) struct TokenWish {
    pub(crate) ttl: Duration,
    pub(crate) uses: u32,
    pub(crate) slave: Option<SlaveId>,
    pub(crate) labels: Labels,
    pub(crate) replace: bool,
}

/// A new account. `Debug` would show its password.
pub(crate) struct AccountWish {
    pub(crate) name: Name,
    pub(crate) role: Role,
    pub(crate) password: String,
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessError {
    /// It may not be.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Without a CA there is nothing that a slave could trust.
    #[error("this master has no certificate, and without TLS nobody can join by a token: use `rpicluster slaves add`")]
    NoCertificate,
    /// Who may connect is not ours to say.
    #[error(
        "the broker of this cluster is not the master's own ([cluster] broker): make slaves' and other accounts there; \
         `rpicluster acl` prints the rules and how"
    )]
    External,
    /// The id belonged to a slave of which messages may still be on the way.
    #[error("{0} is just being removed: try again in a few seconds")]
    Leaving(SlaveId),
    /// It could not be written.
    #[error(transparent)]
    NotWritten(#[from] NotWritten),
    /// The master stops.
    #[error("the master stops")]
    Stopping,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl Access {
    /// Access as `changes` from the store left it.
    pub(crate) fn new(surroundings: Surroundings, changes: Vec<Change>) -> Access {
        let Surroundings { root, view, engine, ca_fingerprint, is_external, slaves_max } = surroundings;
        let mut registry = Registry::new(slaves_max);
        changes.into_iter().for_each(|change| registry.apply(change));
        Access(Arc::new(Inner {
            root,
            registry: RwLock::new(registry),
            turn: Arc::default(),
            engine,
            view,
            passwords: Passwords::new(),
            ca_fingerprint,
            is_external,
            broker: OnceLock::new(),
            log: SharedLogLimit::new(LOG.0, LOG.1),
        }))
    }

    /// Whose sessions can be ended from now on.
    pub(crate) fn attach(&self, broker: BrokerHandle) {
        // There is one broker; a second one would have authenticated with another access.
        let _ = self.0.broker.set(broker);
    }

    /// Whether others run the broker and its accounts.
    pub(crate) fn is_external(&self) -> bool {
        self.0.is_external
    }

    /// A token to carry to a new slave, with what is public of it.
    pub(crate) async fn create_token(&self, wish: TokenWish) -> Result<(JoinToken, Token), AccessError> {
        self.require_own_broker()?;
        let ca_fingerprint = self.0.ca_fingerprint.ok_or(AccessError::NoCertificate)?;
        let TokenWish { ttl, uses, slave, labels, replace } = wish;
        loop {
            let token = JoinToken { ca_fingerprint, secret: random()? };
            let secret = Hash::of(&token.secret);
            let (slave, labels, ttl) = (slave.clone(), labels.clone(), ttl.as_secs());
            let request = Request::CreateToken { secret, ttl, uses, slave, labels, replace };
            let changes = match self.change(request).await {
                Err(AccessError::Denied(Denial::TokenIdTaken)) => continue,
                result => result?,
            };
            let made = changes.into_iter().find_map(|change| match change {
                Change::TokenSet(token) => Some(token),
                _ => None,
            });
            return made.map(|made| (token, made)).ok_or(AccessError::Stopping);
        }
    }

    /// All tokens, also those that have expired and are not swept yet.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.registry().tokens().cloned().collect()
    }

    pub(crate) async fn revoke_token(&self, id: TokenId) -> Result<(), AccessError> {
        self.change(Request::RevokeToken(id)).await.map(drop)
    }

    /// A secret for a slave that cannot enrol by itself.
    pub(crate) async fn add_slave(
        &self,
        id: SlaveId,
        labels: Labels,
        replace: bool,
    ) -> Result<SlaveSecret, AccessError> {
        self.require_own_broker()?;
        let secret = SlaveSecret::from_random(random()?);
        let hash = Hash::of(secret.to_string().as_bytes());
        self.change(Request::AddSlave { id, secret: hash, labels, replace }).await?;
        Ok(secret)
    }

    /// Forgets a slave and ends its sessions; at a broker that others run, its account and its sessions are theirs to end.
    pub(crate) async fn remove_slave(&self, id: SlaveId) -> Result<(), AccessError> {
        let is_listed = self.0.view.get(id.as_str()).is_some();
        self.change(Request::RemoveSlave { id, is_listed }).await.map(drop)
    }

    /// The labels that the slave was given when it enrolled.
    pub(crate) fn labels(&self, id: &SlaveId) -> Labels {
        self.registry().enrolment(id.as_str()).map(|enrolment| enrolment.labels.clone()).unwrap_or_default()
    }

    pub(crate) async fn add_account(&self, wish: AccountWish) -> Result<Account, AccessError> {
        self.require_own_broker()?;
        let AccountWish { name, role, password, publish, subscribe } = wish;
        if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&password.len()) {
            let problem = format!("a password has {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes");
            return Err(Denial::Invalid(problem).into());
        }
        let password = self.0.passwords.hash(password).await.ok_or(AccessError::Random)?;
        let account = Account { name, role, password, publish, subscribe };
        self.change(Request::AddAccount(account.clone())).await?;
        Ok(account)
    }

    /// What an account may do.
    pub(crate) fn permissions(&self, account: &Account) -> Permissions {
        login::of_account(&self.0.root, account)
    }

    /// All accounts.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        self.registry().accounts().cloned().collect()
    }

    /// Removes an account and ends its sessions.
    pub(crate) async fn remove_account(&self, name: Name) -> Result<(), AccessError> {
        self.change(Request::RemoveAccount(name)).await.map(drop)
    }

    /// The text of a new API token, which nobody can be told again.
    pub(crate) async fn create_api_token(&self, name: Name) -> Result<String, AccessError> {
        let text = format!("{API_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()?));
        self.change(Request::CreateApiToken { name, secret: Hash::of(text.as_bytes()) }).await?;
        Ok(text)
    }

    /// All API tokens.
    pub(crate) fn api_tokens(&self) -> Vec<ApiToken> {
        self.registry().api_tokens().cloned().collect()
    }

    pub(crate) async fn revoke_api_token(&self, name: Name) -> Result<(), AccessError> {
        self.change(Request::RevokeApiToken(name)).await.map(drop)
    }

    /// Whose API token this text is.
    #[allow(dead_code, reason = "the layer that asks for it is not here yet")]
    pub(crate) fn check_api_token(&self, text: &str) -> Option<Name> {
        self.registry().api_token(&Hash::of(text.as_bytes())).cloned()
    }

    /// Who is connected to the broker or has a session there.
    pub(crate) fn clients(&self) -> Vec<ClientReport> {
        self.0.broker.get().map(BrokerHandle::clients).unwrap_or_default()
    }

    /// Decides, writes, makes it hold, ends the sessions that must not go on. The one way in which anything changes.
    async fn change(&self, request: Request) -> Result<Vec<Change>, AccessError> {
        // What is denied, or holds already, need not wait for the store.
        if self.decide(request.clone())?.changes.is_empty() {
            return Ok(Vec::new());
        }
        let turn = self.0.turn.clone().lock_owned().await;
        let decision = self.decide(request)?;
        let changes = decision.changes.clone();
        if changes.is_empty() {
            return Ok(changes);
        }
        // A task of its own: whoever asked may go away, but what is written must come to hold.
        let carrying_out = tokio::spawn(self.clone().carry_out(decision, turn));
        carrying_out.await.map_err(|_| AccessError::Stopping)??;
        Ok(changes)
    }

    fn decide(&self, request: Request) -> Result<Decision, AccessError> {
        if let Request::Enrol { id, .. } | Request::AddSlave { id, .. } = &request
            && self.0.view.is_leaving(id)
        {
            return Err(AccessError::Leaving(id.clone()));
        }
        Ok(self.registry().decide(clock::wall().unix_ms() / 1_000, request)?)
    }

    async fn carry_out(self, decision: Decision, turn: OwnedMutexGuard<()>) -> Result<(), AccessError> {
        let Decision { changes, ends } = decision;
        let mark = Bytes::from(random::<16>()?.to_vec());
        let removed = changes.iter().find_map(|change| match change {
            Change::SlaveRemoved(id) => Some(id.clone()),
            _ => None,
        });
        let (done, answer) = oneshot::channel();
        self.tell(Input::Commit { changes: changes.clone(), done }).await?;
        answer.await.map_err(|_| AccessError::Stopping)??;
        {
            let mut registry = self.0.registry.write().unwrap_or_else(PoisonError::into_inner);
            changes.into_iter().for_each(|change| registry.apply(change));
        }
        drop(turn);
        let own_broker = self.0.broker.get();
        if own_broker.is_none() && !self.0.is_external {
            return Ok(());
        }
        if let Some((broker, account)) = own_broker.zip(ends) {
            broker.end_account(&account).await;
        }
        if let Some(slave) = removed {
            // What was said in its name is on its way, and this comes after it; at our own broker nothing more can be said.
            let farewell = self.0.view.expect_farewell(&slave, mark.clone());
            self.tell(Input::Farewell { slave, mark }).await?;
            // Should it take longer, the id can be had again a little later.
            let _ = tokio::time::timeout(FAREWELL_TIME_MAX, farewell).await;
        }
        Ok(())
    }

    fn require_own_broker(&self) -> Result<(), AccessError> {
        if self.0.is_external { Err(AccessError::External) } else { Ok(()) }
    }

    async fn tell(&self, input: Input) -> Result<(), AccessError> {
        let engine = self.0.engine.upgrade().ok_or(AccessError::Stopping)?;
        engine.send(input).await.map_err(|_| AccessError::Stopping)
    }

    fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.0.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the log who joins and who cannot.
    fn report(&self, address: IpAddr, id: &SlaveId, problem: Option<&AccessError>) {
        let Some(permit) = self.0.log.permit(clock::now()) else { return };
        let suppressed = Permit::suppressed(permit);
        match problem {
            None => info!(%address, slave = %id, suppressed, "slave enrolled"),
            Some(problem) => info!(%address, slave = %id, suppressed, "slave cannot enrol: {problem}"),
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], AccessError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| AccessError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests;
