use rpicluster_machine::Sampler;
use rpicluster_protocol::{Details, Envelope, SessionId, SlaveId, ToSlave, Vitals};

use crate::outbox::Outbox;

/// What a slave says and how it reacts: the tutorial's abstract slave. Every method has a default; override what should
/// differ.
///
/// The methods run on the slave's own task between two messages: they must return soon. Long work belongs in a task of
/// its own, which answers through a clone of the [`Outbox`].
pub trait Behaviour: Send {
    /// What the machine is, published (retained) at the start of each session and when the master asks for it.
    ///
    /// Labels and the agent's version are added if they are left out.
    fn details(&mut self) -> Details {
        Details::default()
    }

    /// How the machine fares, asked for at every vitals interval; `None` says nothing this time.
    fn vitals(&mut self) -> Option<Vitals> {
        None
    }

    /// The text that is published at every message interval; `None` says nothing this time.
    fn message(&mut self, id: &SlaveId) -> Option<String> {
        Some(format!("I am still alive, client: {id}"))
    }

    /// A session has begun: state, details and the `info` request of the hello are on their way, before anything that
    /// is sent from here.
    fn on_connected(&mut self, session: &SessionId, outbox: &Outbox) {
        let _ = (session, outbox);
    }

    /// The master has sent something to this slave, an answer or an order, in parts if it is long.
    fn on_reply(&mut self, reply: &Envelope<ToSlave>, outbox: &Outbox) {
        let _ = (reply, outbox);
    }

    /// The master is another run than the one known before.
    fn on_master_changed(&mut self, master_session: &SessionId, outbox: &Outbox) {
        let _ = (master_session, outbox);
    }
}

/// The behaviour of a real slave: it tells about the machine on which it runs.
#[derive(Debug, Default)]
pub struct Agent {
    sampler: Sampler,
}

impl Agent {
    /// An agent whose first CPU figure is the average since boot.
    pub fn new() -> Agent {
        Agent::default()
    }
}

impl Behaviour for Agent {
    fn details(&mut self) -> Details {
        self.sampler.details()
    }

    fn vitals(&mut self) -> Option<Vitals> {
        Some(self.sampler.vitals())
    }
}
