//! What strangers, and slaves that joined in order to do harm, do to a master through its listener with TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

use crate::harness::mqtt::{Door, publish, subscribe};
use crate::harness::tls::{TlsDoor, TlsStream};
use crate::harness::{Cluster, INSIDER, PATIENCE};

/// Peers of each kind that take their time.
const SLOW: usize = 100;
/// How often such a peer sends a byte: in time for any timeout that begins anew with each.
const BYTE_EVERY: Duration = Duration::from_millis(500);
/// Logins that are tried at once, because answers to wrong ones come late.
const GUESSES: usize = 50;
/// Connects and resets in 5 minutes.
const RESETS_PER_5_MINUTES: f64 = 10_000.0;
/// Messages, or filters, in one write.
const BATCH: usize = 64;
/// More than `limits.retained_messages_per_client`, by 5,000.
const RETAINED: usize = 25_000;
const RETAINED_PER_CLIENT_MAX: usize = 20_000;
/// The payload of each of them.
pub(super) const RETAINED_BYTES: usize = 1_000;
/// Subscribers that never read: one of each kind of slave, and an observer at each quality of service.
pub(super) const DEAF: u64 = 4;
/// How many connections all of this holds open at once, at most.
pub(super) const CONNECTIONS_MAX: usize = 3 * SLOW + GUESSES + DEAF as usize + 10;

/// What an attack takes for the end of a connection that the broker neither reads nor closes.
const GIVE_UP: Duration = Duration::from_secs(1);

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until(pub(super) Instant);

/// One kind of abuse.
pub(super) struct Attack {
    pub(super) name: &'static str,
    /// What is counted.
    pub(super) unit: &'static str,
    run: fn(&Battle, Until) -> u64,
    /// By how much which counters must grow for that.
    pub(super) counted: fn(u64) -> Vec<(Place, &'static str, u64)>,
}

/// Where a counter stands in `/api/v1/status`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Broker,
    Master,
}

use Place::{Broker, Master};

pub(super) const ATTACKS: [Attack; 9] = [
    Attack {
        name: "peers that take their time before TLS, in the handshake, before CONNECT",
        unit: "peers closed",
        run: take_their_time,
        counted: |count| vec![(Broker, "connect_timeouts", count)],
    },
    Attack {
        name: "logins guessed",
        unit: "guesses",
        run: guess,
        counted: |count| vec![(Broker, "guesses", count), (Broker, "connects_refused", count)],
    },
    Attack {
        name: "connects and resets",
        unit: "connections",
        run: connect_and_reset,
        counted: |count| vec![(Broker, "connections", count), (Broker, "tls_failures", count * 2 / 3)],
    },
    Attack {
        name: "topics of an enrolled slave's own making, and of others",
        unit: "messages",
        run: publish_to_many_topics,
        counted: |count| vec![(Master, "unroutable", count / 2), (Broker, "publishes_refused", count / BATCH as u64)],
    },
    Attack {
        name: "filters of an enrolled slave",
        unit: "filters refused",
        run: subscribe_to_many_filters,
        counted: |count| vec![(Broker, "subscriptions_refused", count)],
    },
    Attack {
        name: "retained messages of an enrolled slave",
        unit: "rounds",
        run: retain_much,
        counted: |rounds| vec![(Broker, "dropped_retained", rounds * (RETAINED - RETAINED_PER_CLIENT_MAX) as u64)],
    },
    Attack {
        name: "answers at QoS 0 that an enrolled slave never reads",
        unit: "cuts",
        run: |battle, until| ask_and_never_read(battle, "deaf-0", 0, until),
        counted: |count| vec![(Broker, "write_timeouts", count)],
    },
    Attack {
        name: "answers at QoS 1 that an enrolled slave never reads",
        unit: "cuts",
        run: |battle, until| ask_and_never_read(battle, "deaf-1", 1, until),
        counted: |count| vec![(Broker, "queue_overflows", count)],
    },
    Attack {
        name: "observers of everything that never read",
        unit: "observers",
        run: observe_and_never_read,
        // Whether a publisher is held too, before that, is a matter of moments: crates/broker/tests/slow_readers.rs.
        counted: |_| vec![(Broker, "dropped_slow_reader", 1)],
    },
];

/// What all attacks share.
#[derive(Clone)]
pub(super) struct Battle {
    tls: TlsDoor,
    /// What the counters were before.
    before: Arc<Value>,
    /// Slaves that joined as any other, by their ids.
    hostile: Arc<[(&'static str, Door)]>,
    observer: Door,
}

impl Attack {
    /// Goes on until the time is over; how often something was done.
    pub(super) fn run(&self, battle: &Battle, until: Until) -> u64 {
        // On a network attackers have processors of their own: they shall not take those of whom they attack.
        let _ = rustix::process::nice(10);
        (self.run)(battle, until)
    }
}

impl Until {
    fn is_over(self) -> bool {
        Instant::now() >= self.0
    }

    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

impl Battle {
    /// Lets the hostile slaves and the observer in.
    pub(super) fn prepare(cluster: &Cluster) -> Battle {
        let ids = ["topics", "filters", "retained", "deaf-0", "deaf-1"];
        let hostile = ids.map(|id| (id, cluster.door_of(id))).into();
        let login = ("watcher", "nothing better to do");
        let account = json!({ "name": login.0, "role": "observer", "password": login.1 });
        cluster.change("POST", "/api/v1/accounts", Some(&account));
        let observer = Door { login: Some(login), ..cluster.mqtt };
        let before = Arc::new(cluster.get("/api/v1/status"));
        Battle { tls: TlsDoor::of(cluster), before, hostile, observer }
    }

    /// By how much a counter has grown.
    pub(super) fn counter(&self, cluster: &Cluster, place: Place, name: &str) -> u64 {
        let of = |status: &Value| match place {
            Broker => status["broker"][name].as_u64().unwrap(),
            Master => status["counters"][name].as_u64().unwrap(),
        };
        of(&cluster.get("/api/v1/status")) - of(&self.before)
    }

    /// A hostile slave's connection.
    fn enter(&self, id: &str) -> io::Result<TlsStream> {
        let (_, door) = self.hostile.iter().find(|(known, _)| *known == id).unwrap();
        self.enter_as(*door, id)
    }

    fn enter_as(&self, door: Door, client_id: &str) -> io::Result<TlsStream> {
        let mut stream = self.tls.open()?;
        stream.write_all(&door.hello(client_id, true, None))?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        if connack[3] != 0 {
            return Err(io::Error::other(format!("CONNACK {connack:?}")));
        }
        Ok(stream)
    }
}

trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A peer that has sent a part of what it will never have sent.
struct Slow {
    stream: Box<dyn Stream>,
    rest: std::vec::IntoIter<u8>,
}

fn take_their_time(battle: &Battle, until: Until) -> u64 {
    let connect = battle.observer.hello("slow", true, None);
    let begin = |kind: usize| -> io::Result<Slow> {
        let (stream, rest): (Box<dyn Stream>, Vec<u8>) = match kind {
            0 | 1 => {
                let stream = battle.tls.tcp()?;
                stream.set_nonblocking(true)?;
                (Box::new(stream), if kind == 0 { Vec::new() } else { battle.tls.client_hello() })
            }
            _ => {
                let stream = battle.tls.open()?;
                stream.sock.set_nonblocking(true)?;
                (Box::new(stream), connect.clone())
            }
        };
        Ok(Slow { stream, rest: rest.into_iter() })
    };
    let mut closed = 0;
    let mut peers: Vec<Option<Slow>> = (0..3 * SLOW).map(|_| None).collect();
    while !until.is_over() {
        for (number, place) in peers.iter_mut().enumerate() {
            if let Some(peer) = place
                && peer.is_over()
            {
                closed += 1;
                *place = None;
            }
            if place.is_none() && !until.is_over() {
                *place = begin(number % 3).ok();
            }
        }
        thread::sleep(BYTE_EVERY.min(until.left()));
    }
    closed
}

impl Slow {
    /// Sends the next byte; whether the broker has closed the connection.
    fn is_over(&mut self) -> bool {
        match self.stream.read(&mut [0; 256]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return true,
        }
        self.rest.next().is_some_and(|byte| self.stream.write_all(&[byte]).is_err())
    }
}

/// Wrong secrets of a slave that exists, and wrong passwords of an account.
fn guess(battle: &Battle, until: Until) -> u64 {
    let mut answered = 0;
    while !until.is_over() {
        let guess = |number: usize| -> io::Result<TlsStream> {
            let user = if number.is_multiple_of(2) { "node-0001" } else { INSIDER.0 };
            let door = Door { login: Some((user, "letmein")), ..battle.observer };
            let mut stream = battle.tls.open()?;
            stream.write_all(&door.hello(user, true, None))?;
            Ok(stream)
        };
        let waiting: Vec<TlsStream> = (0..GUESSES).filter_map(|number| guess(number).ok()).collect();
        for mut stream in waiting {
            let mut connack = [0; 4];
            if stream.read_exact(&mut connack).is_ok() {
                assert_ne!(connack[3], 0, "guessed right");
                // Others are told that the broker is busy (3): so many hashes are not made at once.
                answered += u64::from(connack[3] != 3);
            }
        }
    }
    answered
}

/// At once, within the handshake, and right after it.
fn connect_and_reset(battle: &Battle, until: Until) -> u64 {
    let (started, length) = (Instant::now(), until.left());
    let count = (RESETS_PER_5_MINUTES * length.as_secs_f64() / 300.0) as u32;
    for number in 0..count {
        thread::sleep((started + length * number / count).saturating_duration_since(Instant::now()));
        let tcp = match number % 3 {
            0 => battle.tls.tcp().unwrap(),
            1 => {
                let mut stream = battle.tls.tcp().unwrap();
                stream.write_all(&battle.tls.client_hello()).unwrap();
                stream
            }
            _ => battle.tls.open().unwrap().sock,
        };
        set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    }
    count.into()
}

/// As fast as the broker takes it, half of it at QoS 1; one message in a batch in the name of somebody else.
fn publish_to_many_topics(battle: &Battle, until: Until) -> u64 {
    let mut count = 0;
    while !until.is_over() {
        let Ok(mut stream) = battle.enter("topics") else { continue };
        stream.sock.set_write_timeout(Some(GIVE_UP)).unwrap();
        stream.sock.set_read_timeout(Some(GIVE_UP)).unwrap();
        let mut sent = 0;
        while !until.is_over() {
            let mut batch = publish("rpicluster/from/node-0001/state", b"{}", false, 0);
            for number in 1..BATCH as u64 {
                let id = if number.is_multiple_of(2) { number as u16 } else { 0 };
                let topic = format!("rpicluster/from/topics/{}", count + sent + number);
                batch.extend(publish(&topic, &[b'x'; 200], false, id));
            }
            // Held back is as good as slow: the connection is left when nothing goes on.
            if stream.write_all(&batch).is_err() || read_acknowledgements(&mut stream, BATCH / 2 - 1).is_err() {
                break;
            }
            sent += BATCH as u64;
        }
        count += sent;
    }
    count
}

fn read_acknowledgements(stream: &mut TlsStream, count: usize) -> io::Result<()> {
    stream.read_exact(&mut vec![0; 4 * count])
}

/// All within its own topics, and each packet with one that is not.
fn subscribe_to_many_filters(battle: &Battle, until: Until) -> u64 {
    let mut refused = 0;
    while !until.is_over() {
        let Ok(mut stream) = battle.enter("filters") else { continue };
        for round in 0..200 {
            let own = (1..BATCH).map(|number| format!("rpicluster/to/filters/{round}/{number}/+/#"));
            let filters: Vec<String> = own.chain(["rpicluster/#".to_owned()]).collect();
            let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
            let mut suback = vec![0; 4 + BATCH];
            let asked = stream.write_all(&subscribe(&filters, 1, 1)).and_then(|()| stream.read_exact(&mut suback));
            if asked.is_err() || until.is_over() {
                break;
            }
            refused += suback[4..].iter().filter(|code| **code == 0x80).count() as u64;
        }
    }
    refused
}

fn retain_much(battle: &Battle, until: Until) -> u64 {
    let mut stream = battle.enter("retained").unwrap();
    let mut rounds = 0;
    while !until.is_over() {
        for first in (0..RETAINED).step_by(BATCH) {
            let messages = (first..RETAINED.min(first + BATCH)).flat_map(|number| {
                publish(&format!("rpicluster/from/retained/{number:05}"), &[b'x'; RETAINED_BYTES], true, 0)
            });
            stream.write_all(&messages.collect::<Vec<u8>>()).unwrap();
        }
        stream.write_all(&[0xc0, 0]).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        rounds += 1;
    }
    rounds
}

/// Asks again and again, until it is cut, and comes again. On a slow machine the first cut may come late.
fn ask_and_never_read(battle: &Battle, id: &'static str, qos: u8, until: Until) -> u64 {
    let request = br#"{"type":"info","payload":"computer_details"}"#;
    let requests = publish(&format!("rpicluster/from/{id}/info"), request, false, 0).repeat(BATCH);
    let mut cuts = 0;
    let latest = Until(until.0 + PATIENCE);
    let is_over = |cuts| if cuts == 0 { latest.is_over() } else { until.is_over() };
    while !is_over(cuts) {
        let Ok(mut stream) = battle.enter(id) else { continue };
        let filter = format!("rpicluster/to/{id}/#");
        stream.write_all(&subscribe(&[&filter], qos, 1)).unwrap();
        while !is_over(cuts) {
            if stream.write_all(&requests).is_err() {
                cuts += 1;
                break;
            }
        }
    }
    cuts
}

/// They ask for all there is, at QoS 0 and 1, and are cut or left unread.
fn observe_and_never_read(battle: &Battle, until: Until) -> u64 {
    // Told to come again while passwords are guessed, they do.
    let observe = |qos: u8| -> io::Result<TlsStream> {
        let mut stream = battle.enter_as(battle.observer, &format!("watcher-{qos}"))?;
        stream.write_all(&subscribe(&["rpicluster/#"], qos, 1))?;
        stream.sock.set_nonblocking(true)?;
        Ok(stream)
    };
    let mut observers = [None, None];
    let mut count = 0;
    while !until.is_over() {
        for (qos, place) in observers.iter_mut().enumerate() {
            // A PINGREQ fails once it has been cut.
            let alive = place.as_mut().is_some_and(|stream: &mut TlsStream| match stream.write_all(&[0xc0, 0]) {
                Err(error) => error.kind() == ErrorKind::WouldBlock,
                Ok(()) => true,
            });
            if !alive {
                *place = observe(qos as u8).ok();
                count += u64::from(place.is_some());
            }
        }
        thread::sleep(BYTE_EVERY.min(until.left()));
    }
    count
}
