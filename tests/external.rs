use std::time::{Duration, Instant};

use rpicluster_protocol::limits::{KEEP_ALIVE, PRESENCE_TIMEOUT};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::external::ForeignBroker;
use crate::harness::mosquitto::{Subscriber, retained, tool_at};
use crate::harness::mqtt::Client;
use crate::harness::{Cluster, Finished, PATIENCE, Place, rpicluster, run, timed, wait_for, wait_until};

mod matrix;

/// What a busy machine adds to a promise.
const GRACE: Duration = Duration::from_secs(1);

const SHORT_TIMEOUT: &str = "[master]\npresence_timeout = '3s'\n[slave]\nvitals_interval = '500ms'";
const TIMEOUT: Duration = Duration::from_secs(3);

/// `rpicluster health` of the cluster's master.
fn health(cluster: &Cluster) -> Finished {
    let mut command = rpicluster(&Place::Here);
    command.args(["health", "--url", &cluster.url()]).arg("--ca-file").arg(cluster.master_folder().join("ca.pem"));
    command.arg("--config").arg(cluster.config());
    run(command)
}

fn connected(cluster: &Cluster) -> bool {
    cluster.get("/api/v1/status")["external_broker"]["connected"] == json!(true)
}

/// What a new subscriber is told of a slave's state.
fn retained_state(cluster: &Cluster, id: &str) -> String {
    let message = retained(cluster, &format!("rpicluster/from/{id}/state"));
    message.map(|message| message["payload"]["state"].as_str().unwrap().to_owned()).unwrap_or_default()
}

fn state(liveness: &str, session: &str) -> Vec<u8> {
    let payload = json!({"state": liveness, "session": session, "protocol": 1, "reason": "connection_lost"});
    json!({"type": "state", "payload": payload}).to_string().into_bytes()
}

#[test]
fn slaves_come_and_go_and_are_answered_as_at_the_masters_own_broker() {
    let _timed = timed();
    let broker = ForeignBroker::start(&["pi-1", "pi-2", "asker"]);
    let cluster = broker.cluster("");
    assert!(cluster.master.out().iter().any(|line| line.starts_with("master: broker mqtt://")));
    let mut killed = broker.slave(&cluster, "pi-1");
    let stopped = broker.slave(&cluster, "pi-2");
    for id in ["pi-1", "pi-2"] {
        cluster.wait_until_online(id);
        wait_until("details are known", || cluster.view(id)["details"].is_object());
    }
    // The tutorial's hello was answered.
    wait_until("the master answers", || killed.err().iter().any(|line| line.contains("master info")));

    let mut request = tool_at(cluster.place(), broker.door("asker"), "mosquitto_rr");
    request.args(["-V", "5", "-q", "1", "-W", &PATIENCE.as_secs().to_string(), "-F", "%t %D %p"]);
    request.args(["-t", "rpicluster/from/asker/info", "-e", "rpicluster/to/asker/answers/7"]);
    request.args(["-D", "publish", "correlation-data", "order-66"]);
    request.args(["-m", r#"{"type":"info","payload":"time","id":"t1"}"#]);
    let answered = run(request);
    assert!(answered.out.starts_with("rpicluster/to/asker/answers/7 order-66 "), "{answered:?}");
    assert!(answered.out.contains("master_time") && answered.out.contains("t1"), "{answered:?}");

    let event = Instant::now();
    killed.kill();
    cluster.offline_within(event, KEEP_ALIVE.mul_f64(1.5) + GRACE, "pi-1", "connection_lost");
    let event = Instant::now();
    stopped.signal(Signal::TERM);
    cluster.offline_within(event, GRACE, "pi-2", "stopped");
    let well = health(&cluster);
    assert_eq!(well.code, Some(0), "{}", well.err);
    assert!(well.out.contains("connected to mqtt://"), "{}", well.out);
}

#[test]
fn nobody_is_judged_while_the_broker_is_away_and_everybody_after_it_is_back() {
    let mut broker = ForeignBroker::start(&["stays", "dies", "gone"]);
    let cluster = broker.cluster(SHORT_TIMEOUT);
    let _stays = broker.slave(&cluster, "stays");
    let mut dies = broker.slave(&cluster, "dies");
    let gone = broker.slave(&cluster, "gone");
    for id in ["stays", "dies", "gone"] {
        cluster.wait_until_online(id);
    }
    drop(gone);
    wait_until("one has gone", || cluster.view("gone")["state"] == "offline");
    let before = cluster.view("stays");

    broker.process.kill();
    let lost =
        wait_for("the master says what is wrong", || Some(health(&cluster)).filter(|health| health.code == Some(1)));
    assert!(lost.err.contains("not connected to mqtt://"), "{}", lost.err);
    wait_until("and why", || health(&cluster).err.contains("nobody listens at"));
    dies.kill();
    let killed = Instant::now();
    wait_until("silence would have been judged", || killed.elapsed() > TIMEOUT + 2 * GRACE);
    for id in ["stays", "dies"] {
        assert_eq!(cluster.view(id)["state"], "online", "{id}: nobody could be heard");
    }
    assert_eq!(cluster.view("stays")["since"], before["since"]);

    broker.restart();
    wait_until("the master is back", || connected(&cluster));
    wait_until("who died is known to be silent", || cluster.view("dies")["reason"] == "silent");
    wait_until("who stays is back in a new session", || {
        let view = cluster.view("stays");
        view["state"] == "online" && view["session"] != before["session"]
    });
    // This broker has kept nothing: who was offline before is so again for those who ask it.
    wait_until("the broker knows who is offline", || {
        ["dies", "gone"].iter().all(|id| retained_state(&cluster, id) == "offline")
    });
    assert_eq!(retained_state(&cluster, "stays"), "online");
    assert_eq!(health(&cluster).code, Some(0));
}

#[test]
fn a_frozen_master_marks_nobody_offline_although_the_broker_gave_it_up() {
    let broker = ForeignBroker::start(&["pi-1"]);
    let cluster = broker.cluster("[slave]\nvitals_interval = '500ms'");
    let _slave = broker.slave(&cluster, "pi-1");
    cluster.wait_until_online("pi-1");
    let before = cluster.view("pi-1");
    let watcher = Subscriber::start(&cluster, &["-t", "rpicluster/master/state"]);
    cluster.master.signal(Signal::STOP);
    watcher.wait_for(&[r#""state":"offline""#, r#""reason":"connection_lost""#]);
    let session = cluster_session(&watcher);
    let frozen = Instant::now();
    wait_until("slaves were not heard for longer than they may be silent", || frozen.elapsed() > PRESENCE_TIMEOUT);
    cluster.master.signal(Signal::CONT);
    wait_until("it is back in a new session", || {
        let page = cluster.get("/api/v1/status");
        page["external_broker"]["connected"] == true && page["session"] != session.as_str()
    });
    let continued = Instant::now();
    let heard = before["counters"]["received"].as_u64().unwrap() + 10;
    wait_until("it was heard anew, and silence would have been judged", || {
        continued.elapsed() > PRESENCE_TIMEOUT + GRACE && cluster.counter("pi-1", "received") > heard
    });
    let after = cluster.view("pi-1");
    assert_eq!((&after["state"], &after["since"]), (&json!("online"), &before["since"]));
}

/// The session that the newest of the master's own states is of.
fn cluster_session(watcher: &Subscriber) -> String {
    let newest = watcher.messages().pop().unwrap();
    let state: serde_json::Value = serde_json::from_str(&newest).unwrap();
    state["payload"]["session"].as_str().unwrap().to_owned()
}

#[test]
fn a_second_master_with_the_same_account_is_told_of() {
    let broker = ForeignBroker::start(&[]);
    let clusters = [broker.cluster(""), broker.cluster("")];
    wait_until("one of them says so", || {
        let told = |cluster| health(cluster).err.contains("does a second master run?");
        clusters.iter().any(told)
    });
}

#[test]
fn a_short_absence_of_the_broker_marks_nobody_offline() {
    let mut broker = ForeignBroker::start(&["pi-1", "pi-2"]);
    let cluster = broker.cluster("");
    let _slaves = ["pi-1", "pi-2"].map(|id| broker.slave(&cluster, id));
    let before = ["pi-1", "pi-2"].map(|id| {
        cluster.wait_until_online(id);
        cluster.view(id)
    });
    broker.process.kill();
    wait_until("the master has noticed", || !connected(&cluster));
    broker.restart();
    for (id, before) in ["pi-1", "pi-2"].iter().zip(before) {
        wait_until("it is back in a new session", || cluster.view(id)["session"] != before["session"]);
        let after = cluster.view(id);
        // `since` moves whenever a slave goes offline or comes back.
        assert_eq!((&after["state"], &after["since"]), (&json!("online"), &before["since"]), "{id}");
    }
}

#[test]
fn a_killed_master_finds_the_truth_when_it_starts_again() {
    let broker = ForeignBroker::start(&["stays", "dies", "new", "ended"]);
    let mut cluster = broker.cluster(SHORT_TIMEOUT);
    let _stays = broker.slave(&cluster, "stays");
    let (mut dies, ended) = (broker.slave(&cluster, "dies"), broker.slave(&cluster, "ended"));
    for id in ["stays", "dies", "ended"] {
        cluster.wait_until_online(id);
    }
    ended.signal(Signal::TERM);
    wait_until("one has said goodbye", || cluster.view("ended")["reason"] == "stopped");
    let watcher = Subscriber::start(&cluster, &["-t", "rpicluster/master/state"]);
    cluster.master.kill();
    watcher.wait_for(&[r#""state":"offline""#, r#""reason":"connection_lost""#]);
    dies.kill();
    let _new = broker.slave(&cluster, "new");
    drop(watcher);
    wait_until("the broker knows", || {
        retained_state(&cluster, "dies") == "offline" && retained_state(&cluster, "new") == "online"
    });
    cluster.restart();
    for id in ["stays", "new"] {
        cluster.wait_until_online(id);
    }
    wait_until("who died is known to be silent", || cluster.view("dies")["state"] == "offline");
    assert_eq!(cluster.view("ended")["state"], "offline");
    assert_eq!(retained(&cluster, "rpicluster/master/state").unwrap()["payload"]["state"], "online");
}

#[test]
fn a_late_will_of_an_older_session_changes_nothing() {
    let broker = ForeignBroker::start(&["pi-1"]);
    let cluster = broker.cluster("");
    // Earlier it would find what the broker kept, which proves no life.
    wait_until("the master is in", || connected(&cluster));
    let topic = "rpicluster/from/pi-1/state";
    let mut slave = Client::connect(broker.door("pi-1"), "pi-1", None).unwrap();
    for session in ["s1", "s2"] {
        slave.publish(topic, &state("online", session), true).unwrap();
    }
    wait_until("the newer session counts", || cluster.view("pi-1")["session"] == "s2");
    slave.publish(topic, &state("offline", "s1"), true).unwrap();
    wait_until("the truth is written again", || {
        let kept = retained(&cluster, topic).unwrap()["payload"].clone();
        kept["session"] == "s2" && kept["state"] == "online"
    });
    assert!(cluster.is_online("pi-1"));
    // The master's own state is put right as well.
    let own = cluster.get("/api/v1/status")["session"].as_str().unwrap().to_owned();
    let mut witness = Client::connect(broker.witness(), "witness", None).unwrap();
    witness.publish("rpicluster/master/state", &state("offline", "an-earlier-one"), true).unwrap();
    wait_until("the master says that it is there", || {
        let kept = retained(&cluster, "rpicluster/master/state").unwrap()["payload"].clone();
        kept["session"] == own.as_str() && kept["state"] == "online"
    });
}

#[test]
fn a_wrong_password_is_told_in_words_until_it_is_right() {
    let broker = ForeignBroker::start(&[]);
    broker.change_password("master", "another");
    let cluster = broker.cluster("");
    wait_until("health says why", || {
        let Finished { code, err, .. } = health(&cluster);
        code == Some(1) && err.contains("refuses this login: check user and password of [cluster]")
    });
    let status = cluster.get("/api/v1/status")["external_broker"].clone();
    assert_eq!(status["connected"], false, "{status}");
    broker.change_password("master", "the secret of master");
    wait_until("the master is in", || connected(&cluster));
    assert_eq!(health(&cluster).code, Some(0));
}

#[test]
fn over_tls_certificates_are_shown_on_both_sides_and_only_the_named_ca_is_trusted() {
    let broker = ForeignBroker::encrypted(&["pi-1"]);
    let cluster = broker.cluster("");
    let _slave = broker.slave(&cluster, "pi-1");
    cluster.wait_until_online("pi-1");
    let other = ForeignBroker::encrypted(&[]);
    std::fs::copy(other.ca_file(), broker.ca_file()).unwrap();
    let stranger = broker.cluster("");
    wait_until("health says why", || {
        let Finished { code, err, .. } = health(&stranger);
        code == Some(1) && err.contains("not from the CA that is trusted here") && err.contains("cluster.ca_file")
    });
    // This one shows the certificate of another CA.
    for file in ["own.pem", "own.key"] {
        std::fs::copy(broker.ca_file().with_file_name(file), other.ca_file().with_file_name(file)).unwrap();
    }
    let unwanted = other.cluster("");
    wait_until("health says why", || {
        let Finished { code, err, .. } = health(&unwanted);
        code == Some(1) && err.contains("does not accept the certificate") && err.contains("client_certificate")
    });
}

#[test]
fn the_rules_are_in_the_documents_as_they_are_printed() {
    let page = include_str!("../docs/external-broker.md");
    let folder = tempfile::tempdir().unwrap();
    for format in ["mosquitto", "emqx"] {
        let mut command = rpicluster(&Place::Here);
        command.current_dir(folder.path()).args(["acl", "--format", format]);
        let printed = run(command).out;
        assert!(page.contains(&format!("```\n{printed}```")), "docs/external-broker.md: {format} is now\n{printed}");
    }
}

#[test]
fn what_is_the_brokers_to_decide_is_refused_with_the_way_to_do_it_there() {
    let broker = ForeignBroker::start(&["pi-1"]);
    let cluster = broker.cluster("");
    let call = |arguments: &[&str]| {
        let mut command = rpicluster(&Place::Here);
        command.args(arguments).args(["--url", &cluster.url()]).arg("--state-dir").arg(cluster.master_folder());
        run(command)
    };
    for refused in [&["token", "create"][..], &["slaves", "add", "pi-9"], &["account", "add", "somebody"]] {
        let Finished { code, err, .. } = call(refused);
        assert_eq!(code, Some(1), "{refused:?}");
        assert!(err.contains("rpicluster acl"), "{err}");
    }
    let slave = broker.slave(&cluster, "pi-1");
    cluster.wait_until_online("pi-1");
    drop(slave);
    wait_until("it has gone", || cluster.view("pi-1")["state"] == "offline");
    let removed = call(&["slaves", "remove", "pi-1"]);
    assert!(removed.code == Some(0) && removed.out.contains("remove its account there"), "{removed:?}");
    assert!(cluster.view("pi-1").is_null());
    wait_until("nothing of it is kept", || retained(&cluster, "rpicluster/from/pi-1/state").is_none());
    // Its account is still there.
    let _again = broker.slave(&cluster, "pi-1");
    cluster.wait_until_online("pi-1");
}

#[test]
fn a_slave_removed_while_the_broker_is_away_is_forgotten_there_too_once_it_is_back() {
    let broker = ForeignBroker::start(&["pi-1", "pi-2"]);
    let cluster = broker.cluster("");
    let slave = broker.slave(&cluster, "pi-1");
    cluster.wait_until_online("pi-1");
    drop(slave);
    wait_until("it has gone", || cluster.view("pi-1")["state"] == "offline");
    broker.process.signal(Signal::STOP);
    wait_until("the master has noticed", || !connected(&cluster));
    cluster.change("DELETE", "/api/v1/slaves/pi-1", None);
    broker.process.signal(Signal::CONT);
    wait_until("nothing of it is kept", || retained(&cluster, "rpicluster/from/pi-1/state").is_none());
    assert!(cluster.view("pi-1").is_null());
    // And the commands go on.
    let _slave = broker.slave(&cluster, "pi-2");
    cluster.wait_until_online("pi-2");
}
