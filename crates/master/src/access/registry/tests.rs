use super::super::record::PasswordHash;
use super::*;

const NOW: u64 = 1_700_000_000;
const DAY: u64 = 86_400;

fn id(text: &str) -> SlaveId {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn hash(text: &str) -> Hash {
    Hash::of(text.as_bytes())
}

fn token(secret: &str) -> Request {
    let labels = Labels::from([("room".to_owned(), "lab".to_owned())]);
    Request::CreateToken { secret: hash(secret), ttl: DAY, uses: 1, slave: None, labels, replace: false }
}

fn enrol(slave: &str, secret: &str, token: &str) -> Request {
    Request::Enrol { id: id(slave), secret: hash(secret), token: hash(token) }
}

fn add_slave(slave: &str, replace: bool) -> Request {
    Request::AddSlave { id: id(slave), secret: hash("added"), labels: Labels::new(), replace }
}

fn account(text: &str, role: Role, publish: &[&str], subscribe: &[&str]) -> Request {
    let list = |filters: &[&str]| filters.iter().map(|filter| (*filter).to_owned()).collect();
    let password = PasswordHash::new("$argon2id$");
    Request::AddAccount(Account {
        name: name(text),
        role,
        password,
        publish: list(publish),
        subscribe: list(subscribe),
    })
}

impl Registry {
    /// Decides, and makes what was decided.
    fn take(&mut self, now: u64, request: Request) -> Result<Decision, Denial> {
        let decision = self.decide(now, request)?;
        decision.changes.iter().cloned().for_each(|change| self.apply(change));
        Ok(decision)
    }

    fn uses_left(&self, secret: &str) -> u32 {
        self.tokens[&TokenId::of(&hash(secret))].uses_left
    }
}

fn registry() -> Registry {
    Registry::new(10)
}

fn invalid(result: Result<Decision, Denial>) -> String {
    match result {
        Err(Denial::Invalid(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_is_used_once_and_its_slave_again_and_again() {
    let mut registry = registry();
    registry.take(NOW, token("t")).unwrap();
    let first = registry.take(NOW + 1, enrol("pi", "s", "t")).unwrap();
    assert_eq!(first.ends, None);
    let enrolled = registry.enrolment("pi").unwrap();
    assert_eq!((enrolled.secret, enrolled.created, enrolled.labels["room"].as_str()), (hash("s"), NOW + 1, "lab"));
    assert_eq!(registry.uses_left("t"), 0);

    assert_eq!(registry.take(NOW + 2, enrol("pi", "s", "t")), Ok(Decision::default()), "its CONNACK was lost");
    assert_eq!(registry.take(NOW + 2, enrol("pi-2", "s2", "t")), Err(Denial::TokenUsedUp));
    registry.take(NOW + 3, Request::RevokeToken(TokenId::of(&hash("t")))).unwrap();
    assert_eq!(registry.take(NOW + 4, enrol("pi", "s", "t")), Ok(Decision::default()), "the secret proves it");
    assert_eq!(registry.take(NOW + 4, enrol("pi-2", "s2", "t")), Err(Denial::TokenUnknown));
}

#[test]
fn a_token_with_the_same_beginning_of_its_hash_opens_nothing() {
    let mut registry = registry();
    registry.take(NOW, token("t")).unwrap();
    let mut other = *hash("t").as_bytes();
    other[31] ^= 1;
    let request = Request::Enrol { id: id("pi"), secret: hash("s"), token: Hash::from_bytes(other) };
    assert_eq!(registry.take(NOW, request), Err(Denial::TokenUnknown));
}

#[test]
fn a_token_expires_at_its_second_and_is_swept_by_the_next_change() {
    let mut registry = registry();
    registry.take(NOW, token("t")).unwrap();
    assert!(registry.decide(NOW + DAY - 1, enrol("pi", "s", "t")).is_ok());
    assert_eq!(registry.decide(NOW + DAY, enrol("pi", "s", "t")), Err(Denial::TokenExpired));
    registry.take(NOW + DAY - 1, account("a", Role::Observer, &[], &[])).unwrap();
    assert_eq!(registry.tokens().count(), 1);
    let swept = registry.take(NOW + DAY, account("b", Role::Observer, &[], &[])).unwrap();
    assert_eq!(swept.changes[0], Change::TokenRemoved(TokenId::of(&hash("t"))));
    assert_eq!(registry.decide(NOW + DAY, enrol("pi", "s", "t")), Err(Denial::TokenUnknown));
    // A clock that was put back makes nothing valid again.
    assert_eq!(registry.decide(NOW, enrol("pi", "s", "t")), Err(Denial::TokenUnknown));
}

#[test]
fn an_id_belongs_to_its_secret_unless_the_token_replaces() {
    let mut registry = registry();
    let replacing = |secret: &str| match token(secret) {
        Request::CreateToken { secret, ttl, uses, slave, labels, .. } => {
            Request::CreateToken { secret, ttl, uses, slave, labels, replace: true }
        }
        other => panic!("{other:?}"),
    };
    for request in [token("t1"), token("t2"), replacing("t3")] {
        registry.take(NOW, request).unwrap();
    }
    registry.take(NOW, enrol("pi", "old", "t1")).unwrap();
    let taken = registry.take(NOW, enrol("pi", "new", "t2")).unwrap_err();
    assert_eq!(taken, Denial::IdTaken(id("pi")));
    assert!(taken.to_string().contains("--id") && taken.to_string().contains("--replace"), "{taken}");
    assert_eq!(registry.uses_left("t2"), 1, "who was refused has used nothing up");

    let replaced = registry.take(NOW, enrol("pi", "new", "t3")).unwrap();
    assert_eq!(replaced.ends.as_deref(), Some("pi"));
    assert_eq!(registry.enrolment("pi").unwrap().secret, hash("new"));
    assert_eq!(registry.take(NOW, enrol("pi", "old", "t2")), Err(Denial::IdTaken(id("pi"))));
    assert_eq!(registry.take(NOW, add_slave("pi", false)), Err(Denial::IdTaken(id("pi"))));
    assert_eq!(registry.take(NOW, add_slave("pi", true)).unwrap().ends.as_deref(), Some("pi"));
    assert_eq!(registry.take(NOW, add_slave("pi-2", true)).unwrap().ends, None);
}

#[test]
fn a_bound_token_is_for_one_slave() {
    let mut registry = registry();
    let bound = Request::CreateToken {
        secret: hash("t"),
        ttl: DAY,
        uses: 1,
        slave: Some(id("pi-1")),
        labels: Labels::new(),
        replace: false,
    };
    registry.take(NOW, bound).unwrap();
    assert_eq!(registry.take(NOW, enrol("pi-2", "s", "t")), Err(Denial::TokenOfAnother(id("pi-1"))));
    assert!(registry.take(NOW, enrol("pi-1", "s", "t")).is_ok());
}

#[test]
fn slaves_and_accounts_share_one_set_of_names() {
    let mut registry = registry();
    registry.take(NOW, add_slave("pi", false)).unwrap();
    registry.take(NOW, account("home", Role::Observer, &[], &[])).unwrap();
    registry.take(NOW, token("t")).unwrap();
    assert_eq!(registry.take(NOW, account("pi", Role::Observer, &[], &[])), Err(Denial::NameIsSlave(name("pi"))));
    assert_eq!(registry.take(NOW, add_slave("home", true)), Err(Denial::IdIsAccount(id("home"))));
    assert_eq!(registry.take(NOW, enrol("home", "s", "t")), Err(Denial::IdIsAccount(id("home"))));
    let twice = registry.take(NOW, account("home", Role::Observer, &[], &[]));
    assert_eq!(twice, Err(Denial::Exists { what: "account", name: name("home") }));
}

#[test]
fn what_is_removed_is_gone_and_its_sessions_end() {
    let mut registry = registry();
    registry.take(NOW, add_slave("pi", false)).unwrap();
    let remove = |is_listed| Request::RemoveSlave { id: id("pi"), is_listed };
    let removed = registry.take(NOW, remove(true)).unwrap();
    assert_eq!((removed.changes, removed.ends.as_deref()), (vec![Change::SlaveRemoved(id("pi"))], Some("pi")));
    assert!(registry.enrolment("pi").is_none());
    assert!(registry.take(NOW, remove(true)).is_ok(), "listed, but never enrolled");
    assert!(matches!(registry.take(NOW, remove(false)), Err(Denial::NotKnown { what: "slave", .. })));

    registry.take(NOW, account("home", Role::HomeAssistant, &[], &[])).unwrap();
    let removed = registry.take(NOW, Request::RemoveAccount(name("home"))).unwrap();
    assert_eq!(removed.ends.as_deref(), Some("home"));
    assert!(registry.account("home").is_none());
    let again = registry.take(NOW, Request::RemoveAccount(name("home")));
    assert!(matches!(again, Err(Denial::NotKnown { what: "account", .. })));
    let unknown = registry.take(NOW, Request::RevokeToken(TokenId::of(&hash("x"))));
    assert!(matches!(unknown, Err(Denial::NotKnown { what: "token", .. })));
}

#[test]
fn api_tokens_are_found_by_their_secret() {
    let mut registry = registry();
    for text in ["a", "b"] {
        registry.take(NOW, Request::CreateApiToken { name: name(text), secret: hash(text) }).unwrap();
    }
    assert_eq!(registry.api_token(&hash("a")).map(Name::as_str), Some("a"));
    assert_eq!(registry.api_token(&hash("c")), None);
    let twice = registry.take(NOW, Request::CreateApiToken { name: name("a"), secret: hash("c") });
    assert_eq!(twice, Err(Denial::Exists { what: "API token", name: name("a") }));
    registry.take(NOW, Request::RevokeApiToken(name("a"))).unwrap();
    assert_eq!(registry.api_token(&hash("a")), None);
    assert!(registry.take(NOW, Request::RevokeApiToken(name("a"))).is_err());
}

#[test]
fn values_that_cannot_be_used_are_named() {
    let registry = registry();
    let with =
        |ttl, uses, labels| Request::CreateToken { secret: hash("t"), ttl, uses, slave: None, labels, replace: false };
    let label = |name: &str, value: &str| Labels::from([(name.to_owned(), value.to_owned())]);
    for (ttl, uses) in [(0, 1), (TOKEN_TTL_MAX + 1, 1), (1, 0), (1, TOKEN_USES_MAX + 1)] {
        assert!(invalid(registry.decide(NOW, with(ttl, uses, Labels::new()))).contains("token"));
    }
    assert!(registry.decide(NOW, with(TOKEN_TTL_MAX, TOKEN_USES_MAX, label("a", ""))).is_ok());
    let many = (0..=LABELS_MAX).map(|number| (number.to_string(), String::new())).collect();
    let long = "x".repeat(256);
    for labels in [label("", "x"), label(&long[..64], "x"), label("a", &long), label("a\n", "x"), many] {
        assert!(invalid(registry.decide(NOW, with(1, 1, labels))).contains("label"));
    }

    let unknown = |role, publish: &[&str], subscribe: &[&str]| {
        invalid(registry.decide(NOW, account("a", role, publish, subscribe)))
    };
    assert!(unknown(Role::Observer, &["a"], &[]).contains("custom"));
    assert!(unknown(Role::Custom, &[], &[]).contains("custom"));
    for bad in ["", "a/#/b", "a+", "$share/g/a", "a\0", &"a/".repeat(32), &"x".repeat(1025)] {
        assert!(unknown(Role::Custom, &[bad], &[]).starts_with("publish: "), "{bad:?}");
        assert!(unknown(Role::Custom, &["a"], &[bad]).starts_with("subscribe: "), "{bad:?}");
    }
    let many = vec!["a"; FILTERS_MAX + 1];
    assert!(unknown(Role::Custom, &many, &[]).contains("100"));
    assert!(registry.decide(NOW, account("a", Role::Custom, &many[1..], &["+/b/#", "$SYS/#"])).is_ok());
}

#[test]
fn everything_is_bounded() {
    let mut registry = registry();
    for number in 0..10 {
        registry.take(NOW, add_slave(&format!("pi-{number}"), false)).unwrap();
    }
    assert_eq!(registry.take(NOW, add_slave("one-more", false)), Err(Denial::Full { what: "slaves", limit: 10 }));
    assert!(registry.take(NOW, add_slave("pi-1", true)).is_ok());
    for number in 0..ACCOUNTS_MAX {
        registry.take(NOW, account(&format!("a{number}"), Role::Observer, &[], &[])).unwrap();
    }
    assert!(matches!(registry.take(NOW, account("b", Role::Observer, &[], &[])), Err(Denial::Full { .. })));
    for number in 0..API_TOKENS_MAX {
        let token = Request::CreateApiToken { name: name(&format!("t{number}")), secret: hash(&number.to_string()) };
        registry.take(NOW, token).unwrap();
    }
    let one_more = Request::CreateApiToken { name: name("t"), secret: hash("t") };
    assert!(matches!(registry.take(NOW, one_more), Err(Denial::Full { .. })));

    // Applied directly: deciding looks at all, which takes its time for 10,000.
    for number in 0..TOKENS_MAX as u32 {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let secret = Hash::from_bytes(bytes);
        registry.apply(Change::TokenSet(Token {
            id: TokenId::of(&secret),
            secret,
            created: NOW,
            expires: NOW + DAY,
            uses_left: 1,
            slave: None,
            labels: Labels::new(),
            replace: false,
        }));
    }
    assert_eq!(registry.tokens.len(), TOKENS_MAX);
    assert!(matches!(registry.take(NOW, token("late")), Err(Denial::Full { what: "tokens", .. })));
    registry.take(NOW + DAY, token("late")).unwrap();
    assert_eq!(registry.tokens.len(), 1, "the expired ones were swept");
}
