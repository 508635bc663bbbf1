use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rpicluster_protocol::{Envelope, FromSlave, Info, RequestId, SlaveId, ToSlave};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::fleet::{Fleet, Member};
use crate::harness::{Cluster, figure, heavy, soak, wait_until};

/// Sets this process's limit on open files, which a master started later inherits.
fn limit_open_files(limit: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();
}

fn views(cluster: &Cluster) -> BTreeMap<String, Value> {
    let all = cluster.get("/api/v1/slaves");
    all.as_array().unwrap().iter().map(|view| (view["id"].as_str().unwrap().to_owned(), view.clone())).collect()
}

#[test]
fn a_thousand_slaves_are_online_and_answered_and_none_is_mistaken_for_another() {
    const SLAVES: usize = 1_000;
    let _turn = heavy();
    // As on any Debian: the master itself has to ask for more.
    limit_open_files(512);
    let cluster = Cluster::start();
    let started = Instant::now();
    let mut fleet = Fleet::start(&cluster, SLAVES);
    figure("1,000 slaves online and answered", started.elapsed().as_millis(), "ms");
    wait_until("all details are known", || views(&cluster).values().all(|view| view["details"].is_object()));
    let views = views(&cluster);
    assert_eq!(views.len(), SLAVES);
    for member in &fleet.members {
        let view = &views[member.id.as_str()];
        assert_eq!(view["details"]["hostname"], member.id.as_str());
        assert_eq!(view["session"], *member.status.borrow().session.as_ref().unwrap().as_str());
        assert_eq!(view["counters"]["answered"], 1, "{view}");
        assert_eq!(member.status.borrow().reconnects, 0);
    }

    let asker = &mut fleet.members[0];
    let list = fleet.runtime.block_on(list_of_slaves(asker));
    assert_eq!(list.len(), SLAVES);
    for (id, hostname) in list {
        assert_eq!(hostname.as_deref(), Some(id.as_str()));
    }
}

/// Asks for `slave_details` and puts the parts together.
async fn list_of_slaves(asker: &mut Member) -> BTreeMap<SlaveId, Option<String>> {
    let request: RequestId = "all-of-them".parse().unwrap();
    while asker.replies.try_recv().is_ok() {}
    asker.outbox.send(Envelope::new(FromSlave::Info(Info::SlaveDetails)).with_id(request.clone())).await.unwrap();
    let mut slaves = BTreeMap::new();
    for number in 0.. {
        let next = tokio::time::timeout(Duration::from_secs(60), asker.replies.recv());
        let reply = next.await.expect("the next part").unwrap();
        let ToSlave::SlaveDetails(told) = reply.message else { panic!("{reply:?}") };
        let part = reply.part.unwrap();
        assert_eq!((reply.re.as_ref(), part.number), (Some(&request), number));
        assert!(!told.is_empty());
        slaves.extend(told.into_iter().map(|(id, told)| (id, told.details.and_then(|details| details.hostname))));
        if part.last {
            assert!(number > 0, "so many slaves do not fit into one message");
            break;
        }
    }
    slaves
}

/// A message of exactly 1,400 bytes on the wire, as the tutorial's.
fn long_message(id: &SlaveId, number: usize) -> FromSlave {
    const BYTES: usize = 1_400;
    const AROUND: usize = r#"{"type":"message","payload":""}"#.len();
    FromSlave::Message(format!("{:x<1$}", format!("{id} {number} "), BYTES - AROUND))
}

#[test]
fn a_hundred_busy_slaves_lose_nothing() {
    const SLAVES: usize = 100;
    const PER_SECOND: u32 = 100;
    let _turn = heavy();
    let cluster = Cluster::start();
    let fleet = Fleet::start(&cluster, SLAVES);
    let rounds = (soak().as_secs_f64() * f64::from(PER_SECOND)) as usize;
    let started = Instant::now();
    fleet.runtime.block_on(async {
        let mut senders = JoinSet::new();
        for (extra, member) in fleet.members.iter().enumerate() {
            let (id, outbox) = (member.id.clone(), member.outbox.clone());
            // Everybody sends another number of messages, so that a mix-up shows in the counters.
            let count = rounds + extra;
            senders.spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
                for number in 0..count {
                    pace.tick().await;
                    outbox.send(long_message(&id, number)).await.unwrap();
                }
            });
        }
        while let Some(ended) = senders.join_next().await {
            ended.unwrap();
        }
    });
    // Vitals go on meanwhile: both sides are read until they are seen to agree, which they never do if a message was lost.
    let mut handled = 0;
    wait_until("each message has arrived, once and under its own id", || {
        let statuses: Vec<_> = fleet.members.iter().map(|member| member.status.borrow().clone()).collect();
        let views = views(&cluster);
        handled = 0;
        fleet.members.iter().zip(&statuses).all(|(member, status)| {
            let counters = &views[member.id.as_str()]["counters"];
            let count = |name: &str| counters[name].as_u64().unwrap();
            handled += count("handled");
            (count("received"), count("handled")) == (status.sent, status.sent)
        })
    });
    let took = started.elapsed();
    let views = views(&cluster);
    for (extra, member) in fleet.members.iter().enumerate() {
        let counters = &views[member.id.as_str()]["counters"];
        let status = member.status.borrow().clone();
        assert!(status.sent >= (rounds + extra) as u64, "{status:?}");
        assert_eq!((status.shed, status.reconnects), (0, 0), "{status:?}");
        assert_eq!((&counters["shed"], &counters["bad_messages"]), (&0.into(), &0.into()), "{}", member.id);
    }
    let broker = &cluster.get("/api/v1/status")["broker"];
    assert_eq!((&broker["router_gaps"], &broker["dropped_slow_reader"]), (&0.into(), &0.into()), "{broker}");
    figure("messages of 1,400 bytes handled", handled, "messages");
    figure("rate of messages of 100 slaves", (handled as f64 / took.as_secs_f64()).round(), "per second");
}
