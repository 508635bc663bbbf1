//! Request to reply, one at a time.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::client::{Client, Entrance, publish};
use crate::figure::{Figures, median, percentile};
use crate::peers::{Master, start_mosquitto};

const ROUNDS: usize = 5;
const WARM_UP: usize = 300;
const EXCHANGES: usize = 2_000;
const REQUEST: &[u8] = br#"{"type":"info","payload":"time","id":"1"}"#;
const REPLY: &[u8] = br#"{"type":"master_time","payload":{"unix_ms":1767225600000},"re":"1"}"#;

/// p50 and p99 in microseconds, one of each a round.
#[derive(Default)]
pub(crate) struct Rounds {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Rounds {
    /// One round.
    pub(crate) fn of(micros: &[f64]) -> Rounds {
        let mut rounds = Rounds::default();
        rounds.add(micros);
        rounds
    }

    /// The median of all rounds' p50.
    pub(crate) fn p50(&self) -> f64 {
        median(&self.p50)
    }

    fn add(&mut self, micros: &[f64]) {
        self.p50.push(median(micros));
        self.p99.push(percentile(micros, 99));
    }
}

/// `info` request to reply at QoS 1, beside the same exchange between two plain clients over our broker and over
/// mosquitto, and beside a bare TCP echo.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let master = Master::start(&[])?;
    let mosquitto = start_mosquitto()?;
    let [mut product, mut plain, mut peer, mut echo] = std::array::from_fn(|_| Rounds::default());
    for _ in 0..ROUNDS {
        echo.add(&tcp_echo()?);
        plain.add(&two_clients(&master.mqtt.into())?);
        product.add(&info_request(&master.mqtt.into())?);
        if let Some((_, address)) = &mosquitto {
            peer.add(&two_clients(&(*address).into())?);
        }
    }
    figures.add("tcp echo p50", "us", &echo.p50, None);
    figures.add("two clients over our broker p50", "us", &plain.p50, Some(("tcp echo", &echo.p50)));
    figures.add("two clients over mosquitto p50", "us", &peer.p50, Some(("tcp echo", &echo.p50)));
    figures.add("info request to reply p50", "us", &product.p50, Some(("two clients, our broker", &plain.p50)));
    figures.add("info request to reply p50", "us", &product.p50, Some(("two clients, mosquitto", &peer.p50)));
    figures.add("info request to reply p99", "us", &product.p99, Some(("two clients, our broker", &plain.p99)));
    Ok(())
}

/// A request of a slave to the master, and its reply: microseconds, of each.
pub(crate) fn info_request(broker: &Entrance) -> Result<Vec<f64>> {
    let mut client = Client::enter(broker, "bench-1")?;
    client.subscribe("rpicluster/to/bench-1/reply", 1)?;
    let request = publish("rpicluster/from/bench-1/info", REQUEST, 1);
    timed(|| {
        client.write(&request)?;
        let reply = client.message()?.payload;
        ensure!(reply.starts_with(br#"{"type":"master_time""#), "not the reply: {}", String::from_utf8_lossy(&reply));
        Ok(())
    })
}

/// The same exchange with a second client in the master's place.
pub(crate) fn two_clients(broker: &Entrance) -> Result<Vec<f64>> {
    let mut responder = Client::enter(broker, "bench-responder")?;
    responder.subscribe("bench/ask", 1)?;
    let answering = thread::spawn(move || -> Result<()> {
        let reply = publish("bench/answer", REPLY, 1);
        for _ in 0..WARM_UP + EXCHANGES {
            responder.message()?;
            responder.write(&reply)?;
        }
        Ok(())
    });
    let mut client = Client::enter(broker, "bench-asker")?;
    client.subscribe("bench/answer", 1)?;
    let request = publish("bench/ask", REQUEST, 1);
    let micros = timed(|| {
        client.write(&request)?;
        client.message().map(drop)
    })?;
    answering.join().map_err(|_| anyhow::anyhow!("the responder panicked"))??;
    Ok(micros)
}

fn tcp_echo() -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echoing = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; REQUEST.len()];
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; REQUEST.len()];
    let micros = timed(|| {
        stream.write_all(REQUEST)?;
        Ok(stream.read_exact(&mut bytes)?)
    })?;
    drop(stream);
    echoing.join().map_err(|_| anyhow::anyhow!("the echo panicked"))??;
    Ok(micros)
}

fn timed(mut exchange: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    for _ in 0..WARM_UP {
        exchange()?;
    }
    (0..EXCHANGES)
        .map(|_| {
            let start = Instant::now();
            exchange()?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}
