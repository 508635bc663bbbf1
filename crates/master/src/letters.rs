//! What slaves are told of tasks, on its way out. A slave that does not take it holds up nobody: its messages wait here,
//! bounded, and what does not fit is dropped, since all of it is made again until it is answered.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpicluster_broker::{Outgoing, QoS, RouterStopped};
use rpicluster_protocol::{Downward, SlaveId, Topic, TopicRoot};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::counters::MasterCounters;
use crate::publish::Publish;

/// How many letters wait to be sorted at most; the engine keeps what does not fit.
pub(crate) const LETTERS_MAX: usize = 1_024;

/// How many messages wait for one slave at most.
const MESSAGES_MAX: usize = 256;

/// How long one message may take before it is dropped and counted.
const SENDING_TIME_MAX: Duration = Duration::from_secs(10);

/// Messages to one slave, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) slave: SlaveId,
    pub(crate) messages: Vec<Bytes>,
}

/// Sends everything that comes, until the engine ends.
///
/// # Errors
/// If the broker has stopped.
pub(crate) async fn send<P: Publish>(
    mut letters: mpsc::Receiver<Letter>,
    root: TopicRoot,
    publisher: P,
    counters: Arc<MasterCounters>,
) -> Result<(), RouterStopped> {
    // A slave is in it while something is under way to it.
    let mut waiting: HashMap<SlaveId, VecDeque<Bytes>> = HashMap::new();
    let mut under_way = JoinSet::new();
    loop {
        let slave = tokio::select! {
            letter = letters.recv() => {
                let Some(Letter { slave, messages }) = letter else { return Ok(()) };
                let is_idle = !waiting.contains_key(&slave);
                let queue = waiting.entry(slave.clone()).or_default();
                for message in messages {
                    if queue.len() < MESSAGES_MAX {
                        queue.push_back(message);
                    } else {
                        counters.commands_dropped.count();
                    }
                }
                if !is_idle {
                    continue;
                }
                slave
            }
            Some(ended) = under_way.join_next() => {
                // It sends and does nothing else: that cannot panic.
                let Ok((slave, result)) = ended else { continue };
                result?;
                slave
            }
        };
        let messages = waiting.get_mut(&slave).map(std::mem::take).unwrap_or_default();
        if messages.is_empty() {
            waiting.remove(&slave);
            continue;
        }
        let topic = root.name(&Topic::To(slave.clone(), Downward::Command));
        let (publisher, counters) = (publisher.clone(), counters.clone());
        under_way.spawn(async move { (slave, send_all(messages, topic, publisher, &counters).await) });
    }
}

async fn send_all<P: Publish>(
    messages: VecDeque<Bytes>,
    topic: String,
    publisher: P,
    counters: &MasterCounters,
) -> Result<(), RouterStopped> {
    for payload in messages {
        let message =
            Outgoing { topic: topic.clone(), payload, qos: QoS::AtMostOnce, retain: false, correlation_data: None };
        match tokio::time::timeout(SENDING_TIME_MAX, publisher.publish(message)).await {
            Ok(sent) => sent?,
            Err(_) => counters.commands_dropped.count(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::fake::FakePublisher;

    fn letter(slave: &str, messages: impl IntoIterator<Item = String>) -> Letter {
        Letter { slave: slave.parse().unwrap(), messages: messages.into_iter().map(Bytes::from).collect() }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_of_a_slave_keep_their_order_and_a_stalled_one_holds_up_nobody() {
        let (publisher, mut published) = FakePublisher::new();
        publisher.stall("rpicluster/to/stalled/command");
        let counters = Arc::new(MasterCounters::default());
        let (sender, letters) = mpsc::channel(LETTERS_MAX);
        let task = tokio::spawn(send(letters, TopicRoot::default(), publisher, counters.clone()));
        sender.send(letter("stalled", ["first".to_owned()])).await.unwrap();
        tokio::task::yield_now().await;
        sender.send(letter("stalled", (0..MESSAGES_MAX + 3).map(|n| n.to_string()))).await.unwrap();
        for half in [0..50, 50..100] {
            sender.send(letter("b", half.map(|n| n.to_string()))).await.unwrap();
        }
        for number in 0..100 {
            let message = published.recv().await.unwrap();
            assert_eq!(message.topic, "rpicluster/to/b/command");
            assert_eq!(message.payload, number.to_string());
        }
        assert_eq!(counters.commands_dropped.get(), 3, "what did not fit");
        drop(sender);
        task.await.unwrap().unwrap();
    }
}
