//! One task for each slave: the tutorial's thread per client. It validates, answers at once, and tells the engine.

use std::sync::Arc;
use std::time::Duration;

use rpicluster_broker::RouterStopped;
use rpicluster_core::Moment;
use rpicluster_protocol::limits::{PROTOCOL_VERSION, SLAVE_DETAILS_INTERVAL};
use rpicluster_protocol::{
    BadMessage, Details, Envelope, FromSlave, Info, RequestId, State, ToSlave, TopicRoot, Upward, parse_from_slave,
};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::clock;
use crate::engine::Input;
use crate::loglimit::{LogLimit, Permit, Quoted, SharedLogLimit};
use crate::mailbox::{Mail, Mailbox, Wishes};
use crate::publish::Publish;
use crate::slave_list::SlaveList;
use crate::view::{Slave, View};

mod answers;
use answers::Answers;

/// Log lines of one slave: a burst, then one for each interval.
const LOG_BURST: u32 = 20;
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The longest reason, boot id or version that is kept of a slave's `state`, in characters.
const STATE_TEXT_CHARS_MAX: usize = 64;

/// What all handlers share.
pub(crate) struct World<P> {
    pub(crate) root: TopicRoot,
    pub(crate) view: Arc<View>,
    pub(crate) engine: mpsc::Sender<Input>,
    /// The master's own machine, kept fresh: no answer waits for a measurement.
    pub(crate) machine: watch::Receiver<Arc<Details>>,
    pub(crate) publisher: P,
    /// Bounds the lines of all slaves together.
    pub(crate) log: SharedLogLimit,
}

/// See the module.
pub(crate) struct Handler<P> {
    slave: Arc<Slave>,
    mailbox: Arc<Mailbox>,
    world: Arc<World<P>>,
    answers: Answers<P>,
    log: LogLimit,
    listed_at: Option<Moment>,
}

impl<P: Publish> Handler<P> {
    pub(crate) fn new(slave: Arc<Slave>, mailbox: Arc<Mailbox>, world: Arc<World<P>>) -> Handler<P> {
        let answers = Answers::new(slave.clone(), world.root.clone(), world.publisher.clone());
        Handler { slave, mailbox, world, answers, log: LogLimit::new(LOG_BURST, LOG_INTERVAL), listed_at: None }
    }

    /// Works until the slave is removed or the broker stops.
    pub(crate) async fn run(mut self) -> Result<(), RouterStopped> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                goes_on = self.mailbox.take(&mut batch) => {
                    if !goes_on {
                        return Ok(());
                    }
                    for mail in batch.drain(..) {
                        if let Some(input) = self.handle(mail) {
                            // The engine is gone only when the master stops or fails, and whoever watches it says so.
                            let _ = self.world.engine.send(input).await;
                        }
                    }
                    batch.shrink_to(0);
                }
                sent = self.answers.send_next(), if !self.answers.is_empty() => sent?,
            }
        }
    }

    /// Does everything but wait; what the engine has to be told of it. So an idle task is small: there are many.
    fn handle(&mut self, mail: Mail) -> Option<Input> {
        let Mail { leaf, payload, wishes, retained, at } = mail;
        let input = match parse_from_slave(leaf, &payload) {
            Ok(envelope) if retained => self.kept(envelope, at),
            Ok(envelope) => self.understood(envelope, &wishes, at),
            // Nobody says it now.
            Err(_) if retained => None,
            Err(error) => {
                self.answers.complain(&wishes, error.re, BadMessage::Error(error.problem), at);
                if leaf == Upward::State { self.life(at) } else { None }
            }
        };
        self.slave.counters.handled.count();
        input
    }

    fn understood(&mut self, envelope: Envelope<FromSlave>, wishes: &Wishes, at: Moment) -> Option<Input> {
        match envelope.message {
            FromSlave::State(state) => {
                if let Some(error) = foreign_protocol(&state) {
                    self.answers.complain(wishes, envelope.id, BadMessage::Error(error), at);
                    return self.life(at);
                }
                return Some(self.claim(state, false, at));
            }
            FromSlave::ComputerDetails(details) => return self.details(details.into(), at),
            FromSlave::Vitals(vitals) => self.slave.set_vitals(vitals.into()),
            FromSlave::Message(text) => {
                if let Some(suppressed) = self.permit(at).map(Permit::suppressed) {
                    info!(slave = %self.slave.id, suppressed, "Received message: {}", Quoted(&text));
                }
            }
            FromSlave::Info(wanted) => self.info(wanted, envelope.id, wishes, at),
            FromSlave::TaskStarted(_)
            | FromSlave::TaskFinished(_)
            | FromSlave::TaskRejected(_)
            | FromSlave::TaskOutput(_)
            | FromSlave::TaskJournal(_)
            | FromSlave::TaskLease(_) => {
                let error = BadMessage::Error("this master gives out no tasks yet".to_owned());
                self.answers.complain(wishes, envelope.id, error, at);
            }
        }
        None
    }

    /// A copy that the broker kept tells what was; nobody waits for an answer, or asks for one again.
    fn kept(&mut self, envelope: Envelope<FromSlave>, at: Moment) -> Option<Input> {
        match envelope.message {
            FromSlave::State(state) if foreign_protocol(&state).is_none() => Some(self.claim(state, true, at)),
            FromSlave::ComputerDetails(details) => self.details(details.into(), at),
            _ => None,
        }
    }

    fn claim(&self, state: State, retained: bool, at: Moment) -> Input {
        let state = State {
            boot_id: state.boot_id.map(short),
            version: state.version.map(short),
            reason: state.reason.map(short),
            ..state
        };
        Input::Claim { slave: self.slave.clone(), state, retained, at }
    }

    fn details(&mut self, details: Arc<Details>, at: Moment) -> Option<Input> {
        if let Some(suppressed) = self.permit(at).map(Permit::suppressed) {
            let text = |field: &Option<String>| Quoted(field.as_deref().unwrap_or("unknown")).to_string();
            info!(
                slave = %self.slave.id,
                hostname = text(&details.hostname),
                cpu = text(&details.cpu),
                cpu_cores = details.cpu_cores,
                ram = details.ram,
                cpu_percent_used = details.cpu_percent_used.map(|percent| format!("{percent:.1}")),
                suppressed,
                "computer specifications"
            );
        }
        self.slave.set_details(details).then(|| Input::Details { slave: self.slave.clone() })
    }

    fn info(&mut self, wanted: Info, re: Option<RequestId>, wishes: &Wishes, at: Moment) {
        if let Some(suppressed) = self.permit(at).map(Permit::suppressed) {
            let wanted = Quoted(wanted.as_str());
            info!(slave = %self.slave.id, suppressed, "slave wants to know my info about {wanted}");
        }
        let answer = match wanted {
            Info::ComputerDetails => ToSlave::MasterInfo(Box::new(Details::clone(&self.world.machine.borrow()))),
            Info::Time => ToSlave::MasterTime { unix_ms: clock::wall().unix_ms() },
            Info::SlaveDetails => return self.list_slaves(re, wishes, at),
            Info::Unknown(_) => return self.answers.complain(wishes, re, BadMessage::Unknown, at),
        };
        self.answers.answer(wishes, Envelope::new(answer).answering(re));
    }

    fn list_slaves(&mut self, re: Option<RequestId>, wishes: &Wishes, at: Moment) {
        let wait = self.listed_at.map_or(Duration::ZERO, |last| SLAVE_DETAILS_INTERVAL.saturating_sub(at.since(last)));
        if !wait.is_zero() {
            let seconds = wait.as_millis().div_ceil(1_000);
            let every = SLAVE_DETAILS_INTERVAL.as_secs();
            let error = format!("info: slave_details is answered once in {every} s: ask again in {seconds} s");
            self.answers.complain(wishes, re, BadMessage::Error(error), at);
            return;
        }
        self.listed_at = Some(at);
        let address = self.answers.address(wishes);
        self.answers.list(SlaveList::new(self.world.view.all(), re, address));
    }

    /// A message on the state topic that is no claim is a sign of life like any other.
    fn life(&self, at: Moment) -> Option<Input> {
        self.slave.pulse.beat(at).then(|| Input::Sign { slave: self.slave.clone(), at })
    }

    /// May this slave cause a log line now? Its own limit first: a flood must not use up what the others share.
    fn permit(&mut self, at: Moment) -> Option<Permit> {
        let own = self.log.permit(at)?;
        let Some(shared) = self.world.log.permit(at) else {
            self.log.not_used(own);
            return None;
        };
        Some(own.and(shared))
    }
}

/// What is wrong with a `state` of another protocol than ours.
fn foreign_protocol(state: &State) -> Option<String> {
    let other = state.protocol.filter(|number| *number != PROTOCOL_VERSION)?;
    Some(format!("state: protocol {other} is not spoken here: this master speaks {PROTOCOL_VERSION}"))
}

fn short(text: String) -> String {
    match text.char_indices().nth(STATE_TEXT_CHARS_MAX) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
