//! Accounts and what they may do, and TLS: the broker's part of access, with an authenticator made for the tests.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::tls::Certified;
use common::{BOTH, Hello, Listens, PUBACK, PUBREC, Raw, TestBroker, lasting, until};
use rpicluster_broker::{
    Authenticator, Identity, LinkReceiver, LinkSender, Login, Permissions, Refusal, RefusalKind, Security, Verdict,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A user's password is "secret"; what it may do follows from its name.
struct ByName;

fn filters(all: &[&str]) -> Vec<String> {
    all.iter().map(|filter| (*filter).to_owned()).collect()
}

impl Authenticator for ByName {
    fn authenticate<'a>(&'a self, login: Login<'a>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(std::future::ready(self.judge(login)))
    }
}

impl ByName {
    fn judge(&self, login: Login<'_>) -> Verdict {
        let permissions = match login.user_name {
            None if login.anonymous => Permissions {
                publish: vec![],
                subscribe: filters(&["#", "$SYS/#"]),
                hidden: filters(&["to/+/command"]),
            },
            Some("enrol:x") => return Verdict::Done,
            Some(_) if login.password != Some(b"secret") => {
                let explanation = Some("try another one".to_owned());
                return Verdict::Refuse(Refusal { kind: RefusalKind::BadCredentials, explanation, guess: true });
            }
            Some("all") => Permissions::all(),
            Some(name) => Permissions {
                publish: vec![format!("from/{name}/#")],
                subscribe: vec![format!("to/{name}/#"), "master/state".to_owned()],
                hidden: vec![],
            },
            None => {
                return Verdict::Refuse(Refusal { kind: RefusalKind::NotAuthorized, explanation: None, guess: false });
            }
        };
        Verdict::Admit(Identity {
            account: login.user_name.unwrap_or_default().into(),
            owns_client_id: login.user_name == Some(login.client_id),
            permissions: Arc::new(permissions),
        })
    }
}

async fn start() -> TestBroker {
    start_with_link().await.0
}

async fn start_with_link() -> (TestBroker, LinkSender, LinkReceiver) {
    let security = Security { authenticator: Arc::new(ByName), tls: None };
    TestBroker::start_with(|_| {}, filters(&["from/#"]), security).await
}

fn account(name: &'static str) -> Hello {
    Hello { client_id: name, login: Some((name, "secret")), ..Hello::default() }
}

#[tokio::test]
async fn a_wrong_password_is_refused_by_the_standards_codes_and_later_each_time() {
    let broker = start().await;
    let wrong = Hello { login: Some(("a", "wrong")), ..Hello::default() };
    for (v5, code) in [(false, 4), (true, 0x86)] {
        let (mut client, answer) = Raw::greet(&broker, v5, &wrong).await;
        assert_eq!((answer.code, answer.session_present), (code, false));
        // Reason String, for people.
        let said = String::from_utf8_lossy(&answer.properties).into_owned();
        assert_eq!(said.contains("try another one"), v5, "{said:?}");
        client.closed().await;
    }
    assert_eq!((broker.stat("guesses"), broker.stat("connects_refused")), (2, 2));
    // The fourth waits; who knows his password does not, from the same address and at the same time.
    Raw::greet(&broker, true, &wrong).await;
    let mut guesser = Raw::open(&broker, true).await;
    guesser.send(&wrong.bytes(true)).await;
    until(|| broker.stat("guesses") == 4).await;
    let mut good = Raw::hello(&broker, true, account("a")).await.0;
    good.nothing().await;
    assert_eq!(guesser.connack().await.code, 0x86);
    let (_, answer) = Raw::greet(&broker, false, &account("b")).await;
    assert_eq!(answer.code, 0);
}

#[tokio::test]
async fn a_connect_that_is_all_is_answered_and_leaves_nothing() {
    let broker = start().await;
    for v5 in BOTH {
        let enrolling = Hello { client_id: "a", login: Some(("enrol:x", "…")), ..lasting("a", v5) };
        let mut other = Raw::hello(&broker, v5, account("a")).await.0;
        let (mut client, answer) = Raw::greet(&broker, v5, &enrolling).await;
        assert_eq!((answer.code, answer.session_present), (0, false));
        client.closed().await;
        // Whoever has the client id keeps it.
        other.nothing().await;
        other.leave().await;
    }
    assert_eq!((broker.stat("sessions_now"), broker.stat("takeovers")), (0, 0));
}

#[tokio::test]
async fn an_account_publishes_and_subscribes_where_it_may_and_nowhere_else() {
    let (broker, _link, mut receiver) = start_with_link().await;
    for v5 in BOTH {
        let mut slave = Raw::hello(&broker, v5, account("a")).await.0;
        let refusal = if v5 { 0x87 } else { 0x80 };
        let filters = [("to/a/#", 1), ("to/a/reply", 0), ("master/state", 1)];
        assert_eq!(slave.subscribe_all(&filters, &[]).await, [1, 0, 1]);
        for filter in ["to/b/#", "#", "+/a/#", "to/+/reply", "to/#", "to/aa/#", "from/a/#", "$SYS/#"] {
            assert_eq!(slave.subscribe(filter, 0).await, refusal, "{filter}");
        }
        let shared = if v5 { 0x9e } else { 0x80 };
        assert_eq!(slave.subscribe("$share/g/to/a/#", 0).await, shared);
        let forged = [("from/b/state", false), ("to/a/command", false), ("from/b/state", true), ("x", true)];
        for (id, (topic, retain)) in (10..).zip(forged) {
            slave.publish(topic, "forged", 1, retain, 7).await;
            let answer = slave.ack().await;
            assert_eq!((answer.first, answer.reason), (PUBACK, if v5 { 0x87 } else { 0 }), "{topic}");
            slave.publish(topic, "forged", 2, retain, id).await;
            let answer = slave.ack().await;
            assert_eq!((answer.first, answer.reason), (PUBREC, if v5 { 0x87 } else { 0 }), "{topic}");
            slave.publish(topic, "forged", 0, retain, 0).await;
        }
        slave.complete("from/a/state", "own", 1, false).await;
        assert_eq!(receiver.recv().await.unwrap().payload(), "own");
        let report = broker.handle.clients().into_iter().find(|client| client.client_id == "a").unwrap();
        assert_eq!((report.account.as_str(), report.connected, report.refused), ("a", true, 8 + 1 + 12));
        slave.leave().await;
    }
    assert_eq!((broker.stat("publishes_refused"), broker.stat("retained_now")), (24, 0));
}

#[tokio::test]
async fn a_will_on_a_topic_of_others_is_refused_with_its_connect() {
    let broker = start().await;
    for (v5, code) in [(false, 5), (true, 0x87)] {
        let (mut client, answer) =
            Raw::greet(&broker, v5, &Hello { will: Some(("from/b/state", "gone", 1, true)), ..account("a") }).await;
        assert_eq!(answer.code, code);
        client.closed().await;
        let own = Hello { will: Some(("from/a/state", "gone", 1, false)), ..account("a") };
        Raw::hello(&broker, v5, own).await.0.leave().await;
    }
    assert_eq!(broker.stat("wills"), 0);
}

#[tokio::test]
async fn what_is_hidden_is_left_out_at_delivery_and_among_retained_messages() {
    let broker = start().await;
    let mut all = Raw::hello(&broker, true, account("all")).await.0;
    all.complete("to/a/command", "kept secret", 1, true).await;
    for v5 in BOTH {
        let mut observer = Raw::connect(&broker, v5, "observer").await;
        assert_eq!(observer.subscribe("#", 1).await, 1);
        assert_eq!(observer.subscribe("to/a/command", 1).await, 1);
        for topic in ["to/a/command", "to/a/reply"] {
            all.complete(topic, topic, 1, false).await;
        }
        assert_eq!(observer.message().await.topic, "to/a/reply", "and nothing before it");
        observer.publish("from/a/state", "forged", 1, false, 3).await;
        assert_eq!(observer.ack().await.reason, if v5 { 0x87 } else { 0 });
        observer.leave().await;
    }
    assert_eq!(all.subscribe("to/#", 0).await, 0);
    assert_eq!(all.message().await.payload, "kept secret");
}

#[tokio::test]
async fn a_client_id_is_taken_over_within_its_account_or_by_the_one_it_belongs_to() {
    let broker = start().await;
    for v5 in BOTH {
        // Somebody squats on the id of a slave, with a session that lasts and is sent what is not the slave's.
        let squatting = Hello { login: Some(("all", "secret")), ..lasting("a", v5) };
        let mut squatter = Raw::hello(&broker, v5, squatting).await.0;
        squatter.subscribe("#", 1).await;
        let (mut client, answer) =
            Raw::greet(&broker, v5, &Hello { login: Some(("b", "secret")), ..lasting("a", v5) }).await;
        assert_eq!(answer.code, if v5 { 0x85 } else { 2 }, "another account");
        client.closed().await;
        squatter.quiet().await;
        let (mut slave, present) =
            Raw::hello(&broker, v5, Hello { login: Some(("a", "secret")), ..lasting("a", v5) }).await;
        squatter.closed().await;
        assert!(!present, "what it was sent is not the slave's");
        // Its own session it does get back, and nobody else gets it.
        slave.subscribe("to/a/x", 1).await;
        slave.lose().await;
        let (_, answer) = Raw::greet(&broker, v5, &Hello { login: Some(("b", "secret")), ..lasting("a", v5) }).await;
        assert_eq!(answer.code, if v5 { 0x85 } else { 2 });
        let (slave, present) =
            Raw::hello(&broker, v5, Hello { login: Some(("a", "secret")), ..lasting("a", v5) }).await;
        assert!(present);
        slave.leave().await;
        Raw::hello(&broker, v5, account("a")).await.0.leave().await;
    }
}

#[tokio::test]
async fn an_account_that_is_ended_is_gone_at_once_with_session_and_will() {
    let broker = start().await;
    let mut watcher = Raw::hello(&broker, true, account("all")).await.0;
    watcher.subscribe("from/#", 1).await;
    for v5 in BOTH {
        let will = Some(("from/a/state", "gone", 1, false));
        let hello = || Hello { will, login: Some(("a", "secret")), ..lasting("a", v5) };
        let (mut present, _) = Raw::hello(&broker, v5, hello()).await;
        present.subscribe("to/a/#", 1).await;
        broker.handle.end_account("a").await;
        assert_eq!(present.ended().await, v5.then_some(0x98), "administrative action");
        let (absent, kept) = Raw::hello(&broker, v5, hello()).await;
        assert!(!kept);
        absent.lose().await;
        assert_eq!(watcher.message().await.payload, "gone", "of the connection that was lost");
        until(|| broker.stat("connections_now") == 1).await;
        broker.handle.end_account("a").await;
        assert_eq!((broker.stat("sessions_now"), broker.stat("deadlines_now")), (1, 0));
    }
    watcher.nothing().await;
    assert_eq!(broker.handle.clients().len(), 1);
}

struct Tls {
    broker: TestBroker,
    certified: Certified,
    tunnel: SocketAddr,
}

impl Listens for Tls {
    fn address(&self) -> SocketAddr {
        self.tunnel
    }
}

/// A broker whose listener encrypts.
async fn start_tls(connect_timeout: Duration) -> Tls {
    let certified = Certified::make();
    let security = Security { tls: Some(certified.server()), ..Security::trusting() };
    let adjust = |config: &mut rpicluster_broker::BrokerConfig| {
        config.listeners.values_mut().for_each(|listener| listener.tls = true);
        config.limits.connect_timeout = connect_timeout;
    };
    let (broker, ..) = TestBroker::start_with(adjust, vec![], security).await;
    let tunnel = certified.tunnel_to(broker.address).await;
    Tls { broker, certified, tunnel }
}

#[tokio::test]
async fn everything_goes_through_tls_in_every_size() {
    let tls = start_tls(Duration::from_secs(10)).await;
    let long: &'static str = "x".repeat(60_000).leak();
    for v5 in BOTH {
        let mut subscriber = Raw::connect(&tls, v5, "s").await;
        subscriber.subscribe("t", 1).await;
        let mut publisher = Raw::connect(&tls, v5, "p").await;
        for id in 1..=200 {
            publisher.publish("t", if id % 3 == 0 { "short" } else { long }, 1, false, id).await;
        }
        for id in 1..=200 {
            publisher.acked(PUBACK, id).await;
            let message = subscriber.message().await;
            assert_eq!(message.payload.len(), if id % 3 == 0 { 5 } else { 60_000 });
            subscriber.respond(PUBACK, message.packet_id).await;
        }
    }
}

#[tokio::test]
async fn two_hundred_silent_or_trickling_peers_delay_nobody_and_end_in_time() {
    let tls = start_tls(Duration::from_secs(1)).await;
    let mut strangers = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(tls.broker.address).await.unwrap();
        // The beginning of a ClientHello, and for some of them not even that.
        if number % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
        }
        strangers.push(stream);
    }
    until(|| tls.broker.stat("connections_now") == 200).await;
    let mut client = Raw::connect(&tls, true, "c").await;
    client.quiet().await;
    until(|| tls.broker.stat("connect_timeouts") == 200).await;
    for mut stranger in strangers {
        assert_eq!(stranger.read(&mut [0; 64]).await.unwrap_or(0), 0, "closed without a word");
    }
    client.quiet().await;
}

#[tokio::test]
async fn a_handshake_that_fails_is_counted_and_one_that_says_nothing_after_it_is_cut() {
    let tls = start_tls(Duration::from_secs(1)).await;
    let mut plain = TcpStream::connect(tls.broker.address).await.unwrap();
    plain.write_all(&Hello::default().bytes(false)).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    until(|| tls.broker.stat("tls_failures") == 1).await;
    let mut silent = tls.certified.connect(tls.broker.address).await;
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap_or(0), 0);
    until(|| tls.broker.stat("connect_timeouts") == 1).await;
}

#[tokio::test]
async fn a_subscriber_that_never_reads_is_cut_through_tls_too() {
    let certified = Certified::make();
    let security = Security { tls: Some(certified.server()), ..Security::trusting() };
    let adjust = |config: &mut rpicluster_broker::BrokerConfig| {
        config.listeners.values_mut().for_each(|listener| listener.tls = true);
        config.limits.write_timeout = Duration::from_secs(1);
    };
    let (broker, ..) = TestBroker::start_with(adjust, vec![], security).await;
    let tunnel = certified.tunnel_to(broker.address).await;
    let mut sleeper = certified.connect(broker.address).await;
    sleeper.write_all(&Hello { client_id: "sleeper", ..Hello::default() }.bytes(false)).await.unwrap();
    sleeper.write_all(b"\x82\x06\x00\x01\x00\x01t\x00").await.unwrap();
    until(|| broker.stat("subscriptions_now") == 1).await;
    let mut publisher = Raw::open_address(tunnel, true).await;
    publisher.send(&Hello { client_id: "p", ..Hello::default() }.bytes(true)).await;
    publisher.connack().await;
    let payload = "x".repeat(16_000);
    while broker.stat("write_timeouts") == 0 {
        publisher.publish("t", &payload, 0, false, 0).await;
        tokio::task::yield_now().await;
    }
    until(|| broker.stat("connections_now") == 1).await;
}
