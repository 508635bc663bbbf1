//! The broker alone, beside mosquitto and the stock server of rumqttd.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::client::{Client, publish, publish_with_id};
use crate::figure::Figures;
use crate::peers::{Master, Process, start_mosquitto, start_stock};

const ROUNDS: usize = 3;
const PAYLOAD: [u8; 150] = [b'x'; 150];
/// Packets that go into one write.
const BURST: u16 = 20;
const THREADS: usize = 2;
/// A run in which nothing comes for this long has lost messages, and is no measurement.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// One of the brokers that are compared. It ends when dropped.
struct Broker {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

fn brokers() -> Result<Vec<Broker>> {
    let Master { process, mqtt, .. } = Master::start(&[])?;
    let mut brokers = vec![Broker { name: "ours", address: mqtt, process }];
    if let Some((process, address)) = start_mosquitto()? {
        brokers.push(Broker { name: "mosquitto", address, process });
    }
    let (process, address) = start_stock()?;
    brokers.push(Broker { name: "stock rumqttd", address, process });
    Ok(brokers)
}

/// Measures all of it.
pub(crate) fn measure(figures: &mut Figures, only: &str) -> Result<()> {
    let mut compare = |name: &str, unit, run: &dyn Fn(&Broker) -> Result<f64>| {
        if name.contains(only) { compare(figures, name, unit, run) } else { Ok(()) }
    };
    for qos in [0, 1] {
        for publishers in [1, 10, 100, 1_000] {
            let name = format!("fan-in {publishers} to 1, QoS {qos}");
            compare(&name, "msg/s", &|broker| fan_in(broker.address, publishers, qos))?;
        }
    }
    compare("fan-out 1 to 1,000, QoS 0", "msg/s", &|broker| fan_out(broker.address))?;
    compare("connect and disconnect", "1/s", &|broker| connects(broker.address))?;
    for connections in [1_000, 5_000, 10_000] {
        let name = format!("memory a connection, {connections} idle with a filter");
        compare(&name, "kB", &|broker| idle(broker, connections))?;
    }
    Ok(())
}

/// Runs each round against a fresh process of each broker. A run that lost messages is left out and said so.
fn compare(figures: &mut Figures, name: &str, unit: &'static str, run: &dyn Fn(&Broker) -> Result<f64>) -> Result<()> {
    let mut results: Vec<(&'static str, Vec<f64>)> = Vec::new();
    for _ in 0..ROUNDS {
        for broker in brokers()? {
            let index = results.iter().position(|(known, _)| *known == broker.name).unwrap_or_else(|| {
                results.push((broker.name, Vec::new()));
                results.len() - 1
            });
            match run(&broker) {
                Ok(value) => results[index].1.push(value),
                Err(error) => eprintln!("{name}, {}: no figure: {error:#}", broker.name),
            }
        }
    }
    let ours = results.remove(0).1;
    for (peer, rounds) in &results {
        figures.add(name, unit, &ours, Some((peer, rounds)));
    }
    Ok(())
}

/// Messages a second that one subscriber received of all that were sent.
fn fan_in(broker: SocketAddr, publishers: usize, qos: u8) -> Result<f64> {
    let total = if qos == 0 { 400_000 } else { 200_000 };
    let bursts = total / publishers / usize::from(BURST);
    let mut subscriber = Client::connect(broker, "bench-subscriber")?;
    subscriber.subscribe("bench/#", qos)?;
    subscriber.give_up_after(LOST_AFTER)?;
    let mut groups: Vec<Vec<Client>> = (0..THREADS.min(publishers)).map(|_| Vec::new()).collect();
    for number in 0..publishers {
        let client = Client::connect(broker, &format!("bench-{number}"))?;
        let groups_count = groups.len();
        groups[number % groups_count].push(client);
    }
    let burst: Vec<u8> = (1..=BURST).flat_map(|id| publish_with_id("bench/x", &PAYLOAD, qos, id)).collect();
    let start = Instant::now();
    thread::scope(|scope| {
        let burst = &burst;
        let sending: Vec<_> = groups
            .into_iter()
            .map(|mut group| {
                scope.spawn(move || -> Result<Vec<Client>> {
                    for _ in 0..bursts {
                        for client in &mut group {
                            client.write(burst)?;
                        }
                        if qos > 0 {
                            for client in &mut group {
                                client.answers(usize::from(BURST))?;
                            }
                        }
                    }
                    Ok(group)
                })
            })
            .collect();
        let sent = bursts * publishers * usize::from(BURST);
        let received = subscriber.drain(sent).context("messages were lost");
        let elapsed = start.elapsed();
        // A broker that stopped reading would hold the senders for ever: closing the subscriber does not help them.
        received?;
        for sender in sending {
            sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        Ok(sent as f64 / elapsed.as_secs_f64())
    })
}

/// Deliveries a second of one publisher's messages to 1,000 subscribers.
fn fan_out(broker: SocketAddr) -> Result<f64> {
    const SUBSCRIBERS: usize = 1_000;
    const MESSAGES: usize = 200;
    let mut subscribers = Vec::new();
    for number in 0..SUBSCRIBERS {
        let mut client = Client::connect(broker, &format!("bench-{number}"))?;
        client.subscribe("bench/x", 0)?;
        client.give_up_after(LOST_AFTER)?;
        subscribers.push(client);
    }
    let mut publisher = Client::connect(broker, "bench-publisher")?;
    let message = publish("bench/x", &PAYLOAD, 0);
    let start = Instant::now();
    publisher.write(&message.repeat(MESSAGES))?;
    for subscriber in &mut subscribers {
        subscriber.drain(MESSAGES).context("messages were lost")?;
    }
    Ok((SUBSCRIBERS * MESSAGES) as f64 / start.elapsed().as_secs_f64())
}

/// Connections a second that are opened, answered and closed, by two threads.
fn connects(broker: SocketAddr) -> Result<f64> {
    const EACH: usize = 2_500;
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    for number in 0..EACH {
                        Client::connect(broker, &format!("bench-{thread}-{number}"))?.write(&[0xe0, 0])?;
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok((THREADS * EACH) as f64 / start.elapsed().as_secs_f64())
    })
}

/// Memory that each idle connection with one filter of its own takes, in kB of 1,000 bytes.
fn idle(broker: &Broker, connections: usize) -> Result<f64> {
    // What the first clients cost once does not belong to a connection.
    drop(Client::connect(broker.address, "bench-first")?);
    let before = broker.process.resident_bytes()?;
    let mut clients = Vec::new();
    for number in 0..connections {
        let mut client = Client::connect(broker.address, &format!("bench-{number}"))?;
        client.subscribe(&format!("bench/to/{number}/#"), 1)?;
        clients.push(client);
    }
    let after = broker.process.resident_bytes()?;
    Ok((after - before) as f64 / 1000.0 / connections as f64)
}
