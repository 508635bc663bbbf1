//! CONNECTs of all kinds, against a plain statement of who is to be let in.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use rpicluster_broker::{Authenticator, Login, Verdict};
use rpicluster_protocol::{ENROL_PREFIX, JoinToken, SlaveId, SlaveSecret, TopicRoot};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::super::record::{Enrolment, Token};
use super::super::{Access, Surroundings};
use super::{Account, Change, Hash, Labels, PasswordHash, Role, TokenId, parsed_name};
use crate::engine::Input;
use crate::view::View;

const SLAVES_MAX: usize = 4;
const STEPS_MAX: usize = 20;
const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 7));
const SLAVE: &str = "pi";
const ACCOUNT: &str = "home";
const PASSWORD: &str = "correct horse";

/// One of each kind: plain, for one slave, for taking an id over, expired, never made.
const TOKENS: [Kind; 5] = [
    Kind { uses: 2, slave: None, replace: false, is_good: true },
    Kind { uses: 1, slave: Some("pi-9"), replace: false, is_good: true },
    Kind { uses: 2, slave: None, replace: true, is_good: true },
    Kind { uses: 2, slave: None, replace: true, is_good: false },
    Kind { uses: 0, slave: None, replace: false, is_good: true },
];

struct Kind {
    uses: u32,
    slave: Option<&'static str>,
    replace: bool,
    is_good: bool,
}

/// Takes bytes as CONNECTs, one after the other, and checks that exactly those are let in who should be.
///
/// # Panics
/// If somebody is let in or left out wrongly, or an answer tells what nobody should know.
pub fn login(bytes: &[u8]) {
    thread_local!(static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() });
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| Builder::new_current_thread().build().expect("a runtime can be made"));
        runtime.block_on(log_in(Unstructured::new(bytes)));
    });
}

/// A CONNECT.
#[derive(Debug)]
struct Attempt {
    user: Option<String>,
    password: Option<Vec<u8>>,
    client_id: String,
    encrypted: bool,
    address: IpAddr,
    anonymous: bool,
    has_will: bool,
}

/// What becomes of it: whose it is, enrolled, or nothing.
#[derive(Debug, PartialEq)]
enum Outcome {
    In(String),
    Enrolled,
    Out,
}

/// Who may connect, in the plainest form.
struct Model {
    secrets: BTreeMap<String, String>,
    uses: [u32; TOKENS.len()],
}

async fn log_in(mut bytes: Unstructured<'_>) {
    let (inputs, mut changes) = mpsc::channel(1);
    let surroundings = Surroundings {
        is_external: false,
        root: TopicRoot::default(),
        view: Arc::new(View::new(SLAVES_MAX)),
        engine: inputs.downgrade(),
        ca_fingerprint: Some([7; 32]),
        slaves_max: SLAVES_MAX,
    };
    let access = Access::new(surroundings, at_first());
    // The engine of this access writes nothing down.
    let engine = tokio::spawn(async move {
        while let Some(input) = changes.recv().await {
            if let Input::Commit { done, .. } = input {
                let _ = done.send(Ok(()));
            }
        }
    });
    let secrets = BTreeMap::from([(SLAVE.to_owned(), secret(0).to_string())]);
    let mut model = Model { secrets, uses: TOKENS.map(|kind| kind.uses) };
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        let Ok(attempt) = attempt(&mut bytes) else { break };
        // A name that nobody has costs a slow hash: fuzzing would do nothing else.
        let is_nobody =
            |user: &String| user != ACCOUNT && !model.secrets.contains_key(user) && parsed_name(user).is_some();
        if attempt.user.as_ref().is_some_and(is_nobody) {
            continue;
        }
        let expected = model.judge(&attempt);
        let outcome = try_in(&access, &attempt).await;
        assert_eq!(outcome, expected, "{attempt:?}");
    }
    drop(inputs);
    let _ = engine.await;
}

async fn try_in(access: &Access, attempt: &Attempt) -> Outcome {
    let login = Login {
        listener: "cluster",
        anonymous: attempt.anonymous,
        encrypted: attempt.encrypted,
        address: attempt.address,
        client_id: &attempt.client_id,
        user_name: attempt.user.as_deref(),
        password: attempt.password.as_deref(),
        has_will: attempt.has_will,
    };
    match access.authenticate(login).await {
        Verdict::Admit(identity) => Outcome::In(identity.account.to_string()),
        Verdict::Done => Outcome::Enrolled,
        Verdict::Refuse(refusal) => {
            let told = refusal.explanation.unwrap_or_default();
            let secrets = (0..3)
                .map(|n| secret(n).to_string())
                .chain(TOKENS.iter().enumerate().map(|(n, _)| token(n).to_string()));
            assert!(secrets.chain([PASSWORD.to_owned()]).all(|secret| !told.contains(&secret)), "{told}");
            Outcome::Out
        }
    }
}

impl Model {
    fn judge(&mut self, attempt: &Attempt) -> Outcome {
        let Some(user) = &attempt.user else {
            let is_in = attempt.anonymous && !self.secrets.contains_key(&attempt.client_id);
            return if is_in { Outcome::In(String::new()) } else { Outcome::Out };
        };
        if !attempt.encrypted && !attempt.address.is_loopback() {
            return Outcome::Out;
        }
        let password = attempt.password.as_deref().unwrap_or_default();
        if let Some(id) = user.strip_prefix(ENROL_PREFIX) {
            let is_valid = id.parse::<SlaveId>().is_ok() && !attempt.has_will;
            return if is_valid && self.enrols(id, password) { Outcome::Enrolled } else { Outcome::Out };
        }
        let is_in = match self.secrets.get(user) {
            Some(secret) => {
                let rest = attempt.client_id.strip_prefix(user.as_str());
                let is_own = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                secret.as_bytes() == password && is_own
            }
            None => {
                let is_taken = self.secrets.contains_key(&attempt.client_id);
                user == ACCOUNT && password == PASSWORD.as_bytes() && !is_taken
            }
        };
        if is_in { Outcome::In(user.clone()) } else { Outcome::Out }
    }

    fn enrols(&mut self, id: &str, password: &[u8]) -> bool {
        let text = String::from_utf8_lossy(password);
        let Some((token_text, secret)) = text.split_once(':') else { return false };
        if token_text.parse::<JoinToken>().is_err() || secret.parse::<SlaveSecret>().is_err() {
            return false;
        }
        if self.secrets.get(id).is_some_and(|known| known == secret) {
            return true;
        }
        let shown = token_text.parse::<JoinToken>().map(|token| token.secret).ok();
        let Some(number) = (0..TOKENS.len()).find(|number| shown == Some(token(*number).secret)) else { return false };
        let kind = &TOKENS[number];
        let is_free = match self.secrets.contains_key(id) {
            true => kind.replace,
            false => self.secrets.len() < SLAVES_MAX,
        };
        let is_for_it = kind.slave.is_none_or(|slave| slave == id);
        let enrols = kind.is_good && self.uses[number] > 0 && is_for_it && is_free && id != ACCOUNT;
        if enrols {
            self.uses[number] -= 1;
            self.secrets.insert(id.to_owned(), secret.to_owned());
        }
        enrols
    }
}

fn at_first() -> Vec<Change> {
    let slave = Enrolment {
        id: SLAVE.parse().expect("a slave's id"),
        secret: Hash::of(secret(0).to_string().as_bytes()),
        labels: Labels::new(),
        created: 1,
    };
    let account = Account {
        name: ACCOUNT.parse().expect("a name"),
        role: Role::Observer,
        password: cheap_hash(),
        publish: Vec::new(),
        subscribe: Vec::new(),
    };
    let tokens = TOKENS.iter().enumerate().filter(|(_, kind)| kind.uses > 0).map(|(number, kind)| {
        let secret = Hash::of(&token(number).secret);
        Change::TokenSet(Token {
            id: TokenId::of(&secret),
            secret,
            created: 1,
            expires: if kind.is_good { u64::MAX } else { 2 },
            uses_left: kind.uses,
            slave: kind.slave.map(|slave| slave.parse().expect("a slave's id")),
            labels: Labels::new(),
            replace: kind.replace,
        })
    });
    [Change::SlaveEnrolled(slave), Change::AccountAdded(account)].into_iter().chain(tokens).collect()
}

/// Of [`PASSWORD`], as little work as the algorithm allows.
fn cheap_hash() -> PasswordHash {
    thread_local!(static HASH: OnceCell<PasswordHash> = const { OnceCell::new() });
    HASH.with(|hash| {
        let made = || {
            let params = Params::new(8, 1, 1, None).expect("the least that is possible");
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            let hash: phc::PasswordHash = argon2.hash_password(PASSWORD.as_bytes()).expect("a hash can be made");
            PasswordHash::new(&hash.to_string())
        };
        hash.get_or_init(made).clone()
    })
}

fn secret(number: u8) -> SlaveSecret {
    SlaveSecret::from_random([number; 32])
}

fn token(number: usize) -> JoinToken {
    JoinToken { ca_fingerprint: [7; 32], secret: [number as u8; 16] }
}

fn attempt(bytes: &mut Unstructured<'_>) -> Result<Attempt> {
    const IDS: [&str; 9] = ["pi", "pi-9", "home", "new-1", "new-2", "new-3", "master", "", "Pi"];
    let user = match bytes.int_in_range(0..=7)? {
        0 => None,
        1 => Some(raw(bytes)?),
        2 => Some(ACCOUNT.to_owned()),
        3 | 4 => Some((*bytes.choose(&IDS)?).to_owned()),
        5 => Some(format!("{ENROL_PREFIX}{}", raw(bytes)?)),
        _ => Some(format!("{ENROL_PREFIX}{}", bytes.choose(&IDS)?)),
    };
    let mut password = match bytes.int_in_range(0..=7)? {
        0 => None,
        1 => Some(raw(bytes)?),
        2 => Some(PASSWORD.to_owned()),
        3 | 4 => Some(secret(bytes.int_in_range(0..=2)?).to_string()),
        _ => Some(format!("{}:{}", token(bytes.choose_index(TOKENS.len())?), secret(bytes.int_in_range(0..=2)?))),
    }
    .map(String::into_bytes);
    if let Some(password) = password.as_mut().filter(|password| !password.is_empty())
        && bytes.ratio(1, 8)?
    {
        let at = bytes.choose_index(password.len())?;
        password[at] ^= bytes.arbitrary::<u8>()?;
    }
    let client_id = match bytes.int_in_range(0..=4)? {
        0 => raw(bytes)?,
        1 => SLAVE.to_owned(),
        2 => format!("{}/x", user.clone().unwrap_or_default()),
        _ => user.clone().unwrap_or_default(),
    };
    let (encrypted, address) =
        (bytes.ratio(7, 8)?, if bytes.ratio(1, 8)? { Ipv4Addr::LOCALHOST.into() } else { REMOTE });
    let (anonymous, has_will) = (bytes.arbitrary()?, bytes.ratio(1, 8)?);
    Ok(Attempt { user, password, client_id, encrypted, address, anonymous, has_will })
}

fn raw(bytes: &mut Unstructured<'_>) -> Result<String> {
    let length = bytes.int_in_range(0..=12)?.min(bytes.len());
    Ok(String::from_utf8_lossy(bytes.bytes(length)?).into_owned())
}
