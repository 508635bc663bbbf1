use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::mosquitto::tool;
use crate::harness::mqtt::{Client, publish};
use crate::harness::{Cluster, PATIENCE, Process, figure, heavy, run, soak, wait_until};

/// How long subscribers are stopped: less than `limits.write_timeout`, so that they keep their connections.
const STOPPED: Duration = Duration::from_millis(1_500);
/// How long they run before they are stopped again.
const RUNNING: Duration = Duration::from_millis(1_500);
/// The length of messages at QoS 0. Socket buffers hold some thousands of them.
const BYTES: usize = 500;
/// Messages at QoS 1 of one publisher that may be unacknowledged.
const WINDOW: u64 = 20;
/// Messages a second of one publisher at QoS 1: what a stopped session can hold until it goes on.
const PER_SECOND: u32 = 1_000;

/// What a subscriber queues at most; QoS 0 is dropped beyond it, within a second of full load.
const LIMITS: &str = "[limits]\nqueue_bytes = 4194304\n";

/// Names of the variables that tell a peer process its part.
const PART: &str = "NO_LOSS_PART";
const BROKER: &str = "NO_LOSS_BROKER";
const STREAM: &str = "NO_LOSS_STREAM";

/// What has been seen of one sequence of numbers, 1, 2, 3 and so on.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Seen {
    count: u64,
    highest: u64,
    /// Numbers that were jumped over.
    missed: u64,
    /// Numbers that came again or late.
    repeated: u64,
}

/// What has been seen of each sequence, by its topic.
#[derive(Debug, Default, Clone)]
struct Tally(Arc<Mutex<BTreeMap<String, Seen>>>);

impl Tally {
    fn note(&self, topic: &str, number: u64) {
        let mut all = self.lock();
        if !all.contains_key(topic) {
            all.insert(topic.to_owned(), Seen::default());
        }
        let Some(seen) = all.get_mut(topic) else { return };
        seen.count += 1;
        if number > seen.highest {
            seen.missed += number - seen.highest - 1;
            seen.highest = number;
        } else {
            seen.repeated += 1;
        }
    }

    /// Notes a line of topic, number and anything. Other lines are what the test framework says in a peer process.
    fn note_line(&self, line: &str) {
        let mut words = line.split(' ');
        if let (Some(topic), Some(Ok(number))) = (words.next(), words.next().map(str::parse))
            && topic.starts_with("load/")
        {
            self.note(topic, number);
        }
    }

    fn all(&self) -> BTreeMap<String, Seen> {
        self.lock().clone()
    }

    /// How many messages came.
    fn count(&self) -> u64 {
        self.lock().values().map(|seen| seen.count).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 30 minutes in a full run: `SOAK_BROKER=30m`.
fn duration() -> Duration {
    match std::env::var("SOAK_BROKER") {
        Ok(text) => humantime::parse_duration(&text).unwrap_or_else(|error| panic!("SOAK_BROKER={text}: {error}")),
        Err(_) => soak() / 2,
    }
}

#[test]
fn under_full_load_whatever_was_accepted_arrives_or_is_counted() {
    let _turn = heavy();
    let cluster = Cluster::with_broker(LIMITS);
    let subscribed = cluster.broker("subscriptions_now");
    let received = cluster.broker("messages_received");
    // Two who want everything at QoS 0, one of them always awake; two lasting sessions at QoS 1.
    let (awake, slow, keeper, mortal, acknowledged) =
        (Tally::default(), Tally::default(), Tally::default(), Tally::default(), Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let awake_thread = subscribe_awake(cluster.mqtt, &awake, &over);
    let slow_process = mosquitto_sub(&cluster, &slow, &["-t", "load/q0/#"]);
    let keeper_process = mosquitto_sub(&cluster, &keeper, &["-t", "load/q1/#", "-q", "1", "-c", "-i", "keeper"]);
    let mut mortal_process = peer(&cluster, "subscriber", "first", &mortal);
    wait_until("all are subscribed", || cluster.broker("subscriptions_now") == subscribed + 4);

    let (stop, started) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let publishers: Vec<_> = (0..2).map(|number| publish_at_qos_0(cluster.mqtt, number, &stop)).collect();
    let mut kills = 0;
    let mut publisher = peer(&cluster, "publisher", "load/q1/0", &acknowledged);
    while started.elapsed() < duration() {
        pass(RUNNING);
        slow_process.signal(Signal::STOP);
        keeper_process.signal(Signal::STOP);
        publisher.kill();
        mortal_process.kill();
        kills += 1;
        publisher = peer(&cluster, "publisher", &format!("load/q1/{kills}"), &acknowledged);
        pass(STOPPED);
        mortal_process = peer(&cluster, "subscriber", "again", &mortal);
        slow_process.signal(Signal::CONT);
        keeper_process.signal(Signal::CONT);
    }
    publisher.kill();
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum();
    let took = started.elapsed();

    let dropped = || cluster.broker("dropped_slow_reader");
    wait_until("every message at QoS 0 has arrived or is counted", || {
        let found = awake.count() + slow.count() + dropped();
        assert!(found <= 2 * sent, "more than was sent: {found} of 2 times {sent}");
        found == 2 * sent
    });
    assert!(dropped() > 0, "this was no full load");
    for (topic, seen) in awake.all().into_iter().chain(slow.all()) {
        assert_eq!(seen.repeated, 0, "{topic}: {seen:?}");
    }

    let acknowledged = acknowledged.all();
    assert_eq!(acknowledged.len(), kills + 1, "{acknowledged:?}");
    for (name, subscriber) in [("keeper", &keeper), ("mortal", &mortal)] {
        wait_until(&format!("{name} has everything that was acknowledged"), || {
            let all = subscriber.all();
            acknowledged.iter().all(|(topic, seen)| all.get(topic).is_some_and(|got| got.highest >= seen.highest))
        });
        let all = subscriber.all();
        assert!(!all.contains_key("load/absent"), "{name} lost its session");
        assert!(all.values().all(|seen| seen.missed == 0), "{name} has gaps: {all:?}");
    }
    let highest = |tally: &Tally| -> BTreeMap<String, u64> {
        tally.all().into_iter().map(|(topic, seen)| (topic, seen.highest)).collect()
    };
    wait_until("both sessions have the same", || highest(&keeper) == highest(&mortal));
    let lasting: u64 = highest(&keeper).values().sum();
    assert_eq!(cluster.broker("messages_received") - received, sent + lasting, "what was read, and what arrived");
    for counter in ["router_gaps", "queue_overflows", "write_timeouts", "connection_panics", "protocol_errors"] {
        assert_eq!(cluster.broker(counter), 0, "{counter}");
    }
    over.store(true, Ordering::Relaxed);
    awake_thread.join().unwrap();
    figure("no loss: messages sent at QoS 0 and 1", format!("{sent} and {lasting}"), "messages");
    figure("no loss: rate", ((sent + lasting) as f64 / took.as_secs_f64()).round(), "per second");
    figure("no loss: of two subscribers' at QoS 0, dropped and counted", dropped(), "messages");
    figure("no loss: processes killed", 2 * kills, "processes");
}

#[test]
fn publishers_of_one_message_each_lose_none() {
    let count = if soak() >= Duration::from_secs(30) { 1_000 } else { 100 };
    let cluster = Cluster::start();
    let mut subscriber = Client::connect(cluster.mqtt, "s", None).unwrap();
    subscriber.subscribe("in/order").unwrap();
    for number in 0..count {
        let mut command = tool(&cluster, "mosquitto_pub");
        command.args(["-i", "x", "-t", "in/order", "-m", &number.to_string()]);
        assert_eq!(run(command).code, Some(0));
    }
    for number in 0..count {
        let message = subscriber.next(PATIENCE).unwrap().unwrap_or_else(|| panic!("number {number} is lost"));
        assert_eq!(message.payload, number.to_string().as_bytes());
    }
}

/// Lets time pass under load.
fn pass(time: Duration) {
    let started = Instant::now();
    wait_until("it is time", || started.elapsed() >= time);
}

fn mosquitto_sub(cluster: &Cluster, tally: &Tally, arguments: &[&str]) -> Process {
    let mut command = tool(cluster, "mosquitto_sub");
    command.args(["-F", "%t %p"]).args(arguments);
    let tally = tally.clone();
    Process::start_into("mosquitto_sub", command, move |line| tally.note_line(line))
}

/// A subscriber in this process that always reads.
fn subscribe_awake(mqtt: SocketAddr, tally: &Tally, over: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (tally, over) = (tally.clone(), Arc::clone(over));
    let mut client = Client::connect(mqtt, "awake", None).unwrap();
    client.subscribe("load/q0/#").unwrap();
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let note = |message: &crate::harness::mqtt::Message| {
                tally.note_line(&format!("{} {}", message.topic, String::from_utf8_lossy(&message.payload)));
            };
            client.record(Duration::from_millis(100), note).unwrap();
        }
    })
}

/// Publishes as fast as the broker reads, until it is told to stop; how many, all of them read by the broker.
fn publish_at_qos_0(mqtt: SocketAddr, number: usize, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    const BURST: u64 = 50;
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut client = Client::connect(mqtt, &format!("q0-{number}"), None).unwrap();
        let topic = format!("load/q0/{number}");
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let burst = sent + 1..=sent + BURST;
            let packet =
                |number: u64| publish(&topic, format!("{:x<1$}", format!("{number} "), BYTES).as_bytes(), false, 0);
            client.write(&burst.flat_map(packet).collect::<Vec<u8>>()).unwrap();
            sent += BURST;
        }
        client.ping().unwrap();
        sent
    })
}

/// A process that can be killed at any moment, and has said by then what it had got.
fn peer(cluster: &Cluster, part: &str, stream: &str, tally: &Tally) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "no_loss::peer_process", "--ignored", "--nocapture"]);
    command.env(PART, part).env(BROKER, cluster.mqtt.to_string()).env(STREAM, stream);
    let tally = tally.clone();
    Process::start_into(part, command, move |line| tally.note_line(line))
}

#[test]
#[ignore = "no test of its own: the process that the test above starts and kills"]
fn peer_process() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: see no_loss.rs"));
    let mqtt = variable(BROKER).parse().unwrap();
    match variable(PART).as_str() {
        "subscriber" => record_messages(mqtt, variable(STREAM) == "first"),
        "publisher" => publish_at_qos_1(mqtt, &variable(STREAM)),
        other => panic!("{PART}={other}"),
    }
}

/// Says what it gets before it acknowledges it, for ever.
fn record_messages(mqtt: SocketAddr, first: bool) {
    let (mut client, present) = Client::resume(mqtt, "mortal").unwrap();
    if first {
        client.subscribe("load/q1/#").unwrap();
    } else if !present {
        say("load/absent 1");
    }
    loop {
        let said = |message: &crate::harness::mqtt::Message| {
            say(&format!("{} {}", message.topic, String::from_utf8_lossy(&message.payload)));
        };
        client.record(PATIENCE, said).unwrap();
    }
}

/// Publishes numbers and says which are acknowledged, for ever.
fn publish_at_qos_1(mqtt: SocketAddr, topic: &str) {
    let mut client = Client::connect(mqtt, "mortal-publisher", None).unwrap();
    let (mut waiting, mut number, started) = (VecDeque::new(), 0, Instant::now());
    loop {
        while (waiting.len() as u64) < WINDOW && f64::from(PER_SECOND) * started.elapsed().as_secs_f64() > number as f64
        {
            number += 1;
            let id = 1 + (number % u64::from(u16::MAX)) as u16;
            client.write(&publish(topic, number.to_string().as_bytes(), false, id)).unwrap();
            waiting.push_back((id, number));
        }
        match waiting.pop_front() {
            Some((id, number)) => {
                assert_eq!(client.next_acknowledgement().unwrap(), id, "in the order of publishing (MQTT 4.6)");
                say(&format!("{topic} {number}"));
            }
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A line that is out of this process when this returns.
fn say(line: &str) {
    io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}
