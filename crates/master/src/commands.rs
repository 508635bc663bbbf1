//! What the engine has decided to say, said: `announce`, and retained states put right.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpicluster_broker::{Outgoing, QoS, RouterStopped};
use rpicluster_protocol::{
    Downward, Envelope, FromSlave, MessageError, SlaveId, State, ToSlave, Topic, TopicRoot, Upward, encode_from_slave,
    encode_to_slave,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::counters::MasterCounters;
use crate::publish::Publish;

/// How many commands wait at most; the engine keeps what does not fit.
pub(crate) const COMMANDS_MAX: usize = 256;

/// How many commands may be under way: a client that does not read must not hold up the others.
const UNDER_WAY_MAX: usize = 64;

/// How long a command may take before it is dropped and counted. All of them are made again when they matter.
const SENDING_TIME_MAX: Duration = Duration::from_secs(10);

/// Between two announces: 10,000 slaves are asked in ten seconds, not at once.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(1);

/// Something to say.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Ask a slave for its `state` and details.
    Announce(SlaveId),
    /// Write a slave's retained `state` again.
    RewriteRetained(SlaveId, State),
}

impl Command {
    fn message(&self, root: &TopicRoot) -> Result<Outgoing, MessageError> {
        let (topic, payload, retain) = match self {
            Command::Announce(slave) => {
                let topic = Topic::To(slave.clone(), Downward::Command);
                (topic, encode_to_slave(&Envelope::new(ToSlave::Announce))?, false)
            }
            Command::RewriteRetained(slave, state) => {
                let topic = Topic::From(slave.clone(), Upward::State);
                (topic, encode_from_slave(&Envelope::new(FromSlave::State(state.clone())))?, true)
            }
        };
        let payload = Bytes::from(payload);
        Ok(Outgoing { topic: root.name(&topic), payload, qos: QoS::AtLeastOnce, retain, correlation_data: None })
    }
}

/// Says everything that comes, until the engine ends.
///
/// # Errors
/// If the broker has stopped.
pub(crate) async fn send<P: Publish>(
    mut commands: mpsc::Receiver<Command>,
    root: TopicRoot,
    publisher: P,
    counters: Arc<MasterCounters>,
) -> Result<(), RouterStopped> {
    let mut under_way = JoinSet::new();
    while let Some(command) = commands.recv().await {
        while under_way.len() >= UNDER_WAY_MAX {
            settle(under_way.join_next().await, &counters)?;
        }
        while let Some(sent) = under_way.try_join_next() {
            settle(Some(sent), &counters)?;
        }
        // Its parts are bounded when they come in: only a bug makes a command too long.
        let Ok(message) = command.message(&root) else {
            counters.commands_dropped.count();
            continue;
        };
        let publisher = publisher.clone();
        under_way.spawn(async move { tokio::time::timeout(SENDING_TIME_MAX, publisher.publish(message)).await });
        if matches!(command, Command::Announce(_)) {
            tokio::time::sleep(ANNOUNCE_PAUSE).await;
        }
    }
    Ok(())
}

type Sent = Result<Result<Result<(), RouterStopped>, tokio::time::error::Elapsed>, tokio::task::JoinError>;

fn settle(sent: Option<Sent>, counters: &MasterCounters) -> Result<(), RouterStopped> {
    match sent {
        Some(Ok(Ok(result))) => result,
        Some(Ok(Err(_)) | Err(_)) => {
            counters.commands_dropped.count();
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rpicluster_protocol::Liveness;

    use super::*;
    use crate::publish::fake::FakePublisher;

    #[tokio::test]
    async fn commands_reach_their_topics_and_one_stalled_slave_holds_nobody_up() {
        let root = TopicRoot::default();
        let (publisher, mut published) = FakePublisher::new();
        publisher.stall("rpicluster/to/stalled/command");
        let counters = Arc::new(MasterCounters::default());
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let task = tokio::spawn(send(commands, root, publisher, counters));

        let state = State {
            state: Liveness::Offline,
            session: "s1".parse().unwrap(),
            protocol: Some(1),
            boot_id: None,
            version: None,
            slots: None,
            reason: Some("silent".into()),
        };
        sender.send(Command::Announce("stalled".parse().unwrap())).await.unwrap();
        sender.send(Command::RewriteRetained("a".parse().unwrap(), state)).await.unwrap();
        sender.send(Command::Announce("b".parse().unwrap())).await.unwrap();
        let rewritten = published.recv().await.unwrap();
        assert_eq!((rewritten.topic.as_str(), rewritten.retain), ("rpicluster/from/a/state", true));
        let announce = published.recv().await.unwrap();
        assert_eq!((announce.topic.as_str(), announce.retain), ("rpicluster/to/b/command", false));
        drop(sender);
        task.await.unwrap().unwrap();
    }
}
