mod attacks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rpicluster_protocol::{Envelope, FromSlave, Info, RequestId, ToSlave};
use rpicluster_slave::Outbox;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::fleet::Fleet;
use crate::harness::{Cluster, PATIENCE, figure, heavy, raise_open_files, soak, wait_until};
use attacks::{ATTACKS, Attack, Battle, DEAF, Until};

/// Slaves that do their work meanwhile.
const HONEST: usize = 100;
/// How often each of them asks for something.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often the master is asked who is online.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The claim: the slowest reply to an honest slave. Asserted in a full run only, for a machine has other work too.
const REPLY_MAX: Duration = Duration::from_millis(250);
/// From this length on it is a full run.
const FULL_RUN: Duration = Duration::from_secs(60);

/// What `limits.queue_bytes` lets wait for one client, twice: queued as it is, and encoded to be sent.
const QUEUE_BYTES: u64 = 2 * 16 * 1024 * 1024;
/// What a connection may hold: what it has not finished reading or writing (`limits.packet_bytes`), and TLS.
const CONNECTION_BYTES: u64 = 100 * 1024;
/// The logs of the router's two readers, each of `router.segment_count` times `router.segment_bytes`.
const ROUTER_BYTES: u64 = 2 * 4 * 512 * 1024;
/// What the broker may need for a retained message beside its payload.
const RETAINED_OVERHEAD: u64 = 300;
/// An argon2id hash, and one more that the allocator keeps.
const HASH_BYTES: u64 = 2 * 19 * 1024 * 1024;

/// 5 minutes in a full run: `SOAK_ABUSE=5m`.
fn duration() -> Duration {
    match std::env::var("SOAK_ABUSE") {
        Ok(text) => humantime::parse_duration(&text).unwrap_or_else(|error| panic!("SOAK_ABUSE={text}: {error}")),
        Err(_) => soak(),
    }
}

#[test]
fn a_hundred_slaves_work_undisturbed_while_strangers_and_a_neighbour_do_their_worst() {
    let _turn = heavy();
    raise_open_files();
    let cluster = Arc::new(Cluster::start());
    let mut fleet = Fleet::start_encrypted(&cluster, HONEST);
    let battle = Battle::prepare(&cluster);
    let before = presence(&cluster, HONEST);
    let memory = cluster.master.memory();

    let (replies, asking) = keep_asking(&mut fleet);
    let quiet = Instant::now();
    wait_until("everybody was answered some times", || replies.count() >= 3 * HONEST as u64);
    figure("abuse: slowest reply before", millis(replies.slowest_since(quiet)), "ms");

    let watch = Watch::start(&cluster);
    let (started, until) = (Instant::now(), Until(Instant::now() + duration()));
    let attacks: Vec<(&Attack, JoinHandle<u64>)> = ATTACKS
        .iter()
        .map(|attack| {
            let battle = battle.clone();
            (attack, thread::spawn(move || attack.run(&battle, until)))
        })
        .collect();
    let done: Vec<(&Attack, u64)> = attacks.into_iter().map(|(attack, run)| (attack, run.join().unwrap())).collect();
    // What was asked last is answered too.
    let answered = replies.count();
    wait_until("everybody is answered again", || replies.count() >= answered + 2 * HONEST as u64);
    let slowest = replies.slowest_since(started);
    let took = replies.sorted_since(started);
    drop(asking);
    let Seen { memory_peak, retained_bytes, looks } = watch.stop();

    for (attack, count) in &done {
        figure(&format!("abuse: {}", attack.name), count, attack.unit);
        assert!(*count > 0, "{}", attack.name);
        for (place, counter, growth) in (attack.counted)(*count) {
            let now = || battle.counter(&cluster, place, counter);
            wait_until(&format!("{}: {counter} grows by {growth}, is {}", attack.name, now()), || now() >= growth);
            figure(&format!("abuse: {}, counted as {counter}", attack.name), now(), "times");
        }
    }
    for counter in ["connection_panics", "router_gaps", "keep_alive_timeouts"] {
        assert_eq!(cluster.broker(counter), 0, "{counter}");
    }
    let after = presence(&cluster, HONEST);
    assert_eq!(before, after, "nobody was offline, and nobody came back");
    for member in &fleet.members {
        let status = member.status.borrow();
        assert_eq!((status.connected, status.reconnects, status.shed), (true, 0, 0), "{status:?}");
        for counter in ["shed", "bad_messages"] {
            assert_eq!(cluster.counter(member.id.as_str(), counter), 0, "{}: {counter}", member.id);
        }
    }
    assert_eq!(replies.lost(), 0, "a question was not answered");

    let connections = attacks::CONNECTIONS_MAX as u64;
    let allowed = memory + memory / 5 + ROUTER_BYTES + retained_bytes + DEAF * QUEUE_BYTES;
    let allowed = allowed + connections * CONNECTION_BYTES + HASH_BYTES;
    figure("abuse: length", duration().as_secs(), "s");
    figure("abuse: looks at who is online, all of them at all", looks, "times");
    figure("abuse: replies to honest slaves", replies.count(), "replies");
    let late = took.iter().filter(|took| **took > REPLY_MAX).count();
    figure("abuse: reply p50", millis(took[took.len() / 2]), "ms");
    figure("abuse: reply p99", millis(took[took.len() * 99 / 100]), "ms");
    figure(&format!("abuse: replies after more than {REPLY_MAX:?}"), late, "replies");
    figure("abuse: slowest reply", millis(slowest), "ms");
    figure("abuse: memory before", megabytes(memory), "MB");
    figure("abuse: memory at its peak", megabytes(memory_peak), "MB");
    figure("abuse: memory that the limits allow", megabytes(allowed), "MB");
    assert!(memory_peak <= allowed, "{} MB where {} are allowed", megabytes(memory_peak), megabytes(allowed));
    if duration() >= FULL_RUN {
        assert!(slowest <= REPLY_MAX, "a reply took {slowest:?}");
    }
}

/// Since when each honest slave is online, in which session.
fn presence(cluster: &Cluster, count: usize) -> BTreeMap<String, [Value; 3]> {
    let all = cluster.get("/api/v1/slaves");
    let views = all.as_array().unwrap().iter().map(|view| (view["id"].as_str().unwrap(), view));
    let honest = views.filter(|(id, _)| id.starts_with("node-"));
    let facts = |view: &Value| ["state", "since", "session"].map(|field| view[field].clone());
    let presence: BTreeMap<String, _> = honest.map(|(id, view)| (id.to_owned(), facts(view))).collect();
    assert_eq!(presence.len(), count);
    let absent: Vec<_> = presence.iter().filter(|(_, [state, ..])| state != "online").collect();
    assert!(absent.is_empty(), "offline: {absent:?}");
    presence
}

/// What the master shows while it is abused: everybody online, at each look.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    memory_peak: u64,
    /// The most that retained messages took.
    retained_bytes: u64,
    looks: u64,
}

impl Watch {
    fn start(cluster: &Arc<Cluster>) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let (cluster, stopped) = (Arc::clone(cluster), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                presence(&cluster, HONEST);
                seen.looks += 1;
                seen.memory_peak = seen.memory_peak.max(cluster.master.memory());
                let each = attacks::RETAINED_BYTES as u64 + RETAINED_OVERHEAD;
                seen.retained_bytes = seen.retained_bytes.max(cluster.broker("retained_now") * each);
                thread::sleep(LOOK_EVERY);
            }
            seen
        });
        Watch { stop, thread }
    }

    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// All questions and what came of them.
#[derive(Debug, Default, Clone)]
struct Replies(Arc<Mutex<Vec<Reply>>>);

/// When a question was asked and how long its answer took; `None` if it never came.
type Reply = (Instant, Option<Duration>);

impl Replies {
    fn note(&self, asked: Instant, took: Option<Duration>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((asked, took));
    }

    fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn lost(&self) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(_, took)| took.is_none()).count()
    }

    fn slowest_since(&self, start: Instant) -> Duration {
        self.sorted_since(start).last().copied().unwrap_or_default()
    }

    /// How long answers took to what was asked from then on, the fastest first.
    fn sorted_since(&self, start: Instant) -> Vec<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took: Vec<Duration> =
            all.iter().filter(|(asked, _)| *asked >= start).filter_map(|(_, took)| *took).collect();
        took.sort_unstable();
        took
    }
}

/// Lets every member ask for the time again and again, as long as the tasks are held.
fn keep_asking(fleet: &mut Fleet) -> (Replies, JoinSet<()>) {
    let replies = Replies::default();
    let mut tasks = JoinSet::new();
    for (number, member) in fleet.members.iter_mut().enumerate() {
        // What came before is nobody's answer.
        while member.replies.try_recv().is_ok() {}
        let (_, nothing) = mpsc::channel(1);
        let incoming = std::mem::replace(&mut member.replies, nothing);
        // Not all at once.
        let offset = ASK_EVERY * number as u32 / HONEST as u32;
        let asking = ask_again_and_again(member.outbox.clone(), incoming, replies.clone(), offset);
        tasks.spawn_on(asking, fleet.runtime.handle());
    }
    (replies, tasks)
}

async fn ask_again_and_again(
    outbox: Outbox,
    mut incoming: mpsc::Receiver<Envelope<ToSlave>>,
    replies: Replies,
    offset: Duration,
) {
    let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + offset, ASK_EVERY);
    for number in 0_u64.. {
        pace.tick().await;
        let id: RequestId = number.to_string().parse().unwrap();
        let asked = Instant::now();
        outbox.send(Envelope::new(FromSlave::Info(Info::Time)).with_id(id.clone())).await.unwrap();
        let answer = async {
            while let Some(reply) = incoming.recv().await {
                if reply.re.as_ref() == Some(&id) {
                    return;
                }
            }
        };
        let took = tokio::time::timeout(PATIENCE, answer).await.is_ok().then(|| asked.elapsed());
        replies.note(asked, took);
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
