use std::net::IpAddr;

use proptest::prelude::*;
use rpicluster_broker::{Authenticator, Broker, BrokerConfig, Login, RefusalKind, Security, Verdict};
use tempfile::TempDir;

use super::*;
use crate::engine::{self, Engine};
use crate::health::Health;
use crate::store::Store;
use crate::store::private_folder;
use crate::tasks::RunError;

const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 7));

/// Access with an engine and a store behind it.
pub(crate) struct Bench {
    pub(crate) access: Access,
    pub(crate) view: Arc<View>,
    inputs: mpsc::Sender<Input>,
    /// A thread of its own: a test that panics does not wait for it.
    engine: std::thread::JoinHandle<Result<(), RunError>>,
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::open(private_folder())
    }

    /// No enrolment can be written until what is returned is dropped.
    pub(crate) fn break_enrolments(&self) -> impl Drop + use<> {
        crate::store::break_enrolments(self.folder.path())
    }

    fn open(folder: TempDir) -> Bench {
        let store = Store::open(folder.path()).unwrap();
        let changes = store.access().unwrap();
        let (inputs, receiver) = mpsc::channel(100);
        let view = Arc::new(View::new(100));
        let now = clock::now();
        let surroundings = engine::Surroundings {
            view: view.clone(),
            health: Arc::new(Health::new(now, Arc::new(crate::health::Hearing::here()))),
            counters: Arc::default(),
            log: Arc::new(SharedLogLimit::new(100, Duration::from_secs(1))),
            commands: mpsc::channel(100).0,
        };
        let engine = Engine::new(Duration::from_secs(15), store, Vec::new(), surroundings, now);
        let engine = std::thread::spawn(move || engine.run(receiver));
        let surroundings = Surroundings {
            root: TopicRoot::default(),
            view: view.clone(),
            engine: inputs.downgrade(),
            ca_fingerprint: Some([7; 32]),
            is_external: false,
            slaves_max: 10,
        };
        Bench { access: Access::new(surroundings, changes), view, inputs, engine, folder }
    }

    /// Ends the engine, and opens everything anew.
    async fn restart(self) -> Bench {
        let Bench { inputs, engine, folder, .. } = self;
        drop(inputs);
        engine.join().unwrap().unwrap();
        Bench::open(folder)
    }

    async fn token(&self, change: impl FnOnce(&mut TokenWish)) -> JoinToken {
        let ttl = Duration::from_secs(3600);
        let mut wish = TokenWish { ttl, uses: 1, slave: None, labels: Labels::new(), replace: false };
        change(&mut wish);
        self.access.create_token(wish).await.unwrap().0
    }

    async fn enrol(&self, id: &str, token: &JoinToken, secret: u8) -> Answer {
        self.login(Some(&format!("enrol:{id}")), &joining(token, secret), |_| ()).await
    }

    /// A login over TLS from another machine, with the user name as client id.
    async fn login(&self, user: Option<&str>, password: &str, change: impl FnOnce(&mut Login<'_>)) -> Answer {
        let mut login = Login {
            listener: "cluster",
            anonymous: false,
            encrypted: true,
            address: REMOTE,
            client_id: user.unwrap_or("somebody"),
            user_name: user,
            password: Some(password.as_bytes()),
            has_will: false,
        };
        change(&mut login);
        match self.access.authenticate(login).await {
            Verdict::Done => Answer::Done,
            Verdict::Admit(identity) => Answer::Admitted(identity),
            Verdict::Refuse(refusal) => Answer::Refused(refusal.kind, refusal.guess, refusal.explanation),
        }
    }

    async fn account(&self, name: &str, role: Role, publish: &[&str], subscribe: &[&str]) {
        let list = |filters: &[&str]| filters.iter().map(|filter| (*filter).to_owned()).collect();
        let (name, password) = (name.parse().unwrap(), "correct horse".to_owned());
        let wish = AccountWish { name, role, password, publish: list(publish), subscribe: list(subscribe) };
        self.access.add_account(wish).await.unwrap();
    }
}

#[derive(Debug)]
enum Answer {
    Done,
    Admitted(rpicluster_broker::Identity),
    Refused(RefusalKind, bool, Option<String>),
}

impl Answer {
    fn is_done(&self) -> bool {
        matches!(self, Answer::Done)
    }

    /// Refused as everything is that may be a guess: without a telling word.
    fn is_wrong(&self) -> bool {
        matches!(self, Answer::Refused(RefusalKind::BadCredentials, true, None))
    }

    fn identity(self) -> rpicluster_broker::Identity {
        match self {
            Answer::Admitted(identity) => identity,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(self) -> (RefusalKind, String) {
        match self {
            Answer::Refused(kind, _, explanation) => (kind, explanation.unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

fn secret(number: u8) -> String {
    SlaveSecret::from_random([number; 32]).to_string()
}

fn joining(token: &JoinToken, number: u8) -> String {
    format!("{token}:{}", secret(number))
}

#[tokio::test]
async fn a_slave_enrols_once_and_logs_in_from_then_on_after_a_restart_too() {
    let bench = Bench::new();
    let token = bench.token(|wish| wish.slave = Some("pi".parse().unwrap())).await;
    assert!(bench.login(Some("pi"), &secret(1), |_| ()).await.is_wrong());
    assert!(bench.enrol("pi", &token, 1).await.is_done());
    assert!(bench.enrol("pi", &token, 1).await.is_done(), "its CONNACK was lost");
    let identity = bench.login(Some("pi"), &secret(1), |_| ()).await.identity();
    assert_eq!((&*identity.account, identity.owns_client_id), ("pi", true));
    let may = identity.permissions;
    assert!(may.may_publish("rpicluster/from/pi/state") && !may.may_publish("rpicluster/from/pi2/state"));
    assert!(!may.may_publish("rpicluster/to/pi/command") && !may.may_publish("rpicluster/master/state"));
    assert!(may.may_subscribe("rpicluster/to/pi/#") && may.may_subscribe("rpicluster/master/state"));
    for beyond in [
        "#",
        "rpicluster/#",
        "rpicluster/to/+/command",
        "rpicluster/from/pi/#",
        "$SYS/#",
        "$share/a/rpicluster/to/pi/#",
    ] {
        assert!(!may.may_subscribe(beyond), "{beyond}");
    }

    let bench = bench.restart().await;
    assert!(matches!(bench.login(Some("pi"), &secret(1), |_| ()).await, Answer::Admitted(_)));
    assert!(bench.login(Some("pi"), &secret(2), |_| ()).await.is_wrong());
    let (kind, explanation) = bench.enrol("pi", &token, 2).await.refusal();
    assert_eq!(kind, RefusalKind::BadCredentials);
    assert!(explanation.contains("used up"), "{explanation}");
}

#[tokio::test]
async fn the_last_use_of_a_token_is_given_away_once() {
    let bench = Bench::new();
    let token = bench.token(|wish| wish.uses = 3).await;
    let enrolments = (0..10).map(|number| {
        let (access, password) = (bench.access.clone(), joining(&token, number));
        tokio::spawn(async move {
            let login = Login {
                listener: "cluster",
                anonymous: false,
                encrypted: true,
                address: REMOTE,
                client_id: "x",
                user_name: Some(&format!("enrol:pi-{number}")),
                password: Some(password.as_bytes()),
                has_will: false,
            };
            matches!(access.authenticate(login).await, Verdict::Done)
        })
    });
    let enrolments: Vec<_> = enrolments.collect();
    let mut done = 0;
    for enrolment in enrolments {
        done += usize::from(enrolment.await.unwrap());
    }
    assert_eq!(done, 3);
    let bench = bench.restart().await;
    assert_eq!(bench.access.tokens()[0].uses_left, 0);
    let enrolled = (0..10).filter(|number| bench.access.registry().enrolment(&format!("pi-{number}")).is_some());
    assert_eq!(enrolled.count(), 3);
}

#[tokio::test]
async fn a_clone_is_told_why_it_cannot_join_and_uses_nothing_up() {
    let bench = Bench::new();
    let token = bench.token(|wish| wish.uses = 2).await;
    assert!(bench.enrol("pi-3", &token, 1).await.is_done());
    let (kind, explanation) = bench.enrol("pi-3", &token, 2).await.refusal();
    assert_eq!(kind, RefusalKind::NotAuthorized);
    assert!(explanation.starts_with("the id pi-3 is taken by another machine: two cards cloned"), "{explanation}");
    assert_eq!(bench.access.tokens()[0].uses_left, 1);
    let replacing = bench.token(|wish| wish.replace = true).await;
    assert!(bench.enrol("pi-3", &replacing, 2).await.is_done());
    assert!(bench.login(Some("pi-3"), &secret(1), |_| ()).await.is_wrong());
    assert!(matches!(bench.login(Some("pi-3"), &secret(2), |_| ()).await, Answer::Admitted(_)));
}

#[tokio::test]
async fn what_is_no_way_to_join_is_refused_and_tells_a_stranger_nothing() {
    let bench = Bench::new();
    let token = bench.token(|_| ()).await;
    let forged = JoinToken { secret: [0; 16], ..token.clone() };
    assert!(bench.enrol("pi", &forged, 1).await.is_wrong());
    let nearly = [String::new(), "a:b".to_owned(), token.to_string(), format!("{token}:short"), secret(1)];
    for password in nearly {
        assert!(bench.login(Some("enrol:pi"), &password, |_| ()).await.is_wrong(), "{password}");
    }
    let good = joining(&token, 1);
    assert!(bench.login(Some("enrol:pi"), "", |login| login.password = Some(b"\xff\xfe")).await.is_wrong());
    assert!(bench.login(Some("enrol:pi"), "", |login| login.password = None).await.is_wrong());
    let (kind, explanation) = bench.login(Some("enrol:P"), &good, |_| ()).await.refusal();
    assert!(kind == RefusalKind::NotAuthorized && explanation.contains("a-z"), "{explanation}");
    let (kind, explanation) = bench.login(Some("enrol:pi"), &good, |login| login.has_will = true).await.refusal();
    assert!(kind == RefusalKind::NotAuthorized && explanation.contains("will"), "{explanation}");
    let bound = bench.token(|wish| wish.slave = Some("pi-9".parse().unwrap())).await;
    let (kind, explanation) = bench.enrol("pi", &bound, 1).await.refusal();
    assert!(kind == RefusalKind::BadCredentials && explanation.contains("--id pi-9"), "{explanation}");
    bench.access.revoke_token(TokenId::of(&Hash::of(&token.secret))).await.unwrap();
    assert!(bench.enrol("pi", &token, 1).await.is_wrong(), "revoked");
    assert!(bench.access.registry().enrolment("pi").is_none());
}

#[tokio::test]
async fn nothing_secret_is_taken_over_an_open_line_but_from_this_machine() {
    let bench = Bench::new();
    let token = bench.token(|_| ()).await;
    bench.account("home", Role::Observer, &[], &[]).await;
    let open = |login: &mut Login<'_>| login.encrypted = false;
    for (user, password) in [("enrol:pi", joining(&token, 1)), ("pi", secret(1)), ("home", "correct horse".into())] {
        let (kind, explanation) = bench.login(Some(user), &password, open).await.refusal();
        assert!(kind == RefusalKind::NotAuthorized && explanation.contains("TLS"), "{user}: {explanation}");
    }
    assert_eq!(bench.access.tokens()[0].uses_left, 1);
    for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let here = |login: &mut Login<'_>| {
            login.encrypted = false;
            login.address = loopback.parse().unwrap();
        };
        assert!(bench.login(Some("enrol:pi"), &joining(&token, 1), here).await.is_done(), "{loopback}");
    }
}

#[tokio::test]
async fn accounts_may_do_what_their_roles_say() {
    let bench = Bench::new();
    bench.account("reader", Role::Observer, &[], &[]).await;
    bench.account("ha", Role::HomeAssistant, &[], &[]).await;
    bench.account("robot", Role::Custom, &["a/+"], &["b/#"]).await;
    let bench = bench.restart().await;
    let mut permissions = Vec::new();
    for name in ["reader", "ha", "robot"] {
        let identity = bench.login(Some(name), "correct horse", |_| ()).await.identity();
        assert_eq!((&*identity.account, identity.owns_client_id), (name, false));
        permissions.push(identity.permissions);
        assert!(bench.login(Some(name), "wrong horse", |_| ()).await.is_wrong(), "{name}");
    }
    let [reader, home_assistant, robot] = &permissions[..] else { panic!() };
    assert!(reader.may_subscribe("#") && reader.may_subscribe("$SYS/#") && !reader.may_publish("a"));
    assert!(!reader.hides("rpicluster/to/pi/command"));
    assert!(home_assistant.may_publish("homeassistant/status") && !home_assistant.may_publish("homeassistant/x"));
    for filter in ["homeassistant/#", "rpicluster/master/state", "rpicluster/from/+/vitals", "rpicluster/from/pi/state"]
    {
        assert!(home_assistant.may_subscribe(filter), "{filter}");
    }
    for filter in ["#", "rpicluster/from/+/+", "rpicluster/from/+/task", "rpicluster/to/pi/reply"] {
        assert!(!home_assistant.may_subscribe(filter), "{filter}");
    }
    assert!(robot.may_publish("a/x") && !robot.may_publish("b/x") && robot.may_subscribe("b/c"));

    let nobody = bench.login(Some("nobody"), "correct horse", |_| ()).await;
    let no_name = bench.login(Some("No Name"), "correct horse", |_| ()).await;
    let empty = bench.login(Some(""), "correct horse", |_| ()).await;
    assert!(nobody.is_wrong() && no_name.is_wrong() && empty.is_wrong());
    bench.access.remove_account("robot".parse().unwrap()).await.unwrap();
    assert!(bench.login(Some("robot"), "correct horse", |_| ()).await.is_wrong(), "although it was right a moment ago");
}

#[tokio::test]
async fn strangers_observe_where_the_listener_lets_them_but_see_no_secrets() {
    let bench = Bench::new();
    let (kind, _) = bench.login(None, "", |_| ()).await.refusal();
    assert_eq!(kind, RefusalKind::NotAuthorized);
    let identity = bench.login(None, "", |login| login.anonymous = true).await.identity();
    assert_eq!((&*identity.account, identity.owns_client_id), ("", false));
    let may = identity.permissions;
    assert!(may.may_subscribe("#") && may.may_subscribe("$SYS/#") && !may.may_publish("x"));
    for hidden in ["rpicluster/to/pi/command", "rpicluster/from/pi/task", "rpicluster/from/pi/output"] {
        assert!(may.hides(hidden), "{hidden}");
    }
    assert!(!may.hides("rpicluster/from/pi/vitals"));
}

#[tokio::test]
async fn a_slaves_client_id_is_its_own() {
    let bench = Bench::new();
    bench.account("home", Role::Observer, &[], &[]).await;
    let made = bench.access.add_slave("pi".parse().unwrap(), Labels::new(), false).await.unwrap().to_string();
    let client_id = |id: &'static str| move |login: &mut Login<'_>| login.client_id = id;
    assert!(matches!(bench.login(Some("pi"), &made, |_| ()).await, Answer::Admitted(_)));
    assert_eq!(bench.login(Some("pi"), &made, client_id("pi-2")).await.refusal().0, RefusalKind::ClientId);
    assert!(bench.login(Some("pi"), &secret(1), client_id("pi-2")).await.is_wrong(), "the secret comes first");
    assert_eq!(bench.login(Some("home"), "correct horse", client_id("pi")).await.refusal().0, RefusalKind::ClientId);
    assert!(bench.login(Some("home"), "wrong horse", client_id("pi")).await.is_wrong());
    let stranger = |login: &mut Login<'_>| {
        login.anonymous = true;
        login.client_id = "pi";
    };
    assert_eq!(bench.login(None, "", stranger).await.refusal().0, RefusalKind::ClientId);
}

#[tokio::test]
async fn what_cannot_be_written_does_not_hold() {
    let bench = Bench::new();
    let token = bench.token(|_| ()).await;
    let before = bench.access.registry().clone();
    let broken = bench.break_enrolments();
    let (kind, explanation) = bench.enrol("pi", &token, 1).await.refusal();
    assert_eq!(kind, RefusalKind::Busy);
    assert!(explanation.contains("store"), "{explanation}");
    let denied = bench.access.add_slave("pi".parse().unwrap(), Labels::new(), false).await.unwrap_err();
    assert_eq!(denied, AccessError::NotWritten(NotWritten));
    assert_eq!(*bench.access.registry(), before);
    drop(broken);
    assert!(bench.enrol("pi", &token, 1).await.is_done());
}

#[tokio::test]
async fn whoever_goes_away_while_something_is_written_leaves_no_half_done_change() {
    let bench = Bench::new();
    let token = bench.token(|_| ()).await;
    let user = "enrol:pi";
    {
        let password = joining(&token, 1);
        let mut asking = Box::pin(bench.login(Some(user), &password, |_| ()));
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(asking.as_mut().poll(context))).await;
        assert!(polled.is_pending());
    }
    // The next change waits for its turn: by then the first one holds.
    bench.access.create_api_token("cli".parse().unwrap()).await.unwrap();
    assert!(bench.access.registry().enrolment("pi").is_some());
    let bench = bench.restart().await;
    assert!(bench.access.registry().enrolment("pi").is_some());
}

#[tokio::test]
async fn a_master_that_stops_says_that_it_is_busy() {
    let Bench { access, inputs, engine, folder, .. } = Bench::new();
    drop(inputs);
    engine.join().unwrap().unwrap();
    let stopped = access.add_slave("pi".parse().unwrap(), Labels::new(), false).await.unwrap_err();
    assert_eq!(stopped, AccessError::Stopping);
    drop(folder);
}

#[tokio::test]
async fn without_a_certificate_there_are_no_tokens_but_slaves_can_be_added() {
    let bench = Bench::new();
    let surroundings = Surroundings {
        root: TopicRoot::default(),
        view: Arc::new(View::new(10)),
        engine: bench.inputs.downgrade(),
        ca_fingerprint: None,
        is_external: false,
        slaves_max: 10,
    };
    let access = Access::new(surroundings, Vec::new());
    let ttl = Duration::from_secs(60);
    let wish = TokenWish { ttl, uses: 1, slave: None, labels: Labels::new(), replace: false };
    let error = access.create_token(wish).await.unwrap_err();
    assert!(error.to_string().contains("certificate") && error.to_string().contains("slaves add"), "{error}");
    assert!(access.add_slave("pi".parse().unwrap(), Labels::new(), false).await.is_ok());
}

#[tokio::test]
async fn accounts_at_a_broker_of_others_are_not_made_here_but_a_slave_is_forgotten() {
    let bench = Bench::new();
    let surroundings = Surroundings {
        root: TopicRoot::default(),
        view: bench.view.clone(),
        engine: bench.inputs.downgrade(),
        ca_fingerprint: Some([7; 32]),
        is_external: true,
        slaves_max: 10,
    };
    let access = Access::new(surroundings, Vec::new());
    let pi: SlaveId = "pi".parse().unwrap();
    let wish = TokenWish { ttl: Duration::from_secs(60), uses: 1, slave: None, labels: Labels::new(), replace: false };
    assert_eq!(access.create_token(wish).await.unwrap_err(), AccessError::External);
    assert_eq!(access.add_slave(pi.clone(), Labels::new(), false).await.unwrap_err(), AccessError::External);
    assert!(AccessError::External.to_string().contains("rpicluster acl"));

    bench.view.get_or_meet(&pi, rpicluster_protocol::Timestamp::from_unix_ms(0)).unwrap();
    let removal = tokio::spawn({
        let (access, pi) = (access.clone(), pi.clone());
        async move { access.remove_slave(pi).await }
    });
    let mark = loop {
        if let Some((_, mark)) = bench.view.farewells().pop() {
            break mark;
        }
        tokio::task::yield_now().await;
    };
    assert!(bench.view.get("pi").is_none());
    assert!(bench.view.farewell(&pi, &mark));
    assert_eq!(removal.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn api_tokens_are_checked_by_their_whole_text() {
    let bench = Bench::new();
    let text = bench.access.create_api_token("cli".parse().unwrap()).await.unwrap();
    assert!(text.starts_with("rpiapi1.") && text.len() == 8 + 43, "{text}");
    let bench = bench.restart().await;
    assert_eq!(bench.access.check_api_token(&text).unwrap().as_str(), "cli");
    assert_eq!(bench.access.check_api_token(&text[1..]), None);
    bench.access.revoke_api_token("cli".parse().unwrap()).await.unwrap();
    assert_eq!(bench.access.check_api_token(&text), None);
}

#[tokio::test]
async fn a_connection_that_joins_gets_connack_and_the_end_over_the_wire() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let bench = Bench::new();
    let token = bench.token(|_| ()).await;
    let mut config = BrokerConfig::default();
    config.listeners.retain(|name, _| name == "local");
    config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
    let security = Security { authenticator: Arc::new(bench.access.clone()), tls: None };
    let broker = Broker::bind(config, security).await.unwrap();
    bench.access.attach(broker.handle());
    let address = broker.addresses()[0].1;
    let running = tokio::spawn(broker.run(std::future::pending()));
    let connect = |client: &str, user: &str, password: &str| {
        let text = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
        let body = [&b"\0\x04MQTT\x05\xc2\0\0\0"[..], &text(client), &text(user), &text(password)].concat();
        // Each is shorter than 16,384 bytes (MQTT 2.2.3).
        let low = body.len() as u8 & 0x7f;
        let length = if body.len() < 128 { vec![low] } else { vec![low | 0x80, (body.len() >> 7) as u8] };
        [&[0x10], &length[..], &body].concat()
    };
    let answer = async |packet: Vec<u8>| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let joined = answer(connect("any", "enrol:pi", &joining(&token, 1))).await;
    assert_eq!((joined[0], joined[3]), (0x20, 0), "{joined:?}");
    let clone = answer(connect("any", "enrol:pi", &joining(&token, 2))).await;
    assert_eq!(clone[3], 0x86, "used up");
    let wrong = answer(connect("pi", "pi", &secret(2))).await;
    assert_eq!(wrong[3], 0x86);

    let mut slave = tokio::net::TcpStream::connect(address).await.unwrap();
    slave.write_all(&connect("pi", "pi", &secret(1))).await.unwrap();
    let mut head = [0; 4];
    slave.read_exact(&mut head).await.unwrap();
    assert_eq!((head[0], head[3]), (0x20, 0));
    assert_eq!(bench.access.clients()[0].account, "pi");
    // Another machine takes its place: the old session ends before the new one is let in.
    let replacing = bench.token(|wish| wish.replace = true).await;
    let replaced = answer(connect("any", "enrol:pi", &joining(&replacing, 3))).await;
    assert_eq!(replaced[3], 0);
    let mut rest = Vec::new();
    slave.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&[0xe0, 2, 0x98, 0]) || rest.ends_with(&[0xe0, 1, 0x98]), "administrative action: {rest:?}");
    assert!(bench.access.clients().is_empty());
    running.abort();
}

#[test]
fn nothing_secret_is_printed() {
    let token = JoinToken { ca_fingerprint: [7; 32], secret: [9; 16] };
    let request = Request::Enrol {
        id: "pi".parse().unwrap(),
        secret: Hash::of(secret(1).as_bytes()),
        token: Hash::of(&token.secret),
    };
    assert_eq!(format!("{request:?}"), "Enrol { id: \"pi\", secret: Hash(…), token: Hash(…) }");
}

fn any_request() -> impl Strategy<Value = Request> {
    let id = prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(|id| id.parse::<SlaveId>().unwrap());
    let name = prop_oneof![Just("a"), Just("x"), Just("y")].prop_map(|name| name.parse::<Name>().unwrap());
    let secret = (0..4_u8).prop_map(|number| Hash::of(&[number]));
    let labels = prop_oneof![Just(Labels::new()), Just(Labels::from([("k".to_owned(), "v".to_owned())]))];
    let account = (name.clone(), any::<bool>()).prop_map(|(name, custom)| Account {
        name,
        role: if custom { Role::Custom } else { Role::Observer },
        password: PasswordHash::new("$argon2id$"),
        publish: Vec::new(),
        subscribe: if custom { vec!["#".to_owned()] } else { Vec::new() },
    });
    prop_oneof![
        4 => (id.clone(), secret.clone(), secret.clone())
            .prop_map(|(id, secret, token)| Request::Enrol { id, secret, token }),
        1 => (id.clone(), secret.clone(), labels.clone(), any::<bool>())
            .prop_map(|(id, secret, labels, replace)| Request::AddSlave { id, secret, labels, replace }),
        1 => (id.clone(), any::<bool>()).prop_map(|(id, is_listed)| Request::RemoveSlave { id, is_listed }),
        4 => (secret.clone(), 1..50_u64, 1..3_u32, proptest::option::of(id), labels, any::<bool>())
            .prop_map(|(secret, ttl, uses, slave, labels, replace)| {
                Request::CreateToken { secret, ttl, uses, slave, labels, replace }
            }),
        1 => secret.clone().prop_map(|secret| Request::RevokeToken(TokenId::of(&secret))),
        2 => account.prop_map(Request::AddAccount),
        1 => name.clone().prop_map(Request::RemoveAccount),
        2 => (name.clone(), secret).prop_map(|(name, secret)| Request::CreateApiToken { name, secret }),
        1 => name.prop_map(Request::RevokeApiToken),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_in_the_store_is_what_holds(steps in proptest::collection::vec((any_request(), 0..20_u64), 1..60)) {
        let folder = private_folder();
        let mut store = Store::open(folder.path()).unwrap();
        let mut registry = Registry::new(3);
        let mut now = 1_700_000_000;
        let mut uses = 0_u32;
        for (request, passes) in steps {
            now += passes;
            let is_enrolment = matches!(request, Request::Enrol { .. });
            let Ok(Decision { changes, .. }) = registry.decide(now, request) else { continue };
            store.save(&[], &changes).unwrap();
            for change in changes {
                if let Change::TokenSet(token) = &change {
                    uses = if is_enrolment { uses.checked_sub(1).unwrap() } else { uses + token.uses_left };
                }
                registry.apply(change);
            }
        }
        drop(store);
        let mut again = Registry::new(3);
        Store::open(folder.path()).unwrap().access().unwrap().into_iter().for_each(|change| again.apply(change));
        prop_assert_eq!(again, registry);
    }
}
