//! The whole master in this process, on free ports, with real MQTT clients.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod jobs;
mod support;

use std::time::Duration;

use rpicluster_master::{Master, StartError, StoreError};
use serde_json::json;
use support::{Client, PATIENCE, TestMaster, settings, state};
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_comes_is_answered_and_goes() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut slave = Client::slave(&master, "pi", "s1").await;
    let details = json!({"type": "computer_details", "payload": {"hostname": "pi", "cpu_cores": 4}});
    slave.publish("details", true, &details).await;
    slave.publish("info", false, &json!({"type": "info", "payload": "computer_details", "id": "r1"})).await;
    let (_, reply) = slave.next("/reply").await;
    assert_eq!((&reply["type"], &reply["re"]), (&json!("master_info"), &json!("r1")));
    assert!(reply["payload"]["cpu_cores"].as_u64().unwrap() >= 1);
    slave.publish("info", false, &json!({"type": "info", "payload": "slave_details", "id": "r2"})).await;
    let (_, reply) = slave.next("/reply").await;
    assert_eq!(reply["payload"]["pi"]["details"]["cpu_cores"], 4);
    slave.publish_text("message", false, "nonsense".into()).await;
    let (_, reply) = slave.next("/reply").await;
    assert_eq!(reply["type"], "bad_message");

    let page = master.wait_state("pi", "online").await;
    assert_eq!(page["details"]["hostname"], "pi");
    drop(slave);
    let page = master.wait_state("pi", "offline").await;
    assert_eq!(page["reason"], "connection_lost");
    let status = master.get("/api/v1/status").await;
    assert_eq!((&status["slaves"], &status["online"]), (&json!(1), &json!(0)));
    assert_eq!(status["counters"]["bad_messages"], 1);
    assert_eq!(master.get("/healthz").await["status"], "ok");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_forgotten_by_a_restart() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut watcher = Client::listen(&master, "watcher", "rpicluster/master/state").await;
    let first_run = watcher.next("master/state").await.1["payload"]["session"].clone();
    let slave = Client::slave(&master, "stays", "s1").await;
    slave.publish("details", true, &json!({"type": "computer_details", "payload": {"hostname": "kept"}})).await;
    let leaver = Client::slave(&master, "leaves", "s1").await;
    master.wait_state("stays", "online").await;
    master.wait_state("leaves", "online").await;
    let mut goodbye = state("offline", "s1");
    goodbye["payload"]["reason"] = json!("stopped");
    leaver.publish("state", true, &goodbye).await;
    let left = master.wait_state("leaves", "offline").await;
    master.wait_for("/api/v1/slaves/stays", |page| page["details"]["hostname"] == "kept").await;
    master.stop().await;
    let (_, said) = watcher.next("master/state").await;
    assert_eq!((&said["payload"]["state"], &said["payload"]["reason"]), (&json!("offline"), &json!("stopped")));

    let master = TestMaster::start(folder.path()).await;
    let slaves = master.get("/api/v1/slaves").await;
    assert_eq!((&slaves[0]["id"], &slaves[1]["id"]), (&json!("leaves"), &json!("stays")));
    assert_eq!(slaves[0]["reason"], "stopped");
    assert_eq!(slaves[0]["since"], left["since"]);
    assert_eq!(slaves[1]["details"]["hostname"], "kept");
    let mut watcher = Client::listen(&master, "watcher", "rpicluster/#").await;
    let (publish, kept) = watcher.next("from/stays/state").await;
    assert!(publish.retain);
    assert_eq!((&kept["payload"]["state"], &kept["payload"]["session"]), (&json!("online"), &json!("s1")));
    let mut watcher = Client::listen(&master, "watcher-2", "rpicluster/master/state").await;
    assert_ne!(watcher.next("master/state").await.1["payload"]["session"], first_run);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn take_overs_end_online_in_the_view_and_in_the_retained_topic() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let secret = master.secret("pi").await;
    let mut slaves = Vec::new();
    for connection in 0..50 {
        let session = format!("s{connection}");
        slaves.push(Client::slave_with(&master, "pi", &session, &secret).await);
        master.wait_for("/api/v1/slaves/pi", |page| page["state"] == "online" && page["session"] == session).await;
    }
    // What the master received before this request is handled before its answer.
    let mut newest = slaves.pop().unwrap();
    newest.publish("info", false, &json!({"type": "info", "payload": "time"})).await;
    newest.next("/reply").await;
    assert_eq!(master.get("/api/v1/slaves/pi").await["state"], "online");
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut watcher = Client::listen(&master, "watcher", "rpicluster/from/pi/state").await;
        let (_, kept) = watcher.next("pi/state").await;
        if (&kept["payload"]["state"], &kept["payload"]["session"]) == (&json!("online"), &json!("s49")) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "the retained state stays {kept}");
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_offline_in_the_retained_topic_too_and_any_message_ends_it() {
    let folder = support::private_folder();
    let mut settings = settings(folder.path());
    settings.master.presence_timeout = Duration::from_secs(1);
    let master = TestMaster::start_with(settings).await;
    let mut watcher = Client::listen(&master, "watcher", "rpicluster/from/+/state").await;
    let slave = Client::slave(&master, "pi", "s1").await;
    assert_eq!(watcher.next("pi/state").await.1["payload"]["state"], "online");
    let (_, rewritten) = watcher.next("pi/state").await;
    assert_eq!(
        (&rewritten["payload"]["state"], &rewritten["payload"]["reason"]),
        (&json!("offline"), &json!("silent"))
    );
    master.wait_state("pi", "offline").await;
    slave.publish("message", false, &json!({"type": "message", "payload": "still here"})).await;
    let (_, rewritten) = watcher.next("pi/state").await;
    assert_eq!((&rewritten["payload"]["state"], &rewritten["payload"]["session"]), (&json!("online"), &json!("s1")));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_without_state_is_asked_for_it() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut shy = Client::shy(&master, "shy").await;
    shy.publish("message", false, &json!({"type": "message", "payload": "hello"})).await;
    assert_eq!(shy.next("/command").await.1["type"], "announce");
    assert_eq!(master.wait_state("shy", "offline").await["reason"], "no_state");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_many_slaves_is_handled_under_its_own_id() {
    const SLAVES: usize = 20;
    const MESSAGES: usize = 200;
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..SLAVES {
        let slave = Client::slave(&master, &format!("pi-{number}"), "s1").await;
        senders.spawn(async move {
            for message in 0..MESSAGES {
                let text = format!("{number}/{message} {}", "x".repeat(1_400));
                slave.publish("message", false, &json!({"type": "message", "payload": text})).await;
            }
            slave
        });
    }
    let slaves = senders.join_all().await;
    for slave in slaves {
        let path = format!("/api/v1/slaves/{}", slave.id);
        // The messages and the state.
        let page = master.wait_for(&path, |page| page["counters"]["handled"] == MESSAGES + 1).await;
        assert_eq!((&page["counters"]["received"], &page["counters"]["shed"]), (&json!(MESSAGES + 1), &json!(0)));
        assert_eq!(page["counters"]["bad_messages"], 0);
        slave.disconnect().await;
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_a_start_is_named() {
    let folder = support::private_folder();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();

    let mut http = settings(folder.path());
    http.master.http = address;
    let error = Master::bind(http).await.err().unwrap();
    assert!(matches!(error, StartError::Http { .. }));
    assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains("--http"), "{error}");

    let mut mqtt = settings(folder.path());
    mqtt.broker.listeners.values_mut().for_each(|listener| listener.address = address);
    let error = Master::bind(mqtt).await.err().unwrap();
    assert!(matches!(error, StartError::Mqtt { .. }));
    assert!(error.to_string().contains(&address.to_string()) && error.to_string().contains("--mqtt"), "{error}");

    let master = TestMaster::start(folder.path()).await;
    let error = Master::bind(settings(folder.path())).await.err().unwrap();
    assert!(matches!(error, StartError::Store(StoreError::InUse(_))), "{error}");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_slave_is_forgotten_everywhere_and_may_come_back_as_new() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    for round in 0..3 {
        let secret = master.secret("pi").await;
        let mut slave = Client::slave_with(&master, "pi", &format!("s{round}"), &secret).await;
        let details = json!({"type": "computer_details", "payload": {"hostname": format!("h{round}")}});
        slave.publish("details", true, &details).await;
        // A flood that is still under way when the slave is removed.
        for _ in 0..2_000 {
            slave.publish("message", false, &json!({"type": "message", "payload": "x"})).await;
        }
        let page =
            master.wait_for("/api/v1/slaves/pi", |page| page["details"]["hostname"] == format!("h{round}")).await;
        assert_eq!((&page["state"], &page["session"]), (&json!("online"), &json!(format!("s{round}"))));

        assert_eq!(master.request("DELETE", "/api/v1/slaves/pi", &json!(null)).await.0, 204);
        slave.closed().await;
        assert_eq!(master.request("GET", "/api/v1/slaves/pi", &json!(null)).await.0, 404);
        assert_eq!(master.get("/api/v1/broker/clients").await, json!([]));
        let mut refused = Client::slave_with(&master, "pi", "late", &secret).await;
        refused.closed().await;
        // Nothing retained is left: what comes first is the master's own.
        let mut watcher = Client::listen(&master, "watcher", "rpicluster/#").await;
        let (publish, _) = watcher.next("").await;
        assert_eq!(publish.topic, "rpicluster/master/state");
        watcher.disconnect().await;
    }
    assert_eq!(master.request("DELETE", "/api/v1/slaves/pi", &json!(null)).await.0, 404);
    assert_eq!(master.get("/healthz").await["status"], "ok");
    master.stop().await;
    let master = TestMaster::start(folder.path()).await;
    assert_eq!(master.get("/api/v1/slaves").await, json!([]));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_connect_may_after_a_restart_and_nobody_else_speaks_for_a_slave() {
    let folder = support::private_folder();
    let master = TestMaster::start(folder.path()).await;
    let secret = master.secret("pi").await;
    let wish = json!({"name": "home", "role": "observer", "password": "correct horse"});
    assert_eq!(master.request("POST", "/api/v1/accounts", &wish).await.0, 201);
    let (code, answer) = master.request("POST", "/api/v1/tokens", &json!({})).await;
    assert!(code == 201 && answer["token"].as_str().unwrap().starts_with("rpi1."), "{answer}");
    master.stop().await;

    let master = TestMaster::start(folder.path()).await;
    let slave = Client::slave_with(&master, "pi", "s1", &secret).await;
    master.wait_state("pi", "online").await;
    let mut forged = Client::slave_with(&master, "pi", "s2", "correct horse").await;
    forged.closed().await;
    let mut stranger = Client::listen(&master, "stranger", "rpicluster/#").await;
    stranger.publish("state", true, &state("online", "s3")).await;
    stranger.next("master/state").await;
    assert_eq!(master.get("/api/v1/slaves/pi").await["session"], "s1");
    assert_eq!(master.get("/api/v1/slaves").await.as_array().unwrap().len(), 1);
    slave.disconnect().await;
    master.stop().await;
}
