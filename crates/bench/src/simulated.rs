//! Slaves in this process, as many as wanted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Result;
use rpicluster_client::{Connection, Login, Trust};
use rpicluster_protocol::{
    Action, AttemptKey, Details, Envelope, FromSlave, JournalEntry, JournalId, Outcome, Part, RejectReason, SessionId,
    SlaveId, TaskFinished, TaskJournal, TaskOffer, TaskRejected, ToSlave, TopicRoot, Vitals, Work,
};
use rpicluster_slave::{Access, Behaviour, Outbox, Slave, SlaveConfig, SlaveError, Status};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::LOGIN;
use crate::peers::Master;

/// They end when dropped.
pub(crate) struct Slaves {
    _runtime: Runtime,
    statuses: Vec<watch::Receiver<Status>>,
    _tasks: JoinSet<Result<(), SlaveError>>,
}

impl Slaves {
    /// By the listener without TLS, all with one account.
    pub(crate) fn start(master: SocketAddr, count: usize) -> Result<Slaves> {
        let connection = Connection::new(format!("mqtt://{master}").parse()?, &Trust::System, None)?;
        let login = Login { user: LOGIN.0.to_owned(), password: LOGIN.1.to_owned() };
        Slaves::start_as(&connection, std::iter::repeat_n(login, count))
    }

    /// Those whose secrets these are, in this order, by the listener with TLS or the one without.
    pub(crate) fn start_joined(master: &Master, secrets: &[String], with_tls: bool) -> Result<Slaves> {
        let connection = if with_tls {
            Connection::new(format!("mqtts://{}", master.mqtts).parse()?, &Trust::Ca(master.ca.clone()), None)?
        } else {
            Connection::new(format!("mqtt://{}", master.mqtt).parse()?, &Trust::System, None)?
        };
        let login = |(number, secret): (usize, &String)| Login { user: name(number), password: secret.clone() };
        Slaves::start_as(&connection, secrets.iter().enumerate().map(login))
    }

    fn start_as(connection: &Connection, logins: impl Iterator<Item = Login>) -> Result<Slaves> {
        let runtime = Runtime::new()?;
        let mut tasks = JoinSet::new();
        let mut statuses = Vec::new();
        for (number, login) in logins.enumerate() {
            let id: SlaveId = name(number).parse()?;
            let connection = connection.clone().with_login(login);
            let config = SlaveConfig { id: Some(id.clone()), ..SlaveConfig::default() };
            let canned =
                Canned { id, journal_id: JournalId(number as u64), session: None, unacknowledged: BTreeMap::new() };
            let slave = Slave::new(config, TopicRoot::default(), Access::Account(connection), canned)?;
            statuses.push(slave.status());
            tasks.spawn_on(slave.run(std::future::pending()), runtime.handle());
        }
        Ok(Slaves { _runtime: runtime, statuses, _tasks: tasks })
    }

    pub(crate) fn connected(&self) -> usize {
        self.statuses.iter().filter(|status| status.borrow().connected).count()
    }
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}

/// A slave that tells the same every time and whose tasks end at once, so that it costs next to nothing. It keeps the
/// protocol, but its journal is in memory: a thousand machines have a thousand disks, and this one has not.
struct Canned {
    id: SlaveId,
    journal_id: JournalId,
    session: Option<SessionId>,
    /// How those attempts ended that it may not forget yet.
    unacknowledged: BTreeMap<AttemptKey, JournalEntry>,
}

impl Behaviour for Canned {
    fn details(&mut self) -> Details {
        Details { hostname: Some(self.id.to_string()), cpu_cores: Some(4), ram: Some(1 << 32), ..Details::default() }
    }

    fn vitals(&mut self) -> Option<Vitals> {
        let load = Some([0.5, 0.25, 0.125]);
        Some(Vitals { cpu_percentage: Some(1.5), ram_free: Some(1 << 31), load, ..Vitals::default() })
    }

    fn on_connected(&mut self, session: &SessionId, outbox: &Outbox) {
        self.session = Some(session.clone());
        self.tell_journal(outbox);
    }

    fn on_reply(&mut self, reply: &Envelope<ToSlave>, outbox: &Outbox) {
        match &reply.message {
            ToSlave::Announce => self.tell_journal(outbox),
            ToSlave::TaskOffer(offers) => {
                for offer in offers {
                    // An offer that is made again is answered with what the journal holds.
                    let entry = self.unacknowledged.entry(offer.key).or_insert_with(|| end_of(offer));
                    say(outbox, told(entry.clone()));
                }
            }
            ToSlave::TaskAck(acks) => {
                for ack in acks {
                    if self.unacknowledged.get(&ack.key).is_some_and(|entry| entry.seq() <= ack.seq) {
                        self.unacknowledged.remove(&ack.key);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Canned {
    /// All in one part: no more is ever open than a few slots.
    fn tell_journal(&self, outbox: &Outbox) {
        let Some(session) = self.session.clone() else { return };
        let attempts = self.unacknowledged.values().cloned().collect();
        let journal = FromSlave::TaskJournal(TaskJournal { journal_id: self.journal_id, session, attempts });
        say(outbox, Envelope { part: Some(Part { number: 0, last: true }), ..Envelope::new(journal) });
    }
}

/// What does not fit is asked for again by the master.
fn say(outbox: &Outbox, message: impl Into<Envelope<FromSlave>>) {
    let _ = outbox.try_send(message);
}

/// The newest event of an attempt that takes no time: as with a real slave, that it began is not told any more.
fn end_of(offer: &TaskOffer) -> JournalEntry {
    let finished = |seq| TaskFinished::new(offer.key, seq, Outcome::Succeeded);
    match &offer.spec.work {
        Work::Action { action: Action::Ping } => {
            JournalEntry::Finished(Box::new(TaskFinished { result: Some("pong".into()), ..finished(1) }))
        }
        Work::Exec { .. } => JournalEntry::Finished(Box::new(TaskFinished { exit_code: Some(0), ..finished(2) })),
        _ => {
            let reason = RejectReason::Unsupported;
            JournalEntry::Rejected(TaskRejected { key: offer.key, seq: 1, reason, detail: None })
        }
    }
}

fn told(entry: JournalEntry) -> FromSlave {
    match entry {
        JournalEntry::Started(started) => FromSlave::TaskStarted(vec![started]),
        JournalEntry::Finished(finished) => FromSlave::TaskFinished(vec![*finished]),
        JournalEntry::Rejected(rejected) => FromSlave::TaskRejected(vec![rejected]),
    }
}
