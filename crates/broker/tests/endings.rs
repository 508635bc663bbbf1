//! The end of an account's sessions, against clients that are just on their way in.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use common::{BOTH, Hello, Listens, Raw, lasting};
use rpicluster_broker::{
    Authenticator, Broker, BrokerConfig, BrokerHandle, Identity, Login, Permissions, Refusal, RefusalKind, Security,
    Verdict,
};

/// Lets the client in, but before its answer is heard, sessions of an account are ended.
#[derive(Default)]
struct TooLate {
    broker: OnceLock<BrokerHandle>,
    ends: OnceLock<&'static str>,
    is_removed: AtomicBool,
}

impl Authenticator for TooLate {
    fn authenticate<'a>(&'a self, _: Login<'a>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>> {
        Box::pin(async move {
            let account = "pi";
            if self.is_removed.load(Ordering::SeqCst) {
                return Verdict::Refuse(Refusal { kind: RefusalKind::BadCredentials, explanation: None, guess: true });
            }
            if let Some(ended) = self.ends.get() {
                self.is_removed.store(*ended == account, Ordering::SeqCst);
                self.broker.get().unwrap().end_account(ended).await;
            }
            let permissions = Arc::new(Permissions::all());
            Verdict::Admit(Identity { account: account.into(), owns_client_id: true, permissions })
        })
    }
}

struct Bound(SocketAddr);

impl Listens for Bound {
    fn address(&self) -> SocketAddr {
        self.0
    }
}

async fn broker() -> (Bound, Arc<TooLate>) {
    let authenticator = Arc::new(TooLate::default());
    let mut config = BrokerConfig::default();
    config.listeners.retain(|name, _| name == "local");
    config.listeners.values_mut().for_each(|listener| listener.address.set_port(0));
    let security = Security { authenticator: authenticator.clone(), tls: None };
    let broker = Broker::bind(config, security).await.unwrap();
    assert!(authenticator.broker.set(broker.handle()).is_ok());
    let address = broker.addresses()[0].1;
    tokio::spawn(broker.run(std::future::pending()));
    (Bound(address), authenticator)
}

#[tokio::test]
async fn a_client_whose_account_ends_while_it_comes_in_is_not_let_in_and_has_no_session() {
    for v5 in BOTH {
        let (broker, authenticator) = broker().await;
        authenticator.ends.set("pi").unwrap();
        let hello = Hello { will: Some(("gone", "w", 0, false)), ..lasting("pi", v5) };
        let (mut late, answer) = Raw::greet(&broker, v5, &hello).await;
        assert_eq!(answer.code, if v5 { 0x86 } else { 4 });
        late.closed().await;
        assert!(authenticator.broker.get().unwrap().clients().is_empty());
        assert_eq!(authenticator.broker.get().unwrap().stats().snapshot()["wills"], 0);
    }
}

#[tokio::test]
async fn the_end_of_another_account_changes_nothing() {
    for v5 in BOTH {
        let (broker, authenticator) = broker().await;
        authenticator.ends.set("other").unwrap();
        let (_, present) = Raw::hello(&broker, v5, lasting("pi", v5)).await;
        assert!(!present);
        assert_eq!(authenticator.broker.get().unwrap().clients().len(), 1);
    }
}
