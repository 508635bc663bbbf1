//! The hub seen from outside: who is there, what it says of itself, and the end of what must not go on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{EVICTION_TIMEOUT, Hub, lock};
use crate::access::Permissions;
use crate::client::{Client, Session};
use crate::codec::{QoS, reason};
use crate::message::{Message, Parts};
use crate::stats::ClientReport;
use crate::sys;

impl Hub {
    /// Takes from a session that goes on what its account may not have any more.
    pub(super) fn withdraw(&self, session: &mut Session, client: &Arc<Client>, permissions: &Permissions) {
        if session.subscriptions.keys().all(|filter| permissions.may_subscribe(filter)) {
            return;
        }
        let mut table = lock(&self.table);
        session.subscriptions.retain(|filter, _| {
            let may = permissions.may_subscribe(filter);
            if !may {
                table.subscriptions.remove(filter, client);
            }
            may
        });
        self.subscriptions_changed(&table);
    }

    /// Disconnects all clients of an account and ends their sessions, without their wills.
    pub(crate) async fn end_account(&self, account: &str) {
        self.endings.fetch_add(1, Ordering::SeqCst);
        let of_account = |client: &&Arc<Client>| client.place().account.as_deref() == Some(account);
        let clients: Vec<Arc<Client>> = lock(&self.clients).values().filter(of_account).cloned().collect();
        for client in clients {
            let _gate = client.gate.lock().await;
            // A connection that does not leave has been told to, and has no session to come back to.
            let _ = tokio::time::timeout(EVICTION_TIMEOUT, self.evict(&client, reason::ADMINISTRATIVE_ACTION)).await;
            let session = {
                let mut place = client.place();
                place.will = None;
                place.expires = None;
                self.schedule(&client, &mut place);
                place.session.take()
            };
            if let Some(session) = session {
                self.away.fetch_sub(1, Ordering::Relaxed);
                client.close_outbox(false);
                self.end_session(&mut lock(&self.table), &client, &session);
            }
            self.forget_if_done(&client);
        }
    }

    /// Another number than before means that a client which was on its way in meanwhile, and has its place only now, may
    /// have escaped [`Hub::end_account`].
    pub(crate) fn endings(&self) -> u64 {
        self.endings.load(Ordering::SeqCst)
    }

    /// Who is connected or has a session, and what was counted of each.
    pub(crate) fn client_reports(&self) -> Vec<ClientReport> {
        let clients: Vec<Arc<Client>> = lock(&self.clients).values().cloned().collect();
        let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let report = |client: &Arc<Client>| {
            let (account, connected) = {
                let place = client.place();
                (place.account.as_deref().unwrap_or_default().to_owned(), place.connected)
            };
            let counts = &client.counts;
            ClientReport {
                client_id: client.id.clone().into_string(),
                account,
                connected,
                waiting: client.waiting().0,
                received: figure(&counts.received),
                sent: figure(&counts.sent),
                dropped: figure(&counts.dropped),
                refused: figure(&counts.refused),
                throttled: figure(&counts.throttled),
            }
        };
        clients.iter().map(report).collect()
    }

    /// Tells those who subscribed to the `$SYS` tree what it says, for ever.
    pub(crate) async fn report(&self) -> Infallible {
        loop {
            tokio::time::sleep(sys::INTERVAL).await;
            let mut table = lock(&self.table);
            if table.subscriptions.has_below(sys::ROOT) {
                for message in self.sys_messages() {
                    self.dispatch(&mut table, &message);
                }
            }
        }
    }

    pub(super) fn sys_messages(&self) -> Vec<Message> {
        let message = |(topic, payload): (&str, String)| {
            let parts = Parts {
                topic,
                payload: payload.as_bytes(),
                qos: QoS::AtMostOnce,
                retain: false,
                publisher: 0,
                expiry: None,
                properties: &[],
            };
            Message::new(parts, self.clock)
        };
        sys::report(&self.stats, self.clock.elapsed()).into_iter().map(message).collect()
    }
}
