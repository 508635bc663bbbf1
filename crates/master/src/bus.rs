//! From the broker to the handlers: each message finds its slave by topic, and its handler's mailbox without waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpicluster_broker::RouterStopped;
use rpicluster_core::Moment;
use rpicluster_protocol::{SlaveId, Topic, Upward};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::clock;
use crate::counters::MasterCounters;
use crate::engine::Input;
use crate::handler::{Handler, World};
use crate::health::{BEAT_INTERVAL, Health};
use crate::loglimit::{LogLimit, Quoted};
use crate::mailbox::{Mail, Mailbox, Wishes};
use crate::publish::Publish;
use crate::source::Source;
use crate::tasks::RunError;
use crate::view::Slave;

/// Lines about messages that are nobody's: a burst, then one for each interval.
const LOG_BURST: u32 = 5;
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long a new slave's first `state` may take to the engine.
const CLAIM_TIME_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Bus<P> {
    world: Arc<World<P>>,
    health: Arc<Health>,
    counters: Arc<MasterCounters>,
    /// Topics seen before, so that a topic is parsed once and not once a message. At most a handful for each slave.
    routes: HashMap<Box<str>, Route>,
    slaves: HashMap<SlaveId, (Arc<Slave>, Arc<Mailbox>)>,
    handlers: JoinSet<Result<(), RouterStopped>>,
    log: LogLimit,
}

#[derive(Clone)]
struct Route {
    leaf: Upward,
    slave: Arc<Slave>,
    mailbox: Arc<Mailbox>,
}

impl<P: Publish> Bus<P> {
    pub(crate) fn new(world: Arc<World<P>>, health: Arc<Health>, counters: Arc<MasterCounters>) -> Bus<P> {
        Bus {
            world,
            health,
            counters,
            routes: HashMap::new(),
            slaves: HashMap::new(),
            handlers: JoinSet::new(),
            log: LogLimit::new(LOG_BURST, LOG_INTERVAL),
        }
    }

    /// Delivers until `stop` turns true; the handlers end with the bus.
    ///
    /// # Errors
    /// If the broker has stopped or a handler has panicked.
    pub(crate) async fn run(mut self, mut source: Source, mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
        let mut stopped = std::pin::pin!(async { drop(stop.wait_for(|stop| *stop).await) });
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                arrival = source.recv() => {
                    let arrival = arrival?;
                    let now = clock::now();
                    // Before the engine hears of it: after an absence it learns of that first.
                    self.health.bus.beat(now);
                    self.deliver(arrival.topic(), arrival.payload(), arrival.wishes(), arrival.is_retained(), now);
                    // A flood never makes this wait: let the handlers work, also on a machine with one core.
                    tokio::task::consume_budget().await;
                }
                _ = beat.tick() => self.health.bus.beat(clock::now()),
                Some(ended) = self.handlers.join_next() => {
                    ended.map_err(|error| RunError::Failed { task: "handler", problem: error.to_string() })??;
                }
                () = &mut stopped => return Ok(()),
            }
        }
    }

    fn deliver(&mut self, topic: &str, payload: Bytes, wishes: Wishes, retained: bool, at: Moment) {
        if payload.is_empty() && self.is_farewell(topic, &wishes) {
            return;
        }
        let Some(Route { leaf, slave, mailbox }) = self.route(topic, at) else { return };
        if slave.is_removed() {
            self.counters.refused.count();
            return;
        }
        slave.counters.received.count();
        // A `state` may be a will, or the master's own: whether it is a sign of life is decided where it is read.
        if leaf != Upward::State && !retained && slave.pulse.beat(at) {
            self.report(&slave, at);
        }
        if mailbox.push(Mail { leaf, payload, wishes, retained, at }) {
            slave.counters.shed.count();
        }
    }

    /// Tells the engine of a sign of life that it waits for, without waiting ourselves.
    fn report(&self, slave: &Arc<Slave>, at: Moment) {
        if self.world.engine.try_send(Input::Sign { slave: slave.clone(), at }).is_err() {
            slave.pulse.ask_again(at);
        }
    }

    /// Whether this is the last message of a removed slave. Then nothing of it is left here: who comes back is new.
    fn is_farewell(&mut self, topic: &str, wishes: &Wishes) -> bool {
        let Some(mark) = &wishes.correlation_data else { return false };
        let Ok(Topic::From(id, Upward::State)) = self.world.root.parse(topic) else { return false };
        let is_farewell = self.world.view.farewell(&id, mark);
        if is_farewell {
            self.routes.retain(|_, route| route.slave.id != id);
            if let Some((_, mailbox)) = self.slaves.remove(&id) {
                mailbox.close();
            }
        }
        is_farewell
    }

    /// Where a topic leads; nowhere if it means nothing or its slave is one too many.
    fn route(&mut self, topic: &str, at: Moment) -> Option<Route> {
        if let Some(route) = self.routes.get(topic) {
            return Some(route.clone());
        }
        let Ok(Topic::From(id, leaf)) = self.world.root.parse(topic) else {
            self.counters.unroutable.count();
            if let Some(permit) = self.log.permit(at) {
                warn!(topic = %Quoted(topic), suppressed = permit.suppressed(), "message on a topic of no slave");
            }
            return None;
        };
        let is_new = !self.slaves.contains_key(&id);
        let Some((slave, mailbox)) = self.slave(&id) else {
            self.counters.refused.count();
            if let Some(permit) = self.log.permit(at) {
                let suppressed = permit.suppressed();
                if self.world.view.is_leaving(&id) {
                    warn!(slave = %id, suppressed, "message of a slave that was just removed");
                } else {
                    warn!(slave = %id, suppressed, "slave refused: master.slaves_max are known already");
                }
            }
            return None;
        };
        if is_new && leaf == Upward::State {
            // Its claim goes to the engine by the handler; a sign of life that overtakes it would only raise questions.
            slave.pulse.listen(at + CLAIM_TIME_MAX);
        }
        let route = Route { leaf, slave, mailbox };
        self.routes.insert(topic.into(), route.clone());
        Some(route)
    }

    /// The slave and its mailbox, whose handler is spawned at its first message.
    fn slave(&mut self, id: &SlaveId) -> Option<(Arc<Slave>, Arc<Mailbox>)> {
        if let Some(known) = self.slaves.get(id) {
            return Some(known.clone());
        }
        let slave = self.world.view.get_or_meet(id, clock::wall())?;
        let mailbox = Arc::new(Mailbox::default());
        self.handlers.spawn(Handler::new(slave.clone(), mailbox.clone(), self.world.clone()).run());
        self.slaves.insert(id.clone(), (slave.clone(), mailbox.clone()));
        Some((slave, mailbox))
    }
}

#[cfg(test)]
mod tests;
