//! Jobs and tasks: HTTP on one side, a slave that speaks the wire protocol on the other.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, PATIENCE, TestMaster, private_folder, settings, state};

/// A slave with so many slots, whose journal holds these attempts.
async fn slave(master: &TestMaster, id: &str, session: &str, slots: u32, attempts: Value) -> Client {
    let client = Client::slave(master, id, session).await;
    let mut claim = state("online", session);
    claim["payload"]["slots"] = slots.into();
    client.publish("state", true, &claim).await;
    let journal = json!({"journal_id": "00000000000000aa", "session": session, "attempts": attempts});
    client.publish("task", false, &json!({"type": "task_journal", "payload": journal})).await;
    client
}

/// A slave that was there once.
async fn known(master: &TestMaster, id: &str) {
    let client = Client::slave(master, id, "before").await;
    master.wait_state(id, "online").await;
    drop(client);
    master.wait_state(id, "offline").await;
}

/// The next payload of that type, the first of several.
async fn next(slave: &mut Client, kind: &str) -> Value {
    loop {
        let (_, message) = slave.next("/command").await;
        if message["type"] == kind {
            let payload = &message["payload"];
            return payload.get(0).unwrap_or(payload).clone();
        }
    }
}

/// The next acknowledgement that reaches as far.
async fn acknowledged(slave: &mut Client, seq: u64, stdout: u64) {
    loop {
        let ack = next(slave, "task_ack").await;
        if ack["seq"].as_u64() >= Some(seq) && ack["stdout"].as_u64() >= Some(stdout) {
            return;
        }
    }
}

/// An event of the attempt that was offered.
fn event(offer: &Value, seq: u32, more: &Value) -> Value {
    let mut event = json!({
        "task": offer["task"], "attempt": offer["attempt"], "epoch": offer["epoch"], "seq": seq
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

async fn say(slave: &Client, leaf: &str, kind: &str, payload: Value) {
    slave.publish(leaf, false, &json!({"type": kind, "payload": payload})).await;
}

async fn started(slave: &Client, offer: &Value) {
    say(slave, "task", "task_started", event(offer, 1, &json!({"boot_id": "b"}))).await;
}

async fn output(slave: &Client, offer: &Value, stream: &str, offset: u64, data: &str) {
    let piece = json!({"stream": stream, "offset": offset, "data": data});
    say(slave, "output", "task_output", event(offer, 0, &piece)).await;
}

async fn finished(slave: &Client, offer: &Value, code: i32, stdout: usize) {
    let outcome = if code == 0 { "succeeded" } else { "failed" };
    let end = json!({"outcome": outcome, "exit_code": code, "duration_ms": 3, "stdout": stdout});
    say(slave, "task", "task_finished", event(offer, 2, &end)).await;
}

fn uname(on: &str) -> Value {
    json!({"steps": [{"on": on, "kind": "exec", "argv": ["uname", "-a"]}]})
}

async fn submit(master: &TestMaster, job: &Value) -> Value {
    let (code, answer) = master.request("POST", "/api/v1/jobs", job).await;
    assert_eq!(code, 201, "{answer}");
    answer
}

impl TestMaster {
    /// The whole body of an answer that may come in chunks, with headers of the request's own.
    async fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\n{headers}\
             content-length: {length}\r\n\r\n{body}",
            self.token()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the answer ends").unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut rest = &answer[end + 4..];
        if !head.contains("transfer-encoding: chunked") {
            return (code, rest.to_vec());
        }
        let mut body = Vec::new();
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n").unwrap();
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            if length == 0 {
                return (code, body);
            }
            body.extend_from_slice(&rest[line + 2..line + 2 + length]);
            rest = &rest[line + 4 + length..];
        }
    }

    /// All events of a job until it has ended.
    async fn events(&self, job: u64) -> Vec<Value> {
        let (code, body) = self.raw("GET", &format!("/api/v1/jobs/{job}/events?output=true"), "", "").await;
        assert_eq!(code, 200);
        let text = String::from_utf8(body).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|json| serde_json::from_str(json).unwrap()).collect()
    }

    async fn task(&self, index: u32) -> Value {
        self.get(&format!("/api/v1/jobs/1/tasks/{index}")).await
    }
}

/// A master that dies at once, and the next one on its folder.
async fn killed(master: TestMaster, folder: &Path) -> TestMaster {
    master.kill().await;
    TestMaster::start(folder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_survives_the_death_of_the_master_at_every_step() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    known(&master, "pi").await;
    let accepted = submit(&master, &uname("pi")).await;
    assert_eq!((&accepted["job"], &accepted["steps"][0]["slaves"]), (&json!(1), &json!(["pi"])));

    // Submitted.
    let master = killed(master, folder.path()).await;
    assert_eq!(master.get("/api/v1/jobs/1").await["state"], "active");
    let mut pi = slave(&master, "pi", "s1", 1, json!([])).await;
    let offer = next(&mut pi, "task_offer").await;
    assert_eq!((&offer["task"], &offer["attempt"], &offer["session"]), (&json!("1.0"), &json!(1), &json!("s1")));
    assert_eq!(offer["argv"], json!(["uname", "-a"]));

    // Offered, and the slave has not begun.
    let master = killed(master, folder.path()).await;
    let mut pi = slave(&master, "pi", "s2", 1, json!([])).await;
    let offer = next(&mut pi, "task_offer").await;
    assert_eq!((&offer["attempt"], &offer["session"]), (&json!(2), &json!("s2")));
    started(&pi, &offer).await;
    acknowledged(&mut pi, 1, 0).await;

    // Running.
    let master = killed(master, folder.path()).await;
    assert_eq!(master.task(0).await["state"], "running");
    let running = json!([event(&offer, 1, &json!({"event": "started"}))]);
    let mut pi = slave(&master, "pi", "s3", 1, running.clone()).await;
    acknowledged(&mut pi, 1, 0).await;
    output(&pi, &offer, "stdout", 0, "Linux\n").await;
    acknowledged(&mut pi, 0, 6).await;

    // With output.
    let master = killed(master, folder.path()).await;
    let mut pi = slave(&master, "pi", "s4", 1, running).await;
    acknowledged(&mut pi, 1, 6).await;
    finished(&pi, &offer, 0, 6).await;
    acknowledged(&mut pi, 2, 6).await;

    // Ended.
    let master = killed(master, folder.path()).await;
    let job = master.get("/api/v1/jobs/1").await;
    assert_eq!((&job["state"], &job["counts"]), (&json!("succeeded"), &json!({"succeeded": 1})));
    assert_eq!((&job["requester"], &job["steps"][0]["work"]), (&json!("local"), &json!("uname -a")));
    let task = master.task(0).await;
    assert_eq!((&task["state"], &task["attempt"], &task["exit_code"]), (&json!("succeeded"), &json!(2), &json!(0)));
    let (code, written) = master.raw("GET", "/api/v1/jobs/1/output?task=0&stream=stdout", "", "").await;
    assert_eq!((code, written.as_slice()), (200, &b"Linux\n"[..]));
    // What it says again is acknowledged again, and changes nothing.
    let pi = slave(&master, "pi", "s5", 1, json!([])).await;
    finished(&pi, &offer, 1, 6).await;
    master.wait_for("/api/v1/slaves/pi", |page| page["slots"] == 1).await;
    assert_eq!(master.task(0).await["state"], "succeeded");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_how_a_job_goes_on_and_end_with_it() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut pi = slave(&master, "pi", "s1", 1, json!([])).await;
    master.wait_for("/api/v1/slaves/pi", |page| page["slots"] == 1).await;
    let job =
        json!({"name": "two", "steps": [{"on": "all", "kind": "exec", "argv": ["echo", "{}"], "inputs": ["a", "b"]}]});
    submit(&master, &job).await;
    let offer = next(&mut pi, "task_offer").await;
    assert_eq!(offer["argv"], json!(["echo", "a"]));
    started(&pi, &offer).await;
    output(&pi, &offer, "stdout", 0, "before\n").await;
    acknowledged(&mut pi, 0, 7).await;
    let (watched, ()) = tokio::join!(master.events(1), async {
        // There is no telling from outside when the watcher has subscribed: both ways it is told all.
        output(&pi, &offer, "stdout", 7, "after\n").await;
        finished(&pi, &offer, 0, 13).await;
        let offer = next(&mut pi, "task_offer").await;
        started(&pi, &offer).await;
        output(&pi, &offer, "stderr", 0, "no\n").await;
        let end = json!({"outcome": "failed", "exit_code": 3, "duration_ms": 1, "stderr": 3});
        say(&pi, "task", "task_finished", event(&offer, 2, &end)).await;
    });
    assert_eq!((&watched[0]["type"], &watched[0]["name"]), (&json!("job"), &json!("two")));
    let last = watched.last().unwrap();
    assert_eq!((&last["type"], &last["state"]), (&json!("job"), &json!("failed")), "{watched:?}");
    let written = |events: &[Value], index: &str, stream: &str| -> String {
        let mut end = 0;
        let pieces = events.iter().filter(|event| event["type"] == "output");
        let pieces = pieces.filter(|piece| piece["task"] == index && piece["stream"] == stream);
        // A piece may come twice: once as it stood, once as it came.
        let news = pieces.filter(|piece| {
            let is_news = piece["offset"].as_u64().unwrap() >= end;
            end = end.max(piece["offset"].as_u64().unwrap() + piece["data"].as_str().unwrap().len() as u64);
            is_news
        });
        news.map(|piece| piece["data"].as_str().unwrap()).collect()
    };
    assert_eq!(written(&watched, "1.0", "stdout"), "before\nafter\n");
    assert_eq!(written(&watched, "1.1", "stderr"), "no\n");
    // Who comes later is told the same, and how it ended.
    let later = master.events(1).await;
    assert_eq!(written(&later, "1.0", "stdout"), "before\nafter\n");
    let ended: Vec<&Value> = later.iter().filter(|event| event["type"] == "task").map(|task| &task["state"]).collect();
    assert_eq!(ended, [&json!("succeeded"), &json!("failed")]);
    assert_eq!(later.last().unwrap()["state"], "failed");
    let (_, tail) = master.raw("GET", "/api/v1/jobs/1/output?task=0&offset=9", "", "").await;
    assert_eq!(tail, b"ter\n");

    // Only what failed is tried again.
    let (code, job) = master.request("POST", "/api/v1/jobs/1/retry", &json!({"failed": true})).await;
    assert_eq!((code, &job["state"]), (200, &json!("active")));
    let offer = next(&mut pi, "task_offer").await;
    assert_eq!((&offer["task"], &offer["attempt"]), (&json!("1.1"), &json!(2)));
    started(&pi, &offer).await;
    acknowledged(&mut pi, 1, 0).await;
    let (code, _) = master.request("POST", "/api/v1/jobs/1/cancel", &json!({"running": true})).await;
    assert_eq!(code, 200);
    assert_eq!(next(&mut pi, "task_cancel").await["task"], "1.1");
    let end = json!({"outcome": "canceled", "signal": 15, "duration_ms": 1});
    say(&pi, "task", "task_finished", event(&offer, 2, &end)).await;
    let job = master.wait_for("/api/v1/jobs/1", |job| job["state"] != "active").await;
    assert_eq!(job["counts"], json!({"succeeded": 1, "canceled": 1}));
    let (_, old) = master.raw("GET", "/api/v1/jobs/1/output?task=1&stream=stderr&attempt=1", "", "").await;
    assert_eq!(old, b"no\n");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_by_name_when_it_is_submitted() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    let _pi = slave(&master, "pi", "s1", 1, json!([])).await;
    master.wait_for("/api/v1/slaves/pi", |page| page["slots"] == 1).await;
    let step = |more: Value| {
        let mut step = json!({"on": "all", "kind": "exec", "argv": ["true"]});
        more.as_object().unwrap().iter().for_each(|(name, value)| step[name] = value.clone());
        json!({"steps": [step]})
    };
    let long = "x".repeat(50_000);
    for (job, code, part) in [
        (json!({"steps": []}), 400, "steps"),
        (json!({"step": []}), 400, "step"),
        (step(json!({"on": "pi and"})), 400, "at character 7"),
        (step(json!({"on": "pi or pi-9"})), 422, "no slave has the id \"pi-9\""),
        (step(json!({"on": "role=none"})), 422, "no slave matches"),
        (step(json!({"argv": []})), 400, "steps[0].argv"),
        (step(json!({"after": ["first"]})), 400, "no earlier step has the name \"first\""),
        (step(json!({"inputs": []})), 400, "nothing to be done"),
        (step(json!({"argv": ["echo", "{}", "{}"], "inputs": ["a", &long[..25_000]]})), 400, "does not fit"),
        (step(json!({"stdin": long})), 400, "does not fit"),
        (step(json!({"timeout_ms": 0})), 400, "timeout_ms"),
        (step(json!({"kind": "function", "function": "../sh"})), 400, "functions.d"),
    ] {
        let (found, answer) = master.request("POST", "/api/v1/jobs", &job).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(found == code && error.contains(part), "{part}: {found} {answer}");
    }
    assert_eq!(master.get("/api/v1/jobs").await, json!([]));
    let mut dry = uname("all");
    dry["dry_run"] = true.into();
    let (code, answer) = master.request("POST", "/api/v1/jobs", &dry).await;
    assert_eq!((code, answer), (200, json!({"steps": [{"slaves": ["pi"], "tasks": 1}]})));
    assert_eq!(master.get("/api/v1/jobs").await, json!([]));

    // Reading takes a token too.
    for path in ["/api/v1/jobs", "/api/v1/jobs/1", "/api/v1/jobs/1/events", "/api/v1/jobs/1/output"] {
        let mut stream = TcpStream::connect(master.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
    }
    for (method, path, code) in [
        ("GET", "/api/v1/jobs/1", 404),
        ("GET", "/api/v1/jobs/x", 404),
        ("GET", "/api/v1/jobs/1/tasks", 404),
        ("GET", "/api/v1/jobs/1/tasks/0", 404),
        ("GET", "/api/v1/jobs/1/events", 404),
        ("GET", "/api/v1/jobs/1/output", 404),
        ("GET", "/api/v1/jobs?limit=many", 400),
        ("GET", "/api/v1/jobs?many=1", 400),
        ("POST", "/api/v1/jobs/1/cancel", 404),
        ("POST", "/api/v1/jobs/1/retry", 404),
        ("POST", "/api/v1/slaves/nobody/drain", 404),
        ("DELETE", "/api/v1/slaves/nobody/drain", 404),
    ] {
        let (found, answer) = master.request(method, path, &Value::Null).await;
        assert!(found == code && answer["error"].is_string(), "{method} {path}: {found} {answer}");
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_again_is_answered_as_before() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    known(&master, "pi").await;
    let (body, key) = (uname("all").to_string(), "idempotency-key: k1\r\n");
    let (code, first) = master.raw("POST", "/api/v1/jobs", key, &body).await;
    assert_eq!(code, 201);
    let answer: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(answer, json!({"job": 1, "steps": [{"slaves": ["pi"], "offline": ["pi"], "tasks": 1}]}));
    let _pi = slave(&master, "pi", "s2", 1, json!([])).await;
    master.wait_state("pi", "online").await;
    assert_eq!(master.raw("POST", "/api/v1/jobs", key, &body).await, (201, first.clone()));
    let master = killed(master, folder.path()).await;
    assert_eq!(master.raw("POST", "/api/v1/jobs", key, &body).await, (201, first));
    assert_eq!(master.get("/api/v1/jobs").await.as_array().unwrap().len(), 1);
    assert_eq!(master.raw("POST", "/api/v1/jobs", "idempotency-key:\r\n", &body).await.0, 400);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_choose_by_labels_of_both_kinds_and_pages_list_all_tasks() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    let mut slaves = Vec::new();
    for number in 1..=4 {
        let pi = slave(&master, &format!("pi-{number}"), "s", 0, json!([])).await;
        let labels = json!({"hostname": "h", "labels": {"role": "worker", "rack": "1"}});
        say(&pi, "details", "computer_details", labels).await;
        master.wait_for(&format!("/api/v1/slaves/pi-{number}"), |page| page["details"]["hostname"] == "h").await;
        slaves.push(pi);
    }
    let (code, _) = master.request("PUT", "/api/v1/slaves/pi-2/labels", &json!({"role": "spare", "gone": null})).await;
    assert_eq!(code, 204);
    assert_eq!(master.get("/api/v1/slaves/pi-2").await["labels"], json!({"role": "spare", "rack": "1"}));
    for (on, who) in [
        ("role=worker and not pi-4", json!(["pi-1", "pi-3"])),
        ("pi-[2-3]", json!(["pi-2", "pi-3"])),
        ("rack>=1", json!(["pi-1", "pi-2", "pi-3", "pi-4"])),
    ] {
        assert_eq!(submit(&master, &uname(on)).await["steps"][0]["slaves"], who, "{on}");
    }
    let (code, _) = master.request("PUT", "/api/v1/slaves/pi-2/labels", &json!({"role": null})).await;
    assert_eq!(code, 204);
    assert_eq!(master.get("/api/v1/slaves/pi-2").await["labels"]["role"], "worker");

    let inputs: Vec<String> = (0..25).map(|number| number.to_string()).collect();
    let job = json!({"steps": [{"on": "all", "kind": "exec", "argv": ["echo"], "inputs": inputs}]});
    assert_eq!(submit(&master, &job).await["job"], 4);
    let (mut from, mut seen) = (json!(0), 0);
    while let Some(place) = from.as_u64() {
        for query in ["", "&state=queued"] {
            let page = master.get(&format!("/api/v1/jobs/4/tasks?from={place}&limit=10{query}")).await;
            from = page["next"].clone();
            assert_eq!(page["tasks"][0]["input"], place.to_string());
        }
        seen +=
            master.get(&format!("/api/v1/jobs/4/tasks?from={place}&limit=10")).await["tasks"].as_array().unwrap().len();
    }
    assert_eq!(seen, 25);
    assert_eq!(master.get("/api/v1/jobs/4/tasks?state=failed").await, json!({"tasks": []}));
    let newest = master.get("/api/v1/jobs?limit=2").await;
    assert_eq!((&newest[0]["job"], &newest[1]["job"], newest.as_array().unwrap().len()), (&json!(4), &json!(3), 2));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_without_slots_waits_and_a_drained_one_begins_nothing() {
    let folder = private_folder();
    let master = TestMaster::start(folder.path()).await;
    let plain = Client::slave(&master, "plain", "s1").await;
    let mut pi = slave(&master, "pi", "s1", 2, json!([])).await;
    master.wait_for("/api/v1/slaves/pi", |page| page["slots"] == 2).await;
    let (code, _) = master.request("POST", "/api/v1/slaves/pi/drain", &json!({"reason": "fan"})).await;
    assert_eq!(code, 204);
    let page = master.wait_for("/api/v1/slaves/pi", |page| page["drain"] == "fan").await;
    assert_eq!(page["open_attempts"], 0);
    submit(&master, &uname("all")).await;
    // What the master had to say before this answer has been said.
    plain.publish("info", false, &json!({"type": "info", "payload": "time"})).await;
    let job = master.get("/api/v1/jobs/1").await;
    assert_eq!(job["counts"], json!({"queued": 2}));
    assert_eq!(master.request("DELETE", "/api/v1/slaves/pi/drain", &Value::Null).await.0, 204);
    assert_eq!(next(&mut pi, "task_offer").await["task"], "1.0");
    let page = master.wait_for("/api/v1/slaves/pi", |page| page["open_attempts"] == 1).await;
    assert_eq!(page["drain"], Value::Null);
    assert_eq!(master.get("/api/v1/jobs/1").await["counts"], json!({"queued": 1, "offered": 1}));
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_a_slave_costs_none_of_its_results() {
    let folder = private_folder();
    let mut settings = settings(folder.path());
    settings.master.output_bytes_max = 64 * 1024;
    let master = TestMaster::start_with(settings).await;
    let mut pi = slave(&master, "pi", "s1", 1, json!([])).await;
    master.wait_for("/api/v1/slaves/pi", |page| page["slots"] == 1).await;
    submit(&master, &uname("pi")).await;
    let offer = next(&mut pi, "task_offer").await;
    started(&pi, &offer).await;
    acknowledged(&mut pi, 1, 0).await;
    let piece = "x".repeat(20_000);
    for number in 0..300 {
        output(&pi, &offer, "stdout", number * 20_000, &piece).await;
        started(&pi, &offer).await;
    }
    // What was shed is said again, as a slave does.
    let end = tokio::time::Instant::now() + PATIENCE;
    let mut recorded = 0;
    while recorded < 6_000_000 {
        assert!(tokio::time::Instant::now() < end, "only {recorded} bytes are acknowledged");
        match tokio::time::timeout(Duration::from_millis(300), next(&mut pi, "task_ack")).await {
            Ok(ack) => recorded = recorded.max(ack["stdout"].as_u64().unwrap()),
            Err(_) => output(&pi, &offer, "stdout", recorded, &piece).await,
        }
    }
    finished(&pi, &offer, 0, 6_000_000).await;
    acknowledged(&mut pi, 2, 6_000_000).await;
    let task = master.task(0).await;
    assert_eq!((&task["state"], &task["truncated"]), (&json!("succeeded"), &json!(true)));
    let (_, kept) = master.raw("GET", "/api/v1/jobs/1/output?task=0", "", "").await;
    assert!((1..=64 * 1024).contains(&kept.len()), "{}", kept.len());
    master.stop().await;
}
