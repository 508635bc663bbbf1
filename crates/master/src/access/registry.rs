//! Who may connect: decisions without a clock and without I/O.
//!
//! [`Registry::decide`] says what a request changes, or why not; [`Registry::apply`] makes a change that is in the store.
//! A registry is made of what the store holds by the same changes, so that a start differs in nothing from going on.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpicluster_broker::is_valid_filter;
use rpicluster_protocol::SlaveId;

use super::record::{Account, ApiToken, Change, Enrolment, Hash, Labels, Name, Role, Token, TokenId};

/// Every limit of access, with its reason.
pub(crate) mod limits {
    /// Tokens, also those that have expired and are not swept yet: a script that makes one a minute has room for days.
    pub(crate) const TOKENS_MAX: usize = 10_000;
    /// How often one token can be used: more slaves than a master knows.
    pub(crate) const TOKEN_USES_MAX: u32 = 10_000;
    /// How long a token lives, in seconds: a leap year. One that is forgotten must not open the door for ever.
    pub(crate) const TOKEN_TTL_MAX: u64 = 366 * 24 * 60 * 60;
    /// Accounts: far more than the people and programs of a cluster.
    pub(crate) const ACCOUNTS_MAX: usize = 1_000;
    /// API tokens: each request with one is compared with all.
    pub(crate) const API_TOKENS_MAX: usize = 100;
    /// Topic filters in one list of an account: each PUBLISH is compared with all.
    pub(crate) const FILTERS_MAX: usize = 100;
    /// Bytes of such a filter.
    pub(crate) const FILTER_BYTES_MAX: usize = 1_024;
    /// Levels of such a filter.
    pub(crate) const FILTER_LEVELS_MAX: usize = 32;
    /// Labels of a slave, as `[slave] labels` limits them.
    pub(crate) const LABELS_MAX: usize = 32;
    /// Bytes of a label's name.
    pub(crate) const LABEL_NAME_BYTES_MAX: usize = 63;
    /// Bytes of a label's value.
    pub(crate) const LABEL_VALUE_BYTES_MAX: usize = 255;
}
use limits::*;

/// All that is known of who may connect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Registry {
    slaves_max: usize,
    enrolments: BTreeMap<SlaveId, Enrolment>,
    tokens: BTreeMap<TokenId, Token>,
    accounts: BTreeMap<Name, Account>,
    api_tokens: BTreeMap<Name, ApiToken>,
}

/// What somebody wants changed. Secrets come as their hashes.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// A slave shows a token and the secret that it made.
    Enrol { id: SlaveId, secret: Hash, token: Hash },
    /// A slave that cannot enrol by itself.
    AddSlave { id: SlaveId, secret: Hash, labels: Labels, replace: bool },
    /// A slave is to be forgotten; one that is listed need not be enrolled.
    RemoveSlave { id: SlaveId, is_listed: bool },
    /// Labels of an enrolled slave that are set, or taken away.
    SetLabels { id: SlaveId, labels: BTreeMap<String, Option<String>> },
    /// A token of so many uses that lives so many seconds.
    CreateToken { secret: Hash, ttl: u64, uses: u32, slave: Option<SlaveId>, labels: Labels, replace: bool },
    /// A token is of no use any more.
    RevokeToken(TokenId),
    /// An account.
    AddAccount(Account),
    /// An account may not connect any more.
    RemoveAccount(Name),
    /// An API token.
    CreateApiToken { name: Name, secret: Hash },
    /// An API token is of no use any more.
    RevokeApiToken(Name),
}

/// What follows from a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Decision {
    /// To be written all together, then applied in this order. None: what was asked for holds already.
    pub(crate) changes: Vec<Change>,
    /// Whose sessions end once that is done.
    pub(crate) ends: Option<Arc<str>>,
}

/// Why a request is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denial {
    /// No such token, or none any more.
    #[error("this token is not known")]
    TokenUnknown,
    /// Its time is over.
    #[error("this token has expired: make a new one with `rpicluster token create`")]
    TokenExpired,
    /// It was used as often as it may be.
    #[error("this token is used up: make a new one with `rpicluster token create`")]
    TokenUsedUp,
    /// It was made for another slave.
    #[error("this token was made for the id {0}: join with --id {0}, or make a token for this one")]
    TokenOfAnother(SlaveId),
    /// Another machine has the id.
    #[error(
        "the id {0} is taken by another machine: two cards cloned from one image usually; give this one an id of its \
         own with --id, or make a token with --replace"
    )]
    IdTaken(SlaveId),
    /// Accounts and slaves share one set of user names.
    #[error("{0} is the name of an account: choose another id")]
    IdIsAccount(SlaveId),
    /// See [`Denial::IdIsAccount`].
    #[error("{0} is the id of a slave: choose another name")]
    NameIsSlave(Name),
    /// It exists already.
    #[error("{what} {name} exists already: remove it first, or choose another name")]
    Exists {
        /// As in `account`.
        what: &'static str,
        /// Its name.
        name: Name,
    },
    /// Two random numbers begin alike: draw again.
    #[error("a token with this id exists already: try again")]
    TokenIdTaken,
    /// It does not exist.
    #[error("{what} {name} is not known")]
    NotKnown {
        /// As in `account`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There are as many as there may be.
    #[error("there are {limit} {what} already, and no more are possible: remove some first")]
    Full {
        /// As in `accounts`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A value that cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl Registry {
    /// Nobody may connect yet, and no more than `slaves_max` slaves ever.
    pub(crate) fn new(slaves_max: usize) -> Registry {
        Registry {
            slaves_max,
            enrolments: BTreeMap::new(),
            tokens: BTreeMap::new(),
            accounts: BTreeMap::new(),
            api_tokens: BTreeMap::new(),
        }
    }

    /// What a request changes at `now`, in seconds since 1970 UTC. Every change takes the tokens away that have expired.
    ///
    /// Tokens live by the wall clock, unlike everything else here, because they outlive restarts. A head whose clock is
    /// behind, as after a start without network, takes them for longer; it never takes one without its secret or more
    /// often than it may be used.
    pub(crate) fn decide(&self, now: u64, request: Request) -> Result<Decision, Denial> {
        let mut ends = None;
        let changes = match request {
            Request::Enrol { id, secret, token } => {
                let changes = self.enrol(now, &id, secret, &token)?;
                if !changes.is_empty() && self.enrolments.contains_key(&id) {
                    ends = Some(id.as_str().into());
                }
                changes
            }
            Request::AddSlave { id, secret, labels, replace } => {
                check_labels(&labels)?;
                self.check_id(&id, replace)?;
                ends = self.enrolments.contains_key(&id).then(|| id.as_str().into());
                vec![Change::SlaveEnrolled(Enrolment { id, secret, labels, created: now })]
            }
            Request::RemoveSlave { id, is_listed } => {
                known(is_listed || self.enrolments.contains_key(&id), "slave", &id)?;
                ends = Some(id.as_str().into());
                vec![Change::SlaveRemoved(id)]
            }
            Request::SetLabels { id, labels } => self.set_labels(&id, labels)?,
            Request::CreateToken { secret, ttl, uses, slave, labels, replace } => {
                check_labels(&labels)?;
                self.check_token(now, &secret, ttl, uses)?;
                let (id, expires) = (TokenId::of(&secret), now.saturating_add(ttl));
                vec![Change::TokenSet(Token {
                    id,
                    secret,
                    created: now,
                    expires,
                    uses_left: uses,
                    slave,
                    labels,
                    replace,
                })]
            }
            Request::RevokeToken(id) => {
                known(self.tokens.contains_key(&id), "token", &id)?;
                vec![Change::TokenRemoved(id)]
            }
            Request::AddAccount(account) => {
                self.check_account(&account)?;
                vec![Change::AccountAdded(account)]
            }
            Request::RemoveAccount(name) => {
                known(self.accounts.contains_key(&name), "account", &name)?;
                ends = Some(name.as_str().into());
                vec![Change::AccountRemoved(name)]
            }
            Request::CreateApiToken { name, secret } => {
                if self.api_tokens.contains_key(&name) {
                    return Err(Denial::Exists { what: "API token", name });
                }
                room(self.api_tokens.len(), "API tokens", API_TOKENS_MAX)?;
                vec![Change::ApiTokenAdded(ApiToken { name, secret, created: now })]
            }
            Request::RevokeApiToken(name) => {
                known(self.api_tokens.contains_key(&name), "API token", &name)?;
                vec![Change::ApiTokenRemoved(name)]
            }
        };
        if changes.is_empty() {
            return Ok(Decision::default());
        }
        let expired = self.tokens.values().filter(|token| token.expires <= now);
        let swept = expired.map(|token| Change::TokenRemoved(token.id));
        Ok(Decision { changes: swept.chain(changes).collect(), ends })
    }

    /// Makes a change that was decided and written.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::SlaveEnrolled(enrolment) => drop(self.enrolments.insert(enrolment.id.clone(), enrolment)),
            Change::SlaveRemoved(id) => drop(self.enrolments.remove(&id)),
            Change::TokenSet(token) => drop(self.tokens.insert(token.id, token)),
            Change::TokenRemoved(id) => drop(self.tokens.remove(&id)),
            Change::AccountAdded(account) => drop(self.accounts.insert(account.name.clone(), account)),
            Change::AccountRemoved(name) => drop(self.accounts.remove(&name)),
            Change::ApiTokenAdded(token) => drop(self.api_tokens.insert(token.name.clone(), token)),
            Change::ApiTokenRemoved(name) => drop(self.api_tokens.remove(&name)),
        }
    }

    /// The enrolment of this slave.
    pub(crate) fn enrolment(&self, id: &str) -> Option<&Enrolment> {
        self.enrolments.get(id)
    }

    /// The account of this name.
    pub(crate) fn account(&self, name: &str) -> Option<&Account> {
        self.accounts.get(name)
    }

    /// All tokens, by id.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.values()
    }

    /// All accounts, by name.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// All API tokens, by name.
    pub(crate) fn api_tokens(&self) -> impl Iterator<Item = &ApiToken> {
        self.api_tokens.values()
    }

    /// Whose API token this is. All are compared, and each in constant time, so that time tells nothing.
    pub(crate) fn api_token(&self, secret: &Hash) -> Option<&Name> {
        self.api_tokens
            .values()
            .fold(None, |found, token| if token.secret == *secret { Some(&token.name) } else { found })
    }

    fn enrol(&self, now: u64, id: &SlaveId, secret: Hash, token: &Hash) -> Result<Vec<Change>, Denial> {
        // Its CONNACK may have been lost, and the token with it: the secret proves that it is the same machine.
        if self.enrolments.get(id).is_some_and(|enrolment| enrolment.secret == secret) {
            return Ok(Vec::new());
        }
        let token = self.tokens.get(&TokenId::of(token)).filter(|known| known.secret == *token);
        let token = token.ok_or(Denial::TokenUnknown)?;
        if token.expires <= now {
            return Err(Denial::TokenExpired);
        }
        if let Some(other) = token.slave.as_ref().filter(|slave| *slave != id) {
            return Err(Denial::TokenOfAnother(other.clone()));
        }
        let uses_left = token.uses_left.checked_sub(1).ok_or(Denial::TokenUsedUp)?;
        self.check_id(id, token.replace)?;
        let enrolment = Enrolment { id: id.clone(), secret, labels: token.labels.clone(), created: now };
        Ok(vec![Change::SlaveEnrolled(enrolment), Change::TokenSet(Token { uses_left, ..token.clone() })])
    }

    fn set_labels(&self, id: &SlaveId, labels: BTreeMap<String, Option<String>>) -> Result<Vec<Change>, Denial> {
        let enrolment = self.enrolments.get(id);
        let enrolment =
            enrolment.ok_or_else(|| Denial::NotKnown { what: "the enrolment of slave", name: id.to_string() })?;
        let mut changed = enrolment.labels.clone();
        for (name, value) in labels {
            match value {
                Some(value) => changed.insert(name, value),
                None => changed.remove(&name),
            };
        }
        check_labels(&changed)?;
        let is_new = changed != enrolment.labels;
        let enrolment = Enrolment { labels: changed, ..enrolment.clone() };
        Ok(is_new.then_some(Change::SlaveEnrolled(enrolment)).into_iter().collect())
    }

    /// Whether a machine may have this id that does not have it yet.
    fn check_id(&self, id: &SlaveId, replace: bool) -> Result<(), Denial> {
        if self.accounts.contains_key(id.as_str()) {
            return Err(Denial::IdIsAccount(id.clone()));
        }
        match self.enrolments.contains_key(id) {
            true if replace => Ok(()),
            true => Err(Denial::IdTaken(id.clone())),
            false => room(self.enrolments.len(), "slaves", self.slaves_max),
        }
    }

    fn check_token(&self, now: u64, secret: &Hash, ttl: u64, uses: u32) -> Result<(), Denial> {
        if !(1..=TOKEN_TTL_MAX).contains(&ttl) {
            return Err(invalid("a token lives from 1s to 366days"));
        }
        if !(1..=TOKEN_USES_MAX).contains(&uses) {
            return Err(Denial::Invalid(format!("a token has 1 to {TOKEN_USES_MAX} uses")));
        }
        if self.tokens.contains_key(&TokenId::of(secret)) {
            return Err(Denial::TokenIdTaken);
        }
        room(self.tokens.values().filter(|token| token.expires > now).count(), "tokens", TOKENS_MAX)
    }

    fn check_account(&self, account: &Account) -> Result<(), Denial> {
        let Account { name, role, publish, subscribe, .. } = account;
        let listed = !publish.is_empty() || !subscribe.is_empty();
        if listed != (*role == Role::Custom) {
            return Err(invalid("the role custom, and no other, has lists of topic filters (publish, subscribe)"));
        }
        check_filters("publish", publish)?;
        check_filters("subscribe", subscribe)?;
        if self.enrolments.contains_key(name.as_str()) {
            return Err(Denial::NameIsSlave(name.clone()));
        }
        if self.accounts.contains_key(name) {
            return Err(Denial::Exists { what: "account", name: name.clone() });
        }
        room(self.accounts.len(), "accounts", ACCOUNTS_MAX)
    }
}

fn known(is_known: bool, what: &'static str, name: &impl ToString) -> Result<(), Denial> {
    if is_known { Ok(()) } else { Err(Denial::NotKnown { what, name: name.to_string() }) }
}

fn room(count: usize, what: &'static str, limit: usize) -> Result<(), Denial> {
    if count < limit { Ok(()) } else { Err(Denial::Full { what, limit }) }
}

fn invalid(problem: &str) -> Denial {
    Denial::Invalid(problem.to_owned())
}

fn check_labels(labels: &Labels) -> Result<(), Denial> {
    if labels.len() > LABELS_MAX {
        return Err(Denial::Invalid(format!("a slave has at most {LABELS_MAX} labels")));
    }
    for (name, value) in labels {
        let printable = !name.chars().chain(value.chars()).any(char::is_control);
        let name_fits = (1..=LABEL_NAME_BYTES_MAX).contains(&name.len());
        if !printable || !name_fits || value.len() > LABEL_VALUE_BYTES_MAX {
            return Err(Denial::Invalid(format!(
                "label {name:.LABEL_NAME_BYTES_MAX$?}: use printable text, a name of 1 to {LABEL_NAME_BYTES_MAX} bytes \
                 and a value of at most {LABEL_VALUE_BYTES_MAX}"
            )));
        }
    }
    Ok(())
}

fn check_filters(list: &str, filters: &[String]) -> Result<(), Denial> {
    if filters.len() > FILTERS_MAX {
        return Err(Denial::Invalid(format!("{list}: at most {FILTERS_MAX} topic filters")));
    }
    for filter in filters {
        let fits = filter.len() <= FILTER_BYTES_MAX && !filter.chars().any(char::is_control);
        // Shared subscriptions are not offered, so that nothing could ever be covered by one.
        if !fits || !is_valid_filter(filter, FILTER_LEVELS_MAX) || filter.starts_with("$share/") {
            let quoted: String = filter.chars().take(LABEL_VALUE_BYTES_MAX).collect();
            return Err(Denial::Invalid(format!(
                "{list}: {quoted:?} is no topic filter: '+' stands for one whole level, '#' for all that remain"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
