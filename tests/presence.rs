use std::time::{Duration, Instant};

use rpicluster_protocol::limits::{BACKOFF_MAX, PRESENCE_TIMEOUT};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::mosquitto::{Subscriber, retained};
use crate::harness::{Cluster, Process, soak, timed, wait_until, within};

/// What the bounds of the issue allow beyond the protocol's own time.
const GRACE: Duration = Duration::from_secs(1);

const SHORT_TIMEOUT: &str = "[master]\npresence_timeout = '3s'\n[slave]\nvitals_interval = '500ms'";
const TIMEOUT: Duration = Duration::from_secs(3);

fn retained_state(cluster: &Cluster, id: &str) -> String {
    let message = retained(cluster, &format!("rpicluster/from/{id}/state")).unwrap();
    message["payload"]["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_killed_slave_is_offline_within_its_keep_alive() {
    let _turn = timed();
    let cluster = Cluster::with("[slave]\nkeep_alive = '2s'");
    let mut slave = cluster.online_slave("pi-1");
    let killed = Instant::now();
    slave.kill();
    let bound = Duration::from_secs(2).mul_f64(1.5) + GRACE;
    cluster.offline_within(killed, bound, "pi-1", "connection_lost");
    assert_eq!(retained_state(&cluster, "pi-1"), "offline");

    let started = Instant::now();
    let _again = cluster.slave("pi-1");
    within(started, BACKOFF_MAX, "the slave is back", || cluster.is_online("pi-1"));
    assert_eq!(retained_state(&cluster, "pi-1"), "online");
}

#[test]
fn a_stopped_slave_is_offline_within_a_second() {
    let _turn = timed();
    let cluster = Cluster::start();
    let mut slave = cluster.online_slave("pi-1");
    let told = Instant::now();
    slave.signal(Signal::TERM);
    cluster.offline_within(told, GRACE, "pi-1", "stopped");
    assert_eq!(slave.wait_for_exit().code, Some(0));
    assert_eq!(retained_state(&cluster, "pi-1"), "offline");
}

#[test]
fn a_frozen_slave_is_offline_within_the_presence_timeout_and_back_when_it_speaks() {
    let _turn = timed();
    let cluster = Cluster::with(SHORT_TIMEOUT);
    let slave = cluster.online_slave("pi-1");
    let session = cluster.view("pi-1")["session"].clone();
    let frozen = Instant::now();
    slave.signal(Signal::STOP);
    cluster.offline_within(frozen, TIMEOUT + GRACE, "pi-1", "silent");
    wait_until("the retained state says so too", || retained_state(&cluster, "pi-1") == "offline");

    let continued = Instant::now();
    slave.signal(Signal::CONT);
    within(continued, BACKOFF_MAX, "the slave is back", || cluster.is_online("pi-1"));
    assert_eq!(cluster.view("pi-1")["session"], session, "its connection has held, so it is the same session");
    wait_until("the retained state says so too", || retained_state(&cluster, "pi-1") == "online");
}

#[test]
fn all_slaves_come_back_to_a_killed_master_and_none_is_forgotten() {
    let _turn = timed();
    let mut cluster = Cluster::start();
    let gone = cluster.online_slave("gone");
    gone.signal(Signal::TERM);
    wait_until("the slave is gone", || cluster.view("gone")["reason"] == "stopped");
    let ids = ["pi-1", "pi-2", "pi-3"];
    let slaves: Vec<Process> = ids.iter().map(|id| cluster.online_slave(id)).collect();
    // Presence is written at most every 10 s; what is not written yet, the slaves tell again.
    wait_until("the master remembers", || {
        let store = std::fs::read(cluster.master_folder().join("master.db-wal")).unwrap_or_default();
        // Not the id, which is written when it joins: its session.
        let holds = |id: &str| {
            let session = cluster.view(id)["session"].as_str().unwrap().to_owned();
            store.windows(session.len()).any(|window| window == session.as_bytes())
        };
        holds("gone") && ids.iter().all(|id| holds(id))
    });
    let since = cluster.view("gone")["since"].clone();

    cluster.master.kill();
    cluster.restart();
    let restarted = Instant::now();
    let all = cluster.get("/api/v1/slaves");
    assert_eq!(all.as_array().unwrap().len(), 4, "nobody is forgotten: {all}");
    for id in ids {
        within(restarted, BACKOFF_MAX, &format!("{id} is back and answered"), || {
            cluster.is_online(id) && cluster.counter(id, "answered") > 0
        });
        assert_eq!(retained_state(&cluster, id), "online");
    }
    let view = cluster.view("gone");
    assert_eq!((&view["state"], &view["reason"], &view["since"]), (&"offline".into(), &"stopped".into(), &since));
    drop(slaves);
}

/// Freezes a master with three slaves, and says who was shown offline for that within its presence timeout.
fn who_is_offline_after_a_freeze(cluster: &mut Cluster, timeout: Duration) -> Vec<String> {
    let ids = ["pi-1", "pi-2", "pi-3"];
    let _slaves = ids.map(|id| cluster.online_slave(id));
    let views = ids.map(|id| cluster.view(id));
    cluster.master.signal(Signal::STOP);
    // Here time itself is what the test needs to pass.
    std::thread::sleep(soak());
    cluster.master.signal(Signal::CONT);

    let continued = Instant::now();
    wait_until("everybody was heard anew, and silence would have been judged", || {
        let heard = |(id, before): (&&str, &Value)| {
            cluster.counter(id, "received") >= before["counters"]["received"].as_u64().unwrap() + 10
        };
        continued.elapsed() > timeout + 2 * GRACE && ids.iter().zip(&views).all(heard)
    });
    let mut shown_offline = Vec::new();
    for (id, before) in ids.iter().zip(&views) {
        let after = cluster.view(id);
        // `since` moves whenever a slave goes offline or comes back.
        if after["state"] != "online" || after["since"] != before["since"] {
            shown_offline
                .push(format!("{id}: {} since {}, before {}", after["state"], after["since"], before["since"]));
        }
    }
    shown_offline
}

#[test]
fn a_frozen_master_marks_nobody_offline_when_it_goes_on() {
    // A slave with this keep alive does not notice the freeze.
    let mut cluster = Cluster::with(&format!("{SHORT_TIMEOUT}\nkeep_alive = '60s'"));
    let watcher = Subscriber::start(&cluster, &["-t", "rpicluster/from/+/state", "-v"]);
    assert_eq!(who_is_offline_after_a_freeze(&mut cluster, TIMEOUT), Vec::<String>::new());
    // The slaves themselves stop at the end of that; what they say then is no mark of the master.
    let marked = |line: &String| line.contains(r#""offline""#) && !line.contains("stopped") && !line.contains("lost");
    assert!(!watcher.messages().iter().any(marked), "{:?}", watcher.messages());
}

#[test]
fn slaves_that_gave_up_a_frozen_master_are_not_marked_offline_either() {
    // With the usual keep alive they notice the freeze, close their connections, and come back as soon as they can.
    let mut cluster = Cluster::with("[slave]\nvitals_interval = '500ms'");
    assert_eq!(who_is_offline_after_a_freeze(&mut cluster, PRESENCE_TIMEOUT), Vec::<String>::new());
}

#[test]
fn a_master_that_stops_says_so() {
    let mut cluster = Cluster::start();
    let watcher = Subscriber::start(&cluster, &["-t", "rpicluster/master/state", "-v"]);
    cluster.master.signal(Signal::TERM);
    watcher.wait_for(&[r#""state":"offline""#, r#""reason":"stopped""#]);
    assert_eq!(cluster.master.wait_for_exit().code, Some(0));
}
