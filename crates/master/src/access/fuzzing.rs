//! What a fuzzer may do with access, which is private otherwise. Only built with the feature `fuzzing`.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary as _, Result, Unstructured};
use rpicluster_broker::Permissions;
use rpicluster_protocol::{Downward, SlaveId, Topic, TopicRoot, Upward};

use super::login::{of_account, of_slave, of_strangers};
use super::record::{Account, Change, Hash, Labels, Name, PasswordHash, Role, TokenId};
use super::registry::{Decision, Registry, Request};

mod login;

pub use login::login;

/// Few, so that they meet each other: names of slaves, of accounts, and of both.
const NAMES: [&str; 6] = ["a", "b", "pi-1", "home", "x-1", "c"];
/// Fewer than there are names.
const SLAVES_MAX: usize = 3;
/// More steps show nothing new.
const STEPS_MAX: usize = 40;

/// Takes bytes as requests, one after the other, and as filters and topics that are tried after each.
///
/// # Panics
/// If a request changes what it must not, or somebody may do more than he should.
pub fn access(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let mut registry = Registry::new(SLAVES_MAX);
    let mut now = 1_000;
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            return;
        }
        let Ok((passed, request)) = step(&mut bytes) else { return };
        now += u64::from(passed);
        let before = registry.clone();
        match registry.decide(now, request.clone()) {
            Ok(Decision { changes, ends }) => {
                changes.into_iter().for_each(|change| registry.apply(change));
                check_change(&before, &registry, now, &request);
                // Whose secret or access is another one now goes on with nothing.
                let is_touched = |slave: &str| match (before.enrolment(slave), registry.enrolment(slave)) {
                    (Some(before), after) => after != Some(before),
                    (None, _) => false,
                };
                let touched = NAMES.into_iter().find(|name| is_touched(name));
                assert!(touched.is_none() || touched == ends.as_deref(), "{request:?} ends {ends:?}, not {touched:?}");
            }
            Err(denial) => assert!(!denial.to_string().is_empty()),
        }
        check_registry(&registry);
        let (Ok(filter), Ok(topic)) = (text(&mut bytes, true), text(&mut bytes, false)) else { return };
        check_permissions(&registry, &filter, &topic);
    }
}

fn step(bytes: &mut Unstructured<'_>) -> Result<(u8, Request)> {
    let secret = |bytes: &mut Unstructured<'_>| Ok(Hash::of(&[bytes.int_in_range(0..=3_u8)?]));
    let labels = |bytes: &mut Unstructured<'_>| {
        let mut labels = Labels::new();
        if bytes.ratio(1, 4)? {
            labels.insert(String::arbitrary(bytes)?, String::arbitrary(bytes)?);
        }
        Ok(labels)
    };
    let passed = u8::arbitrary(bytes)?;
    let request = match bytes.int_in_range(0..=8)? {
        0 => Request::Enrol { id: name(bytes)?, secret: secret(bytes)?, token: secret(bytes)? },
        1 => {
            let (id, secret, labels) = (name(bytes)?, secret(bytes)?, labels(bytes)?);
            Request::AddSlave { id, secret, labels, replace: bytes.arbitrary()? }
        }
        2 => Request::RemoveSlave { id: name(bytes)?, is_listed: bytes.arbitrary()? },
        3 => Request::CreateToken {
            secret: secret(bytes)?,
            ttl: if bytes.ratio(1, 8)? { bytes.arbitrary()? } else { bytes.int_in_range(0..=300)? },
            uses: if bytes.ratio(1, 8)? { bytes.arbitrary()? } else { bytes.int_in_range(0..=3)? },
            slave: bytes.arbitrary::<bool>()?.then(|| name(bytes)).transpose()?,
            labels: labels(bytes)?,
            replace: bytes.arbitrary()?,
        },
        4 => Request::RevokeToken(TokenId::of(&secret(bytes)?)),
        5 => Request::AddAccount(Account {
            name: name(bytes)?,
            role: *bytes.choose(&[Role::Observer, Role::HomeAssistant, Role::Custom, Role::Custom])?,
            password: PasswordHash::new("$argon2id$"),
            publish: filters(bytes)?,
            subscribe: filters(bytes)?,
        }),
        6 => Request::RemoveAccount(name(bytes)?),
        7 => Request::CreateApiToken { name: name(bytes)?, secret: secret(bytes)? },
        _ => Request::RevokeApiToken(name(bytes)?),
    };
    Ok((passed, request))
}

fn name<T: std::str::FromStr>(bytes: &mut Unstructured<'_>) -> Result<T> {
    bytes.choose(&NAMES)?.parse().map_err(|_| arbitrary::Error::IncorrectFormat)
}

fn filters(bytes: &mut Unstructured<'_>) -> Result<Vec<String>> {
    let count = bytes.int_in_range(0..=3)?;
    (0..count).map(|_| text(bytes, true)).collect()
}

/// A topic, or a filter: of the cluster mostly.
fn text(bytes: &mut Unstructured<'_>, is_filter: bool) -> Result<String> {
    const LEVELS: [&str; 10] = ["rpicluster", "from", "to", "master", "state", "pi-1", "a", "", "$share", "$SYS"];
    if bytes.ratio(1, 2)? {
        let root = TopicRoot::default();
        let id: SlaveId = name(bytes)?;
        let topic = match bytes.int_in_range(0..=5)? {
            0 => root.name(&Topic::MasterState),
            1 => root.name(&Topic::From(id, Upward::State)),
            2 => root.name(&Topic::From(id, Upward::Output)),
            3 => root.name(&Topic::To(id, Downward::Command)),
            4 if is_filter => root.to_slave(&id),
            _ if is_filter => root.from_slave(&id),
            _ => root.name(&Topic::To(id, Downward::Reply)),
        };
        return Ok(topic);
    }
    let mut levels = Vec::new();
    for _ in 0..=bytes.int_in_range(0..=4)? {
        levels.push(match bytes.int_in_range(0..=7)? {
            0 if is_filter => "+",
            1 if is_filter => "#",
            2 => bytes.choose(&NAMES)?,
            _ => bytes.choose(&LEVELS)?,
        });
    }
    Ok(levels.join("/"))
}

/// What only a token may bring about, and at which price.
fn check_change(before: &Registry, after: &Registry, now: u64, request: &Request) {
    let uses = |registry: &Registry| registry.tokens().map(|token| (token.id, token.uses_left)).collect::<Vec<_>>();
    let Request::Enrol { id, secret, token } = request else { return };
    let known = before.enrolment(id.as_str());
    if known.is_some_and(|known| known.secret == *secret) {
        assert_eq!(before, after, "the same secret again uses nothing up");
        return;
    }
    let token_before = before.tokens().find(|known| known.secret == *token).expect("nobody enrols without a token");
    let is_of_another = token_before.slave.as_ref().is_some_and(|slave| slave != id);
    assert!(token_before.expires > now && !is_of_another, "{token_before:?} is of no use to {id}");
    assert!(known.is_none() || token_before.replace, "{id} was taken from another machine");
    let left = after.tokens().find(|known| known.secret == *token).map(|token| token.uses_left);
    assert_eq!(left, token_before.uses_left.checked_sub(1), "a use costs one");
    let enrolled = after.enrolment(id.as_str()).expect("it is enrolled");
    assert!(enrolled.secret == *secret && enrolled.labels == token_before.labels);
    // Others' tokens are as they were, but for those whose time is over.
    let others = uses(before).into_iter().filter(|(token, _)| *token != token_before.id);
    let others: Vec<_> = others.filter(|use_of| !is_expired(before, use_of.0, now)).collect();
    let others_after: Vec<_> = uses(after).into_iter().filter(|(token, _)| *token != token_before.id).collect();
    assert_eq!(others_after, others);
}

fn is_expired(registry: &Registry, id: TokenId, now: u64) -> bool {
    registry.tokens().any(|token| token.id == id && token.expires <= now)
}

/// What holds of every registry.
fn check_registry(registry: &Registry) {
    let slaves = slaves(registry);
    assert!(slaves.len() <= SLAVES_MAX, "{slaves:?}");
    for account in registry.accounts() {
        assert!(registry.enrolment(account.name.as_str()).is_none(), "{} is a slave and an account", account.name);
        let has_lists = !account.publish.is_empty() || !account.subscribe.is_empty();
        assert_eq!(has_lists, account.role == Role::Custom, "{account:?}");
        let filters = account.publish.iter().chain(&account.subscribe);
        assert!(filters.clone().all(|filter| !filter.starts_with("$share/") && !filter.is_empty()), "{account:?}");
    }
    // A registry that is made of what the store would hold is the same.
    let mut again = Registry::new(SLAVES_MAX);
    slaves.iter().filter_map(|id| registry.enrolment(id)).for_each(|e| again.apply(Change::SlaveEnrolled(e.clone())));
    registry.tokens().for_each(|token| again.apply(Change::TokenSet(token.clone())));
    registry.accounts().for_each(|account| again.apply(Change::AccountAdded(account.clone())));
    registry.api_tokens().for_each(|token| again.apply(Change::ApiTokenAdded(token.clone())));
    assert_eq!(&again, registry);
}

fn slaves(registry: &Registry) -> BTreeSet<&'static str> {
    NAMES.into_iter().filter(|name| registry.enrolment(name).is_some()).collect()
}

/// Nobody reaches further than what he is for, whatever he tries.
fn check_permissions(registry: &Registry, filter: &str, topic: &str) {
    let root = TopicRoot::default();
    for id in slaves(registry) {
        let id: SlaveId = id.parse().expect("it is enrolled");
        let may = of_slave(&root, &id);
        assert!(!may.may_publish(topic) || is_below(topic, &root.from_slave(&id)), "{id} publishes {topic:?}");
        let reads = |filter: &str| is_below(filter, &root.to_slave(&id)) || filter == root.name(&Topic::MasterState);
        assert!(!may.may_subscribe(filter) || reads(filter), "{id} subscribes to {filter:?}");
    }
    for account in registry.accounts() {
        let may = of_account(&root, account);
        check_own_topics(&may, filter, topic);
        match account.role {
            Role::Observer => assert!(!may.may_publish(topic), "an observer publishes {topic:?}"),
            Role::HomeAssistant => {
                let is_the_clusters = topic.starts_with(root.as_str());
                assert!(!is_the_clusters || !may.may_publish(topic), "home assistant publishes {topic:?}");
                let all_orders = root.to_every_slave(Downward::Command);
                assert!(!may.may_subscribe(&all_orders) && !may.may_subscribe("#"));
            }
            Role::Custom => {
                assert!(!account.publish.is_empty() || !may.may_publish(topic), "{account:?} publishes {topic:?}");
                assert!(!account.subscribe.is_empty() || !may.may_subscribe(filter), "{account:?} reads {filter:?}");
            }
        }
    }
    let may = of_strangers(&root);
    check_own_topics(&may, filter, topic);
    assert!(!may.may_publish(topic), "a stranger publishes {topic:?}");
    if let Ok(topic_of) = root.parse(topic) {
        let is_secret = matches!(
            topic_of,
            Topic::To(_, Downward::Command) | Topic::From(_, Upward::Task) | Topic::From(_, Upward::Output)
        );
        assert_eq!(may.hides(topic), is_secret, "{topic:?}");
    }
}

/// The server's topics are nobody's, and a shared subscription would get around what is hidden.
fn check_own_topics(may: &Permissions, filter: &str, topic: &str) {
    assert!(!topic.starts_with('$') || !may.may_publish(topic), "{topic:?} was published");
    assert!(!filter.starts_with("$share/") || !may.may_subscribe(filter), "{filter:?} was subscribed to");
}

/// Whether a text begins with the levels of a filter that ends with `/#`.
fn is_below(text: &str, filter: &str) -> bool {
    let above = filter.strip_suffix("/#").unwrap_or(filter);
    text.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A slave's id or an account's name, which are the same texts.
fn parsed_name(text: &str) -> Option<Name> {
    text.parse().ok()
}
