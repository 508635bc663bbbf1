//! What TLS costs: latency, connects a second, memory of a connection, and a thousand slaves that come at once.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustls::client::Resumption;

use crate::client::{Client, Entrance};
use crate::figure::Figures;
use crate::latency::{Rounds, info_request, two_clients};
use crate::peers::{Both, Master, start_mosquitto_with_tls, wait_until};
use crate::scale::IDLE;
use crate::simulated::Slaves;

const ROUNDS: usize = 3;
const CONNECTIONS: usize = 1_000;
const SLAVES: usize = 1_000;
const THREADS: usize = 2;
/// Connects and disconnects of one thread.
const CONNECTS: usize = 1_000;

/// Rounds without TLS and with it.
#[derive(Default)]
struct Pair {
    plain: Vec<f64>,
    tls: Vec<f64>,
}

/// Measures all of it, ours beside mosquitto with the same kind of certificate (ECDSA P-256), in each round a fresh process
/// of each.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    latency(figures)?;
    connects(figures)?;
    idle(figures)?;
    slaves(figures)
}

fn latency(figures: &mut Figures) -> Result<()> {
    let master = Master::start(&[])?;
    let mosquitto = start_mosquitto_with_tls()?;
    let ours = Both { plain: master.mqtt.into(), tls: master.entrance_with_tls()? };
    let [mut product, mut product_tls, mut plain, mut tls] = [const { Vec::new() }; 4];
    let (mut peer, mut peer_tls) = (Vec::new(), Vec::new());
    let p50 = |micros: Vec<f64>| Rounds::of(&micros).p50();
    for _ in 0..ROUNDS {
        product.push(p50(info_request(&ours.plain)?));
        product_tls.push(p50(info_request(&ours.tls)?));
        plain.push(p50(two_clients(&ours.plain)?));
        tls.push(p50(two_clients(&ours.tls)?));
        if let Some((_, mosquitto)) = &mosquitto {
            peer.push(p50(two_clients(&mosquitto.plain)?));
            peer_tls.push(p50(two_clients(&mosquitto.tls)?));
        }
    }
    figures.add("info request to reply p50, TLS", "us", &product_tls, Some(("without TLS", &product)));
    figures.add("two clients, our broker p50, TLS", "us", &tls, Some(("without TLS", &plain)));
    figures.add("two clients, mosquitto p50, TLS", "us", &peer_tls, Some(("without TLS", &peer)));
    Ok(())
}

fn connects(figures: &mut Figures) -> Result<()> {
    let [mut ours, mut peer, mut resumed, mut peer_resumed] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let master = Master::start(&[])?;
        let entrance = master.entrance_with_tls()?;
        resumed.push(connects_a_second(&entrance)?);
        ours.push(connects_a_second(&without_resumption(&entrance))?);
        if let Some((_process, mosquitto)) = start_mosquitto_with_tls()? {
            peer_resumed.push(connects_a_second(&mosquitto.tls)?);
            peer.push(connects_a_second(&without_resumption(&mosquitto.tls))?);
        }
    }
    figures.add("connects, TLS, whole handshakes", "1/s", &ours, Some(("mosquitto", &peer)));
    figures.add("connects, TLS, resumed", "1/s", &resumed, Some(("mosquitto", &peer_resumed)));
    Ok(())
}

fn without_resumption(entrance: &Entrance) -> Entrance {
    let tls = entrance.tls.as_ref().map(|config| {
        let mut config = config.as_ref().clone();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    });
    Entrance { tls, ..entrance.clone() }
}

fn connects_a_second(entrance: &Entrance) -> Result<f64> {
    // The first login costs a hash, and others are told meanwhile to come again.
    drop(Client::enter(entrance, "bench-first")?);
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    for number in 0..CONNECTS {
                        Client::enter(entrance, &format!("bench-{thread}-{number}"))?.write(&[0xe0, 0])?;
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok((THREADS * CONNECTS) as f64 / start.elapsed().as_secs_f64())
    })
}

fn idle(figures: &mut Figures) -> Result<()> {
    let (mut ours, mut peer) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for with_tls in [false, true] {
            let master = Master::start(&[])?;
            let entrance = if with_tls { master.entrance_with_tls()? } else { master.mqtt.into() };
            ours.of(with_tls).push(memory_of_one(&entrance, || master.process.resident_bytes())?);
            if let Some((process, mosquitto)) = start_mosquitto_with_tls()? {
                let entrance = if with_tls { &mosquitto.tls } else { &mosquitto.plain };
                peer.of(with_tls).push(memory_of_one(entrance, || process.resident_bytes())?);
            }
        }
    }
    figures.add("memory a connection, 1,000 idle", "kB", &ours.plain, Some(("mosquitto", &peer.plain)));
    figures.add("memory a connection, 1,000 idle, TLS", "kB", &ours.tls, Some(("mosquitto", &peer.tls)));
    Ok(())
}

/// Memory that each idle connection with one filter takes, in kB of 1,000 bytes.
fn memory_of_one(entrance: &Entrance, resident: impl Fn() -> Result<u64>) -> Result<f64> {
    // What the first client costs once does not belong to a connection.
    drop(Client::enter(entrance, "bench-first")?);
    let before = resident()?;
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = Client::enter(entrance, &format!("bench-{number}"))?;
        client.subscribe(&format!("bench/to/{number}/#"), 1)?;
        clients.push(client);
    }
    let after = resident()?;
    Ok(after.saturating_sub(before) as f64 / 1000.0 / CONNECTIONS as f64)
}

/// Real agents with secrets of their own, which whole handshakes bring in.
fn slaves(figures: &mut Figures) -> Result<()> {
    let (mut online, mut memory) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for with_tls in [false, true] {
            let master = Master::start(&[])?;
            let secrets = (0..SLAVES).map(|number| master.add_slave(&format!("bench-{number}")));
            let secrets = secrets.collect::<Result<Vec<String>>>()?;
            let before = master.process.resident_bytes()?;
            let start = Instant::now();
            let slaves = Slaves::start_joined(&master, &secrets, with_tls)?;
            wait_until("1,000 slaves are online", || Ok(master.status()?["online"].as_u64() == Some(SLAVES as u64)))?;
            online.of(with_tls).push(start.elapsed().as_secs_f64());
            thread::sleep(IDLE.min(Duration::from_secs(10)));
            ensure!(slaves.connected() == SLAVES, "some slaves are gone again");
            let after = master.process.resident_bytes()?;
            memory.of(with_tls).push(after.saturating_sub(before) as f64 / 1000.0 / SLAVES as f64);
        }
    }
    figures.add("1,000 slaves online, TLS", "s", &online.tls, Some(("without TLS", &online.plain)));
    figures.add("memory a slave online, TLS", "kB", &memory.tls, Some(("without TLS", &memory.plain)));
    Ok(())
}

impl Pair {
    fn of(&mut self, with_tls: bool) -> &mut Vec<f64> {
        if with_tls { &mut self.tls } else { &mut self.plain }
    }
}
