//! rumqttd's router as the one ordered path between clients. The only file that names rumqttd.
//!
//! Every message is appended once, under one lock, so that all readers see one order. There are two readers: the front,
//! which delivers to network clients, and the in-process link of the program around the broker. Which of them a message is
//! for stands in its topic inside the router, one of three constants: names chosen by clients never reach the router,
//! which would keep them for ever and panics at some of them.
//!
//! A reader's log would roll over unread messages if publishers ran ahead, so a message is accepted only against credit:
//! permits for as many bytes as the log keeps for certain, given back when the reader has taken the message.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Packet, Publish};
use rumqttd::{Notification, Router as Rumqttd, RouterConfig as RumqttdConfig};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tracing::error;

use crate::config::RouterConfig;
use crate::message::Message;
use crate::stats::Stats;
use crate::topic::matches;

/// For the front only, for the link only, for both.
const TO_FRONT: &str = "f/-";
const TO_LINK: &str = "-/l";
const TO_BOTH: &str = "f/l";
/// What the two readers subscribe to.
const FRONT_FILTER: &str = "f/+";
const LINK_FILTER: &str = "+/l";

/// What rumqttd counts for a message beside its payload: 4 bytes and the topic.
const LOG_OVERHEAD: usize = 4 + TO_BOTH.len();

/// How many messages rumqttd hands over at once.
const BATCH: usize = 1000;

/// The router has stopped: only the end of the process can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker's router has stopped; this is a bug: restart, and report it with the lines before this one")]
pub struct RouterStopped;

/// Makes a link with a name and a filter. A closure, because rumqttd does not let its sender's type be named.
type Connect = Box<dyn Fn(&str, &str) -> Result<(LinkTx, LinkRx), RouterStopped> + Send + Sync>;

/// The way in.
pub(crate) struct Router {
    entrance: Mutex<Entrance>,
    front: Arc<Credit>,
    link: Arc<Credit>,
    /// Filters of the in-process link; empty until there is one.
    link_filters: OnceLock<Vec<String>>,
    connect: Connect,
    stats: Arc<Stats>,
}

struct Entrance {
    link: LinkTx,
    /// How many messages for the front have been accepted.
    accepted: u64,
}

/// How far a reader is behind.
struct Credit {
    bytes: Semaphore,
    /// How many messages its owner has dealt with.
    handled: watch::Sender<u64>,
}

/// The way out, for one reader.
pub(crate) struct Reader {
    link: LinkRx,
    credit: Arc<Credit>,
    /// The router's position of the last message, which grows by one.
    last_offset: Option<u64>,
    stats: Arc<Stats>,
}

impl Router {
    /// Starts rumqttd's router thread and takes the front's link.
    pub(crate) fn start(config: &RouterConfig, stats: Arc<Stats>) -> Result<(Router, Reader), RouterStopped> {
        let rumqttd = Rumqttd::new(
            0,
            RumqttdConfig {
                max_connections: 4,
                max_outgoing_packet_count: BATCH as u64,
                max_segment_size: config.segment_bytes,
                max_segment_count: config.segment_count,
                ..RumqttdConfig::default()
            },
        );
        let events = rumqttd.spawn();
        let connect = Box::new(move |name: &str, filter: &str| {
            let (mut tx, mut rx, _) = LinkBuilder::new(name, events.clone()).build().map_err(|_| RouterStopped)?;
            tx.subscribe(filter).map_err(|_| RouterStopped)?;
            // The answer to the subscription: from now on nothing is missed.
            while rx.recv().map_err(|_| RouterStopped)?.is_none() {}
            Ok((tx, rx))
        });
        let (tx, rx) = connect("front", FRONT_FILTER)?;
        let front = Credit::new(config);
        let reader = Reader { link: rx, credit: Arc::clone(&front), last_offset: None, stats: Arc::clone(&stats) };
        let router = Router {
            entrance: Mutex::new(Entrance { link: tx, accepted: 0 }),
            front,
            link: Credit::new(config),
            link_filters: OnceLock::new(),
            connect,
            stats,
        };
        Ok((router, reader))
    }

    /// The in-process link's way out, once.
    pub(crate) fn link(&self, filters: Vec<String>) -> Result<Option<Reader>, RouterStopped> {
        let (_, rx) = (self.connect)("link", LINK_FILTER)?;
        let reader =
            Reader { link: rx, credit: Arc::clone(&self.link), last_offset: None, stats: Arc::clone(&self.stats) };
        Ok(self.link_filters.set(filters).is_ok().then_some(reader))
    }

    /// Accepts a message if there is credit for it; `Ok(false)` if there is none now. Without `to_front` it is for the link
    /// alone, if that wants it.
    pub(crate) fn try_accept(&self, message: &Message, to_front: bool) -> Result<bool, RouterStopped> {
        let to_link = self.is_for_link(message);
        let cost = cost(message);
        // Dropping the first permit on the way out gives it back.
        let mut permits = [None, None];
        for (permit, (credit, wanted)) in permits.iter_mut().zip([(&self.front, to_front), (&self.link, to_link)]) {
            if wanted {
                let Ok(acquired) = credit.bytes.try_acquire_many(cost) else { return Ok(false) };
                *permit = Some(acquired);
            }
        }
        permits.into_iter().flatten().for_each(SemaphorePermit::forget);
        self.append(message.clone(), to_front, to_link)?;
        Ok(true)
    }

    /// Accepts a message as soon as there is credit for it, in the order of asking.
    pub(crate) async fn accept(&self, message: Message, to_front: bool) -> Result<(), RouterStopped> {
        if self.try_accept(&message, to_front)? {
            return Ok(());
        }
        Stats::add(&self.stats.credit_waits, 1);
        let to_link = self.is_for_link(&message);
        let cost = cost(&message);
        // Always in this order, so that nobody waits for somebody who waits for him. Who gives up gives back what it had.
        let mut permits = [None, None];
        for (permit, (credit, wanted)) in permits.iter_mut().zip([(&self.front, to_front), (&self.link, to_link)]) {
            if wanted {
                *permit = Some(credit.bytes.acquire_many(cost).await.map_err(|_| RouterStopped)?);
            }
        }
        permits.into_iter().flatten().for_each(SemaphorePermit::forget);
        self.append(message, to_front, to_link)
    }

    /// Waits until the front has dealt with everything accepted before this call.
    pub(crate) async fn settled(&self) -> Result<(), RouterStopped> {
        let target = self.entrance.lock().unwrap_or_else(PoisonError::into_inner).accepted;
        let mut handled = self.front.handled.subscribe();
        handled.wait_for(|handled| *handled >= target).await.map(drop).map_err(|_| RouterStopped)
    }

    /// Makes rumqttd's thread panic, by a topic that begins with what is not ASCII: nothing that a client sends does.
    #[cfg(test)]
    pub(crate) fn kill(&self) {
        let mut entrance = self.entrance.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = entrance.link.publish("\u{e9}", "");
    }

    fn is_for_link(&self, message: &Message) -> bool {
        let topic = message.topic();
        self.link_filters.get().is_some_and(|filters| filters.iter().any(|filter| matches(filter, topic)))
    }

    fn append(&self, message: Message, to_front: bool, to_link: bool) -> Result<(), RouterStopped> {
        let topic = match (to_front, to_link) {
            (true, true) => TO_BOTH,
            (true, false) => TO_FRONT,
            (false, true) => TO_LINK,
            // Nobody wants it.
            (false, false) => return Ok(()),
        };
        let topic = Bytes::from_static(topic.as_bytes());
        let mut entrance = self.entrance.lock().unwrap_or_else(PoisonError::into_inner);
        entrance.accepted += u64::from(to_front);
        let mut waiting = entrance.link.buffer();
        if !waiting.is_empty() {
            // The event that went with the first of them makes the router take all: it is not told again.
            waiting.push_back(Packet::Publish(Publish::new(topic, message.into_wire(), false), None));
            return Ok(());
        }
        // A burst made it grow; it is not kept for the next.
        waiting.shrink_to(BATCH);
        drop(waiting);
        entrance.link.publish(topic, message.into_wire()).map(drop).map_err(|_| RouterStopped)
    }
}

impl Credit {
    fn new(config: &RouterConfig) -> Arc<Credit> {
        // The log keeps all but the segment that it gives up when a new one begins.
        let bytes = config.segment_bytes * (config.segment_count - 1);
        Arc::new(Credit { bytes: Semaphore::new(bytes), handled: watch::Sender::new(0) })
    }
}

impl Reader {
    /// Waits for messages and moves those at hand, at most a batch, into `messages`. Cancel safe.
    pub(crate) async fn read(&mut self, messages: &mut Vec<Message>) -> Result<(), RouterStopped> {
        let mut bytes = 0;
        while messages.is_empty() {
            if let Some(notification) = self.link.next().await.map_err(|_| RouterStopped)? {
                bytes += self.take(notification, messages)?;
            }
        }
        let now = Instant::now();
        while messages.len() < BATCH
            && let Ok(Some(notification)) = self.link.recv_deadline(now)
        {
            bytes += self.take(notification, messages)?;
        }
        self.credit.bytes.add_permits(bytes);
        Ok(())
    }

    /// Tells those who wait in [`Router::settled`] that `count` messages have been dealt with.
    pub(crate) fn handled(&self, count: usize) {
        self.credit.handled.send_modify(|handled| *handled += count as u64);
    }

    /// Adds what the router forwarded; the credit to give back.
    fn take(&mut self, notification: Notification, messages: &mut Vec<Message>) -> Result<usize, RouterStopped> {
        let forward = match notification {
            Notification::Forward(forward) => forward,
            // About 200 are queued: without this the router would send no more.
            Notification::Unschedule => {
                self.link.ready().map_err(|_| RouterStopped)?;
                return Ok(0);
            }
            _ => return Ok(0),
        };
        if let Some((_, offset)) = forward.cursor {
            let expected = self.last_offset.map_or(offset, |last| last + 1);
            if offset != expected {
                Stats::add(&self.stats.router_gaps, offset.saturating_sub(expected));
                error!(expected, offset, "the router lost messages: this is a bug of the broker");
            }
            self.last_offset = Some(offset);
        }
        let cost = LOG_OVERHEAD + forward.publish.payload.len();
        messages.extend(Message::from_wire(forward.publish.payload));
        Ok(cost)
    }
}

fn cost(message: &Message) -> u32 {
    // A packet is limited to 1 MiB.
    (LOG_OVERHEAD + message.len()) as u32
}
