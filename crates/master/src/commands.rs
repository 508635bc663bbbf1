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
    /// Take the retained messages of a slave away that was removed. With the last of them goes a mark (as Correlation
    /// Data) by which the bus knows that all that was said in that slave's name has come.
    Farewell(SlaveId, Bytes),
}

impl Command {
    /// What is to be published, in this order.
    fn messages(&self, root: &TopicRoot) -> Result<Vec<Outgoing>, MessageError> {
        let message = |topic: Topic, payload: Vec<u8>, retain, correlation_data| Outgoing {
            topic: root.name(&topic),
            payload: Bytes::from(payload),
            qos: QoS::AtLeastOnce,
            retain,
            correlation_data,
        };
        Ok(match self {
            Command::Announce(slave) => {
                let payload = encode_to_slave(&Envelope::new(ToSlave::Announce))?;
                vec![message(Topic::To(slave.clone(), Downward::Command), payload, false, None)]
            }
            Command::RewriteRetained(slave, state) => {
                let payload = encode_from_slave(&Envelope::new(FromSlave::State(state.clone())))?;
                vec![message(Topic::From(slave.clone(), Upward::State), payload, true, None)]
            }
            Command::Farewell(slave, mark) => vec![
                message(Topic::From(slave.clone(), Upward::Details), Vec::new(), true, None),
                message(Topic::From(slave.clone(), Upward::State), Vec::new(), true, Some(mark.clone())),
            ],
        })
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
        let Ok(messages) = command.messages(&root) else {
            counters.commands_dropped.count();
            continue;
        };
        if matches!(command, Command::Farewell(..)) {
            // What is under way may be a state of this very slave, and this must be the last that is said of it.
            while let Some(sent) = under_way.join_next().await {
                settle(Some(sent), &counters)?;
            }
            for message in messages {
                publisher.publish(message).await?;
            }
            continue;
        }
        for message in messages {
            let publisher = publisher.clone();
            under_way.spawn(async move { tokio::time::timeout(SENDING_TIME_MAX, publisher.publish(message)).await });
        }
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
            ahead: None,
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

    #[tokio::test(start_paused = true)]
    async fn a_farewell_takes_both_retained_messages_away_and_is_the_last_that_is_said() {
        let (publisher, mut published) = FakePublisher::new();
        publisher.stall("rpicluster/to/pi/command");
        let counters = Arc::new(MasterCounters::default());
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let task = tokio::spawn(send(commands, TopicRoot::default(), publisher, counters.clone()));
        let pi: SlaveId = "pi".parse().unwrap();
        sender.send(Command::Announce(pi.clone())).await.unwrap();
        sender.send(Command::Farewell(pi, Bytes::from_static(b"mark"))).await.unwrap();
        let details = published.recv().await.unwrap();
        assert_eq!(counters.commands_dropped.get(), 1, "what was under way has ended before");
        assert_eq!((details.topic.as_str(), &details.payload[..]), ("rpicluster/from/pi/details", &b""[..]));
        let state = published.recv().await.unwrap();
        assert_eq!((state.topic.as_str(), state.payload.len()), ("rpicluster/from/pi/state", 0));
        assert_eq!(state.correlation_data.as_deref(), Some(&b"mark"[..]));
        assert!(details.retain && state.retain);
        drop(sender);
        task.await.unwrap().unwrap();
    }
}
