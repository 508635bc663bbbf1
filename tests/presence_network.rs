use std::time::{Duration, Instant};

use rpicluster_protocol::limits::BACKOFF_MAX;

use crate::harness::faults::{Fault, Network};
use crate::harness::{Cluster, Process, timed, wait_until, within};

const GRACE: Duration = Duration::from_secs(1);

/// With a long keep alive only silence can tell.
const SILENCE_TELLS: &str = "[master]\npresence_timeout = '3s'\n[slave]\nvitals_interval = '500ms'\nkeep_alive = '60s'";

/// With a long presence timeout only the keep alive can tell.
const KEEP_ALIVE_TELLS: &str = "[master]\npresence_timeout = '60s'\n[slave]\nkeep_alive = '2s'";

fn cluster_and_slave(network: &Network, config: &str) -> (Cluster, Process) {
    let cluster = Cluster::at(network.head(), Network::HEAD, config);
    let slave = cluster.slave_at(&network.node(), "pi-1");
    cluster.wait_until_online("pi-1");
    (cluster, slave)
}

fn silence_is_noticed<'a>(network: &'a Network, fault: impl FnOnce(&'a Network) -> Fault<'a>) {
    let (cluster, _slave) = cluster_and_slave(network, SILENCE_TELLS);
    let fault = fault(network);
    cluster.offline_within(Instant::now(), Duration::from_secs(3) + GRACE, "pi-1", "silent");
    drop(fault);
    within(Instant::now(), BACKOFF_MAX, "the slave is back", || cluster.is_online("pi-1"));
}

#[test]
fn a_slave_behind_a_cut_cable_is_offline_within_the_presence_timeout() {
    let _turn = timed();
    let network = Network::new();
    silence_is_noticed(&network, Network::cut);
}

#[test]
fn a_slave_that_hears_but_is_not_heard_is_offline_too() {
    let _turn = timed();
    let network = Network::new();
    silence_is_noticed(&network, Network::deafen_head);
}

#[test]
fn a_lost_connection_is_noticed_within_its_keep_alive() {
    let _turn = timed();
    let network = Network::new();
    let (cluster, _slave) = cluster_and_slave(&network, KEEP_ALIVE_TELLS);
    let cut = network.cut();
    let bound = Duration::from_secs(2).mul_f64(1.5) + GRACE;
    cluster.offline_within(Instant::now(), bound, "pi-1", "connection_lost");
    drop(cut);
    within(Instant::now(), BACKOFF_MAX, "the slave is back", || cluster.is_online("pi-1"));
}

#[test]
fn a_reset_connection_is_made_again_and_its_remains_do_no_harm() {
    let network = Network::new();
    let (cluster, _slave) = cluster_and_slave(&network, KEEP_ALIVE_TELLS);
    let session = cluster.view("pi-1")["session"].clone();
    let reset = network.reset();
    // The slave's next packet is answered with a reset; what the master has is half of a connection.
    wait_until("the slave has noticed", || _slave.err().iter().any(|line| line.contains("no connection")));
    drop(reset);
    wait_until("the slave is back in a new session", || {
        let view = cluster.view("pi-1");
        view["state"] == "online" && view["session"] != session
    });
    the_old_connection_ends_without_harm(&cluster);
}

#[test]
fn a_slave_that_returns_before_its_old_connection_has_died_stays_online() {
    let network = Network::new();
    let (cluster, mut slave) = cluster_and_slave(&network, KEEP_ALIVE_TELLS);
    let session = cluster.view("pi-1")["session"].clone();
    let cut = network.cut();
    slave.kill();
    drop(cut);
    let _again = cluster.slave_at(&network.node(), "pi-1");
    wait_until("the slave is back in a new session", || {
        let view = cluster.view("pi-1");
        view["state"] == "online" && view["session"] != session
    });
    the_old_connection_ends_without_harm(&cluster);
}

/// Waits until only one connection is left, and longer than the old one's keep alive could still speak.
fn the_old_connection_ends_without_harm(cluster: &Cluster) {
    let returned = Instant::now();
    let view = cluster.view("pi-1");
    wait_until("the old connection has ended", || {
        let one = cluster.get("/api/v1/status")["broker"]["connections_now"] == 1;
        one && returned.elapsed() > Duration::from_secs(2).mul_f64(1.5) + GRACE
    });
    let after = cluster.view("pi-1");
    assert_eq!(after["state"], "online", "{after}");
    assert_eq!((&after["session"], &after["since"]), (&view["session"], &view["since"]));
}

#[test]
fn a_slave_behind_a_lossy_cable_is_online_when_the_loss_ends() {
    let network = Network::new();
    let (cluster, _slave) = cluster_and_slave(&network, SILENCE_TELLS);
    let received = cluster.counter("pi-1", "received");
    let loss = network.lose_a_third();
    wait_until("messages come through in spite of it", || cluster.counter("pi-1", "received") >= received + 5);
    drop(loss);
    within(Instant::now(), BACKOFF_MAX, "the slave is online and stays so", || cluster.is_online("pi-1"));
    let counters = &cluster.view("pi-1")["counters"];
    assert_eq!((counters["bad_messages"].as_u64(), counters["shed"].as_u64()), (Some(0), Some(0)));
}
