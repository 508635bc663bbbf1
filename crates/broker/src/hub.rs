//! Where clients meet: who is connected, who subscribed to what, what is retained, which sessions and wills are kept.

mod admin;
mod subscribing;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::access::{Authenticator, Identity, Permissions};
use crate::client::{Client, Place, Pushed, Queued, Session};
use crate::codec::{QoS, reason};
use crate::config::{Limits, SlowSubscriber};
use crate::message::{Clock, Message};
use crate::retained::Retained;
use crate::router::{Reader, Router, RouterStopped};
use crate::stats::{Stats, Throttle};
use crate::subscriptions::Subscriptions;

/// How long a newcomer waits for the connection it takes over; far more than that one needs.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections share.
pub(crate) struct Hub {
    pub(crate) router: Router,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) limits: Limits,
    pub(crate) stats: Arc<Stats>,
    pub(crate) clock: Clock,
    clients: Mutex<HashMap<Box<str>, Arc<Client>>>,
    table: Mutex<Table>,
    /// Changes whenever a subscription comes or goes.
    generation: AtomicU64,
    /// Sessions and wills that end or come due at a time.
    due: Mutex<BTreeMap<(Instant, u64), Arc<Client>>>,
    due_changed: Notify,
    last_number: AtomicU64,
    /// How many clients are congested: while it is 0, no publisher has to look whether its subscribers are.
    congested: Arc<AtomicUsize>,
    /// Sessions kept for clients that are away.
    away: AtomicUsize,
    /// How often the sessions of an account were ended.
    endings: AtomicU64,
    slow_readers: Throttle,
    pub(crate) refusals: Throttle,
}

#[derive(Debug, Default)]
struct Table {
    subscriptions: Subscriptions,
    retained: Retained,
}

/// A connection's hold on its client. Dropping it gives the place up: with its will, unless that was taken out.
pub(crate) struct Attachment {
    hub: Arc<Hub>,
    pub(crate) client: Arc<Client>,
    pub(crate) session: Box<Session>,
    pub(crate) permissions: Arc<Permissions>,
    /// The session was there before (MQTT 3.2.2.2).
    pub(crate) present: bool,
    /// Seconds that the session outlives the connection.
    pub(crate) expiry: u32,
    /// The will and its delay.
    pub(crate) will: Option<(Duration, Message)>,
}

/// Who asks for a place.
pub(crate) struct Arrival<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) identity: Identity,
    pub(crate) clean_start: bool,
    pub(crate) expiry: u32,
}

impl Hub {
    pub(crate) fn new(router: Router, authenticator: Arc<dyn Authenticator>, limits: Limits, stats: Arc<Stats>) -> Hub {
        Hub {
            router,
            authenticator,
            limits,
            stats,
            clock: Clock::start(),
            clients: Mutex::default(),
            table: Mutex::default(),
            generation: AtomicU64::new(0),
            due: Mutex::default(),
            due_changed: Notify::new(),
            last_number: AtomicU64::new(0),
            congested: Arc::default(),
            away: AtomicUsize::new(0),
            endings: AtomicU64::new(0),
            slow_readers: Throttle::default(),
            refusals: Throttle::default(),
        }
    }

    /// Delivers what comes out of the router, for as long as that runs.
    pub(crate) async fn deliver(&self, mut reader: Reader) -> Result<Infallible, RouterStopped> {
        let mut batch = Vec::new();
        loop {
            reader.read(&mut batch).await?;
            let mut waiting = &batch[..];
            loop {
                let done = self.dispatch_some(waiting);
                reader.handled(done);
                waiting = &waiting[done..];
                if waiting.is_empty() {
                    break;
                }
                // Lets the connections write what they were given before there is more.
                tokio::task::yield_now().await;
            }
            batch.clear();
        }
    }

    /// Dispatches messages from the first on, for about as long as others may have to wait; how many.
    fn dispatch_some(&self, messages: &[Message]) -> usize {
        const RECIPIENTS_MAX: usize = 1_000;
        let mut table = lock(&self.table);
        let mut recipients = 0;
        let mut done = 0;
        for message in messages {
            recipients += 1 + self.dispatch(&mut table, message);
            done += 1;
            if recipients >= RECIPIENTS_MAX {
                break;
            }
        }
        done
    }

    /// Keeps a message if it is retained, and queues it for every subscriber; for how many.
    fn dispatch(&self, table: &mut Table, message: &Message) -> usize {
        if message.retain() {
            self.retain(table, message);
        }
        let mut count = 0;
        let mut overflowed = Vec::new();
        table.subscriptions.recipients(message.topic(), message.publisher(), |recipient| {
            count += 1;
            let queued = Queued {
                message: message.clone(),
                qos: recipient.qos.min(message.qos()),
                retain: recipient.retain_as_published && message.retain(),
                subscription_ids: recipient.subscription_ids,
            };
            if self.queue(recipient.client, queued) == Pushed::Overflow {
                overflowed.push(Arc::clone(recipient.client));
            }
        });
        for client in overflowed {
            Stats::add(&self.stats.queue_overflows, 1);
            client.close(reason::QUOTA_EXCEEDED);
            let session = {
                let mut place = client.place();
                place.expires = None;
                self.schedule(&client, &mut place);
                place.session.take()
            };
            if let Some(session) = session {
                // Nobody is connected: the session ends here, so that its owner learns of the gap at the next CONNACK.
                client.close_outbox(false);
                self.away.fetch_sub(1, Ordering::Relaxed);
                self.end_session(table, &client, &session);
                self.forget_if_done(&client);
            }
        }
        count
    }

    fn queue(&self, client: &Client, queued: Queued) -> Pushed {
        let pushed = client.push(queued, &self.limits);
        let dropped = match pushed {
            Pushed::Displaced(count) => count,
            Pushed::Dropped => 1,
            Pushed::Queued | Pushed::Away | Pushed::Hidden | Pushed::Overflow => return pushed,
        };
        Stats::add(&client.counts.dropped, dropped);
        Stats::add(&self.stats.dropped_slow_reader, dropped);
        if self.slow_readers.allows() {
            warn!(client = ?client.id, "reads too slowly: messages to it are dropped and counted");
        }
        pushed
    }

    fn retain(&self, table: &mut Table, message: &Message) {
        if !table.retained.store(message, &self.limits) {
            Stats::add(&self.stats.dropped_retained, 1);
        }
        Stats::set(&self.stats.retained_now, table.retained.len() as u64);
    }

    /// Puts a retained message in place without telling anybody.
    pub(crate) fn seed_retained(&self, message: &Message) {
        self.retain(&mut lock(&self.table), message);
    }

    /// Publishes wills and ends sessions when their time comes, for ever.
    pub(crate) async fn watch_deadlines(&self) -> Result<Infallible, RouterStopped> {
        loop {
            let first = lock(&self.due).first_key_value().map(|((at, _), client)| (*at, Arc::clone(client)));
            let now = Instant::now();
            match first {
                Some((at, client)) if at <= now => self.settle(&client).await?,
                Some((at, _)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.due_changed.notified() => {}
                    }
                }
                None => self.due_changed.notified().await,
            }
        }
    }

    /// Does what is due of a client that is away.
    async fn settle(&self, client: &Arc<Client>) -> Result<(), RouterStopped> {
        let _gate = client.gate.lock().await;
        let now = Instant::now();
        let (will, session) = {
            let mut place = client.place();
            if place.connected {
                return Ok(());
            }
            let will = place.will.take_if(|(due, _)| *due <= now);
            let expired = place.expires.take_if(|expires| *expires <= now).is_some();
            self.schedule(client, &mut place);
            (will, if expired { place.session.take() } else { None })
        };
        if let Some((_, will)) = will {
            self.publish_will(will).await?;
        }
        if let Some(session) = session {
            self.away.fetch_sub(1, Ordering::Relaxed);
            client.close_outbox(false);
            self.end_session(&mut lock(&self.table), client, &session);
        }
        self.forget_if_done(client);
        Ok(())
    }

    async fn publish_will(&self, will: Message) -> Result<(), RouterStopped> {
        Stats::add(&self.stats.wills, 1);
        self.router.accept(will.sent(self.clock), true).await
    }

    /// Notes when a client that is away needs attention next: one entry a client, and none for one that needs none.
    fn schedule(&self, client: &Arc<Client>, place: &mut Place) {
        let next = place.will.as_ref().map(|(due, _)| *due).into_iter().chain(place.expires).min();
        if place.scheduled == next {
            return;
        }
        let mut due = lock(&self.due);
        if let Some(at) = place.scheduled {
            due.remove(&(at, client.number));
        }
        if let Some(at) = next {
            due.insert((at, client.number), Arc::clone(client));
        }
        Stats::set(&self.stats.deadlines_now, due.len() as u64);
        place.scheduled = next;
        self.due_changed.notify_one();
    }

    /// Gives a connection the place of its client id; who held it before leaves first, with its will (MQTT 3.1.4-2).
    ///
    /// # Errors
    /// A reason code for CONNACK if the place is another account's, or the one before does not leave in time; the outer
    /// error if the router has stopped.
    pub(crate) async fn attach(self: &Arc<Hub>, arrival: Arrival<'_>) -> Result<Result<Attachment, u8>, RouterStopped> {
        loop {
            let client = self.client(arrival.client_id);
            let gate = client.gate.lock().await;
            let Identity { account, owns_client_id, permissions } = &arrival.identity;
            let is_others = client.place().account.as_ref().is_some_and(|held| held != account);
            if is_others && !owns_client_id {
                return Ok(Err(reason::CLIENT_ID_NOT_VALID));
            }
            let evicted = self.evict(&client, reason::SESSION_TAKEN_OVER);
            if tokio::time::timeout(EVICTION_TIMEOUT, evicted).await.is_err() {
                return Ok(Err(reason::SERVER_BUSY));
            }
            if !self.is_known(&client) {
                // It was forgotten while this connection waited, or as the one before left nothing behind.
                continue;
            }
            let clean_start = arrival.clean_start || is_others;
            self.publish_old_will(&client, clean_start).await?;
            // From here on nothing is awaited: a newcomer that gives up must not take the session with it.
            let kept = {
                let mut place = client.place();
                place.expires = None;
                self.schedule(&client, &mut place);
                place.session.take()
            };
            if kept.is_some() {
                self.away.fetch_sub(1, Ordering::Relaxed);
            }
            let kept = match kept {
                Some(session) if clean_start => {
                    client.close_outbox(false);
                    self.end_session(&mut lock(&self.table), &client, &session);
                    None
                }
                Some(mut session) => {
                    self.withdraw(&mut session, &client, permissions);
                    Some(session)
                }
                None => None,
            };
            let present = kept.is_some();
            let session = kept.unwrap_or_else(|| {
                Stats::add(&self.stats.sessions_now, 1);
                Box::default()
            });
            {
                let mut place = client.place();
                place.connected = true;
                place.account = Some(Arc::clone(account));
            }
            client.open_outbox(permissions);
            drop(gate);
            let (hub, permissions) = (Arc::clone(self), Arc::clone(permissions));
            return Ok(Ok(Attachment {
                hub,
                client,
                session,
                permissions,
                present,
                expiry: arrival.expiry,
                will: None,
            }));
        }
    }

    /// Publishes the will that an earlier connection left, before a new one takes its place. MQTT 5 3.1.3.2.2: a delayed
    /// will is not sent if its session goes on before it is due.
    async fn publish_old_will(&self, client: &Client, clean_start: bool) -> Result<(), RouterStopped> {
        let will = {
            let mut place = client.place();
            let goes_on = !clean_start && place.session.is_some();
            place.will.take().filter(|(due, _)| !goes_on || *due <= Instant::now())
        };
        match will {
            Some((_, will)) => self.publish_will(will).await,
            None => Ok(()),
        }
    }

    /// Makes the connection that holds the client leave.
    async fn evict(&self, client: &Client, code: u8) {
        loop {
            if !client.place().connected {
                return;
            }
            client.close(code);
            if code == reason::SESSION_TAKEN_OVER {
                Stats::add(&self.stats.takeovers, 1);
            }
            client.vacated.notified().await;
        }
    }

    fn client(&self, client_id: &str) -> Arc<Client> {
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(client_id) {
            return Arc::clone(client);
        }
        let client = Arc::new(Client::new(client_id.into(), self.next_number(), Arc::clone(&self.congested)));
        clients.insert(client_id.into(), Arc::clone(&client));
        client
    }

    /// A number that no other client or link has.
    pub(crate) fn next_number(&self) -> u64 {
        1 + self.last_number.fetch_add(1, Ordering::Relaxed)
    }

    fn is_known(&self, client: &Arc<Client>) -> bool {
        lock(&self.clients).get(&client.id).is_some_and(|known| Arc::ptr_eq(known, client))
    }

    fn forget_if_done(&self, client: &Arc<Client>) {
        let mut clients = lock(&self.clients);
        let place = client.place();
        let done = !place.connected && place.session.is_none() && place.will.is_none();
        if done && clients.get(&client.id).is_some_and(|known| Arc::ptr_eq(known, client)) {
            clients.remove(&client.id);
        }
    }

    fn end_session(&self, table: &mut Table, client: &Arc<Client>, session: &Session) {
        for filter in session.subscriptions.keys() {
            table.subscriptions.remove(filter, client);
        }
        self.subscriptions_changed(table);
        Stats::sub(&self.stats.sessions_now, 1);
    }

    /// Counts what a client was refused, by kind and by client.
    pub(crate) fn count_refusal(&self, client: &Client, kind: &AtomicU64) {
        Stats::add(kind, 1);
        Stats::add(&client.counts.refused, 1);
    }

    fn subscriptions_changed(&self, table: &Table) {
        self.generation.fetch_add(1, Ordering::Release);
        Stats::set(&self.stats.subscriptions_now, table.subscriptions.len() as u64);
    }

    /// Whether any network client subscribed to this topic, remembered in `known` until a subscription comes or goes: most
    /// of what slaves say is for the master alone, and need not be looked at twice.
    pub(crate) fn has_subscribers(&self, topic: &str, known: &mut HashMap<Box<str>, (u64, bool)>) -> bool {
        /// More topics than a slave has; a client with more pays for the look at each message.
        const KNOWN_MAX: usize = 16;
        let generation = self.generation.load(Ordering::Acquire);
        if let Some((of, wanted)) = known.get(topic)
            && *of == generation
        {
            return *wanted;
        }
        let wanted = lock(&self.table).subscriptions.has_recipients(topic);
        if let Some(entry) = known.get_mut(topic) {
            *entry = (generation, wanted);
        } else if known.len() < KNOWN_MAX {
            known.insert(topic.into(), (generation, wanted));
        }
        wanted
    }

    /// Whether a publisher on `topic` at this QoS should wait because a subscriber is congested.
    pub(crate) fn should_hold(&self, topic: &str, qos: QoS) -> bool {
        qos != QoS::AtMostOnce
            && self.congested.load(Ordering::Relaxed) > 0
            && self.limits.slow_subscriber == SlowSubscriber::Hold
            && lock(&self.table).subscriptions.congested_recipient(topic).is_some()
    }

    /// Waits until no subscriber to `topic` is congested, or one has had the time in which it must take something.
    pub(crate) async fn uncongested(&self, topic: &str) {
        Stats::add(&self.stats.publishers_held, 1);
        let all = async {
            loop {
                let congested = lock(&self.table).subscriptions.congested_recipient(topic);
                match congested {
                    Some(client) => client.drained().await,
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(self.limits.write_timeout, all).await;
    }

    /// Asks every connection to end.
    pub(crate) fn close_all(&self) {
        for client in lock(&self.clients).values() {
            client.close(reason::SERVER_SHUTTING_DOWN);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Attachment { hub, client, session, expiry, will, .. } = self;
        let now = Instant::now();
        let session = std::mem::take(session);
        let lifetime = Duration::from_secs(u64::from(*expiry)).min(hub.limits.session_expiry);
        let full = hub.away.load(Ordering::Relaxed) >= hub.limits.sessions;
        let keep = *expiry > 0 && !full;
        if *expiry > 0 && full {
            Stats::add(&hub.stats.sessions_evicted, 1);
        }
        client.close_outbox(keep);
        if keep {
            hub.away.fetch_add(1, Ordering::Relaxed);
        } else {
            hub.end_session(&mut lock(&hub.table), client, &session);
        }
        // MQTT 5 3.1.3.2.2: the will is sent after its delay or when the session ends, whichever comes first.
        let will =
            will.take().map(|(delay, will)| (now + if keep { delay.min(lifetime) } else { Duration::ZERO }, will));
        let expires = keep.then(|| now + lifetime);
        debug!(client = ?client.id, keep, will = will.is_some(), "client left");
        {
            let mut place = client.place();
            place.connected = false;
            place.session = keep.then_some(session);
            place.expires = expires;
            place.will = will;
            hub.schedule(client, &mut place);
        }
        hub.forget_if_done(client);
        client.vacated.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held would be a bug; what it protects is valid between any two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
