use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::mosquitto::{tool, tool_at};
use crate::harness::mqtt::{Client, Door, Message, publish};
use crate::harness::{Cluster, INSIDER, PATIENCE, Process, figure, heavy, run, soak, wait_until};

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

/// This file's test, which starts itself again as the processes that are killed, and the variable that tells them their
/// part: what they do, for which client id or topic, at which broker.
const TEST: &str = "no_loss::under_full_load_whatever_was_accepted_arrives_or_is_counted";
const PART: &str = "NO_LOSS_PART";

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
        let seen = all.get_mut(topic).unwrap();
        seen.count += 1;
        if number > seen.highest {
            seen.missed += number - seen.highest - 1;
            seen.highest = number;
        } else {
            seen.repeated += 1;
        }
    }

    /// Notes a line of topic, number and anything. Others are what the test framework says in a peer process.
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

    /// How many came if none was missed, however often.
    fn highest(&self) -> u64 {
        self.lock().values().map(|seen| seen.highest).sum()
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
    if let Ok(part) = std::env::var(PART) {
        return play(&part);
    }
    let _turn = heavy();
    let cluster = Cluster::with_broker(LIMITS);
    let subscribed = cluster.broker("subscriptions_now");
    // Two who want everything at QoS 0, one of them always awake; two lasting sessions at QoS 1.
    let (awake, slow, keeper, mortal, acknowledged) =
        (Tally::default(), Tally::default(), Tally::default(), Tally::default(), Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let awake_thread = subscribe_awake(cluster.mqtt, &awake, &over);
    let slow_process = mosquitto_sub(&cluster, &slow, &["-t", "load/q0/#"]);
    let keeper_process = mosquitto_sub(&cluster, &keeper, &["-t", "load/q1/#", "-q", "1", "-c", "-i", "keeper"]);
    let mut mortal_process = peer(&cluster, "subscribe", "mortal", &mortal);
    wait_until("all are subscribed", || cluster.broker("subscriptions_now") == subscribed + 4);
    let (connections, received) = (cluster.broker("connections_now"), cluster.broker("messages_received"));

    let (stop, started) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let publishers: Vec<_> = (0..2).map(|number| publish_at_qos_0(cluster.mqtt, number, &stop)).collect();
    let publisher = |name: &str| {
        let topic = format!("load/q1/{name}");
        let process = peer(&cluster, "publish", &topic, &acknowledged);
        wait_until("the publisher is at work", || acknowledged.all().contains_key(&topic));
        process
    };
    let mut steady = publisher("steady");
    let mut brief = publisher("0");
    let mut kills = 0;
    while started.elapsed() < duration() {
        pass(RUNNING);
        for process in [&slow_process, &keeper_process, &steady] {
            process.signal(Signal::STOP);
        }
        brief.kill();
        mortal_process.kill();
        kills += 1;
        brief = publisher(&kills.to_string());
        pass(STOPPED);
        mortal_process = peer(&cluster, "resume", "mortal", &mortal);
        for process in [&slow_process, &keeper_process, &steady] {
            process.signal(Signal::CONT);
        }
    }
    brief.kill();
    steady.kill();
    stop.store(true, Ordering::Relaxed);
    let sent: u64 = publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum();
    let took = started.elapsed();
    wait_until("what the publishers said is read", || cluster.broker("connections_now") == connections);

    let dropped = || cluster.broker("dropped_slow_reader");
    wait_until("every message at QoS 0 has arrived or is counted", || {
        let found = awake.count() + slow.count() + dropped();
        assert!(found <= 2 * sent, "more than was sent: {found} of 2 times {sent}");
        found == 2 * sent
    });
    assert!(dropped() > 0, "this was no full load");

    let read = cluster.broker("messages_received") - received;
    let unaccepted = cluster.broker("dropped_unaccepted");
    for (name, subscriber) in [("keeper", &keeper), ("mortal", &mortal)] {
        wait_until(&format!("{name} has every message at QoS 1 that was read, but for those counted"), || {
            sent + subscriber.highest() + unaccepted == read
        });
        let all = subscriber.all();
        assert!(all.values().all(|seen| seen.missed == 0), "{name} has gaps: {all:?}");
        for (topic, seen) in acknowledged.all() {
            assert!(all[&topic].highest >= seen.highest, "{name} lacks of {topic} what was acknowledged");
        }
    }
    // Whoever kept its connection got nothing twice.
    for (topic, seen) in [&awake, &slow, &keeper].into_iter().flat_map(Tally::all) {
        assert_eq!(seen.repeated, 0, "{topic}: {seen:?}");
    }
    for counter in ["router_gaps", "queue_overflows", "write_timeouts", "connection_panics", "protocol_errors"] {
        assert_eq!(cluster.broker(counter), 0, "{counter}");
    }
    over.store(true, Ordering::Relaxed);
    awake_thread.join().unwrap();
    figure("no loss: messages read at QoS 0 and 1", format!("{sent} and {}", read - sent), "messages");
    figure("no loss: rate", (read as f64 / took.as_secs_f64()).round(), "per second");
    figure("no loss: of two subscribers' at QoS 0, dropped and counted", dropped(), "messages");
    figure("no loss: of killed publishers', not acknowledged and counted", unaccepted, "messages");
    figure("no loss: processes killed", 2 * kills + 2, "processes");
}

#[test]
fn publishers_of_one_message_each_lose_none() {
    let count = if soak() >= Duration::from_secs(30) { 1_000 } else { 100 };
    let cluster = Cluster::start();
    let mut subscriber = Client::connect(cluster.mqtt, "s", None).unwrap();
    subscriber.subscribe("in/order").unwrap();
    for number in 0..count {
        let mut command = tool_at(cluster.place(), cluster.mqtt, "mosquitto_pub");
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
fn subscribe_awake(mqtt: Door, tally: &Tally, over: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (tally, over) = (tally.clone(), Arc::clone(over));
    let mut client = Client::connect(mqtt, "awake", None).unwrap();
    client.subscribe("load/q0/#").unwrap();
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let note = |message: &Message| {
                tally.note_line(&format!("{} {}", message.topic, String::from_utf8_lossy(&message.payload)));
            };
            client.record(Duration::from_millis(100), note).unwrap();
        }
    })
}

/// Publishes as fast as the broker reads, until it is told to stop; how many, all of them read by the broker.
fn publish_at_qos_0(mqtt: Door, number: usize, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
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

/// This test once more, as a process that can be killed at any moment, and has said by then what it had got.
fn peer(cluster: &Cluster, action: &str, name: &str, tally: &Tally) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env(PART, format!("{action} {name} {}", cluster.mqtt.address));
    let tally = tally.clone();
    Process::start_into(name, command, move |line| tally.note_line(line))
}

fn play(part: &str) {
    let [action, name, broker] = part.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let mqtt = Door { address: broker.parse().unwrap(), login: Some(INSIDER) };
    match action {
        "publish" => publish_at_qos_1(mqtt, name),
        "subscribe" | "resume" => record_messages(mqtt, name, action == "resume"),
        other => panic!("{PART}={other}"),
    }
}

/// Says what it gets before it acknowledges it, for ever.
fn record_messages(mqtt: Door, client_id: &str, again: bool) {
    let (mut client, present) = Client::resume(mqtt, client_id).unwrap();
    assert_eq!(present, again, "the session is there from the second time on");
    if !present {
        client.subscribe("load/q1/#").unwrap();
    }
    loop {
        let said = |message: &Message| say(&format!("{} {}", message.topic, String::from_utf8_lossy(&message.payload)));
        client.record(PATIENCE, said).unwrap();
    }
}

/// Publishes numbers and says which are acknowledged, for ever.
fn publish_at_qos_1(mqtt: Door, topic: &str) {
    // Its topic is its client id.
    let mut client = Client::connect(mqtt, topic, None).unwrap();
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
