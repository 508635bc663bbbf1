//! Many slaves that talk as fast as they can.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::client::{Client, publish};
use crate::figure::Figures;
use crate::peers::{Master, start_mosquitto, wait_until};

const ROUNDS: usize = 3;
const SLAVES: usize = 100;
const MESSAGES: usize = 4_000;
/// How many messages go into one write: what an agent that has something to say does.
const BURST: usize = 20;
const THREADS: usize = 2;

/// Messages a second through bus and handlers, parsed, beside a plain subscriber over our broker and over mosquitto.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let mosquitto = start_mosquitto()?;
    let [mut product, mut plain, mut peer] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let master = Master::start(&[])?;
        product.push(through_handlers(&master)?);
        drop(master);
        let master = Master::start(&[])?;
        // Outside the cluster's topics, so that the master has no part in it.
        plain.push(to_subscriber(master.mqtt, "bench")?);
        if let Some((_, address)) = &mosquitto {
            peer.push(to_subscriber(*address, "bench")?);
        }
    }
    let name = "100 slaves through bus and handlers";
    figures.add(name, "msg/s", &product, Some(("plain subscriber, our broker", &plain)));
    figures.add(name, "msg/s", &product, Some(("plain subscriber, mosquitto", &peer)));
    Ok(())
}

fn through_handlers(master: &Master) -> Result<f64> {
    let before = master.counter("handled")?;
    let start = Instant::now();
    let sending = send(master.mqtt, "rpicluster/from")?;
    let sent = (SLAVES * MESSAGES) as u64;
    wait_until("every message is handled", || {
        let handled = master.counter("handled")? - before;
        let shed = master.counter("shed")?;
        ensure!(shed == 0, "{shed} messages were shed: this is no measurement");
        Ok(handled == sent)
    })?;
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    finish(sending)?;
    Ok(rate)
}

fn to_subscriber(broker: SocketAddr, root: &str) -> Result<f64> {
    let mut subscriber = Client::connect(broker, "bench-subscriber")?;
    subscriber.subscribe(&format!("{root}/+/+"), 0)?;
    let start = Instant::now();
    let sending = send(broker, root)?;
    for _ in 0..SLAVES * MESSAGES {
        subscriber.message()?;
    }
    let rate = (SLAVES * MESSAGES) as f64 / start.elapsed().as_secs_f64();
    finish(sending)?;
    Ok(rate)
}

type Sending = Vec<thread::JoinHandle<Result<Vec<Client>>>>;

/// Lets every slave send its messages, envelopes of about 150 bytes, a burst at a time. The time to connect is part of it.
fn send(broker: SocketAddr, root: &str) -> Result<Sending> {
    let mut groups: Vec<Vec<(Client, Vec<u8>)>> = (0..THREADS).map(|_| Vec::new()).collect();
    for number in 0..SLAVES {
        let id = format!("bench-{number}");
        let client = Client::connect(broker, &id)?;
        let text = format!("{:x<100}", format!("reading of {id}: "));
        let envelope = format!(r#"{{"type":"message","payload":"{text}"}}"#);
        let burst = publish(&format!("{root}/{id}/message"), envelope.as_bytes(), 0).repeat(BURST);
        groups[number % THREADS].push((client, burst));
    }
    let run = |mut group: Vec<(Client, Vec<u8>)>| {
        move || {
            for _ in 0..MESSAGES / BURST {
                for (client, burst) in &mut group {
                    client.write(burst)?;
                }
            }
            Ok(group.into_iter().map(|(client, _)| client).collect())
        }
    };
    Ok(groups.into_iter().map(|group| thread::spawn(run(group))).collect())
}

fn finish(sending: Sending) -> Result<()> {
    for thread in sending {
        thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
    }
    Ok(())
}
