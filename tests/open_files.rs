use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::mqtt::Client;
use crate::harness::{Cluster, PATIENCE, raise_open_files, timed, wait_until};

/// How many more files the master may open from now on.
const LEFT: u64 = 10;
/// How many peers come nevertheless.
const PEERS: usize = 50;
/// For how long the master is without file descriptors: more than the throttle of one of its log lines lets through.
const STARVED: Duration = Duration::from_secs(3);

fn open_files(process: u32) -> u64 {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64
}

fn limit_open_files(process: u32, limit: Option<u64>) {
    let pid = Pid::from_raw(process.cast_signed()).unwrap();
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: limit, maximum }).unwrap();
}

#[test]
fn a_master_without_file_descriptors_keeps_its_slaves_and_recovers_when_peers_go() {
    let _turn = timed();
    raise_open_files();
    let cluster = Cluster::start();
    let _slave = cluster.online_slave("early");
    let mut early = Client::connect(cluster.mqtt, "early-client", None).unwrap();
    early.subscribe("early").unwrap();
    let before = cluster.view("early");
    let (log, accepted) = (cluster.master.err().len(), cluster.broker("connections"));

    limit_open_files(cluster.master.pid(), Some(open_files(cluster.master.pid()) + LEFT));
    let peers: Vec<TcpStream> = (0..PEERS).map(|_| cluster.mqtt.open().unwrap()).collect();
    wait_until("the master says so", || complaints(&cluster, log) > 0);
    let starved = Instant::now();
    let mut served = 0;
    while starved.elapsed() < STARVED {
        early.publish("early", b"still here", false).unwrap();
        assert_eq!(early.next(PATIENCE).unwrap().expect("its own message").payload, b"still here");
        served += 1;
        thread::sleep(Duration::from_millis(10));
    }
    assert!(served > 10, "those who were connected are served: {served} round trips");
    assert_eq!(complaints(&cluster, log), 1, "one line per interval: {:#?}", &cluster.master.err()[log..]);

    drop(peers);
    // Nothing but their leaving helps: the limit stays as it is.
    let mut late = Client::connect(cluster.mqtt, "late-client", None).unwrap();
    late.ping().unwrap();
    wait_until("all of them were accepted in the end", || cluster.broker("connections") > accepted + PEERS as u64);
    let after = cluster.view("early");
    for field in ["state", "since", "session"] {
        assert_eq!(after[field], before[field], "{field}");
    }
}

/// How often the master has complained since that line of its log.
fn complaints(cluster: &Cluster, from: usize) -> usize {
    cluster.master.err()[from..].iter().filter(|line| line.contains("cannot accept")).count()
}
