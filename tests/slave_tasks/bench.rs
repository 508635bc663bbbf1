//! A slave as a process of its own, a broker, and the test in the master's place.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::mosquitto::Broker;
use crate::harness::mqtt::{Client, Message};
use crate::harness::{PATIENCE, Place, Process, rpicluster, wait_until};

const EPOCH: &str = "5f1d7a3b9c2e4f60";
const COMMAND: &str = "rpicluster/to/pi-1/command";

/// A slave, its broker, and the test in the master's place.
pub(super) struct Bench {
    _broker: Broker,
    pub(super) master: Client,
    pub(super) slave: Process,
    pub(super) folder: TempDir,
    pub(super) session: String,
    pub(super) heard: Vec<(String, Value)>,
}

impl Bench {
    pub(super) fn start(settings: &str) -> Bench {
        let broker = Broker::start();
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "[cluster]\nbroker = \"mqtt://{}\"\n[slave]\nid = \"pi-1\"\nslots = 8\nstate_dir = {:?}\n[slave.tasks]\n{settings}\n",
            broker.mqtt.address,
            folder.path().join("state")
        );
        fs::write(folder.path().join("rpicluster.toml"), config).unwrap();
        let mut master = Client::connect(broker.mqtt, "master", None).unwrap();
        master.subscribe("rpicluster/from/pi-1/#").unwrap();
        let slave = spawn(folder.path());
        let mut bench = Bench { _broker: broker, master, slave, folder, session: String::new(), heard: Vec::new() };
        bench.greet();
        bench
    }

    /// Waits for a session of the slave to begin; returns the attempts of its journal.
    pub(super) fn greet(&mut self) -> Vec<Value> {
        loop {
            let (kind, payload) = self.hear();
            match kind.as_str() {
                "state" if payload["state"] == "online" => {
                    self.session = payload["session"].as_str().unwrap().to_owned()
                }
                "task_journal" if payload["session"] == self.session.as_str() => {
                    return payload["attempts"].as_array().unwrap().clone();
                }
                _ => {}
            }
        }
    }

    /// The next message of the slave, taken apart: arrays one by one.
    pub(super) fn hear(&mut self) -> (String, Value) {
        while self.heard.is_empty() {
            let Message { payload, .. } = self.master.next(PATIENCE).unwrap().expect("nothing more is heard");
            let mut message: Value = serde_json::from_slice(&payload).unwrap();
            let kind = message["type"].as_str().unwrap().to_owned();
            match message["payload"].take() {
                Value::Array(all) => self.heard.extend(all.into_iter().map(|one| (kind.clone(), one))),
                one => self.heard.push((kind, one)),
            }
        }
        self.heard.remove(0)
    }

    pub(super) fn tell(&mut self, kind: &str, payload: Value) {
        let message = json!({ "type": kind, "payload": payload }).to_string();
        self.master.publish(COMMAND, message.as_bytes(), false).unwrap();
    }

    pub(super) fn offer(&mut self, index: u32, work: Value) {
        let offer = self.an_offer(index, work);
        self.tell("task_offer", offer);
    }

    pub(super) fn an_offer(&self, index: u32, work: Value) -> Value {
        let mut offer = json!({
            "task": format!("1.{index}"), "attempt": 1, "epoch": EPOCH, "session": self.session, "lease_ms": 600_000,
        });
        offer.as_object_mut().unwrap().extend(work.as_object().unwrap().clone());
        offer
    }

    pub(super) fn shell(&mut self, index: u32, script: &str) {
        self.offer(index, json!({ "kind": "exec", "argv": ["sh", "-c", script] }));
    }

    pub(super) fn cancel(&mut self, index: u32) {
        self.tell("task_cancel", json!({ "task": format!("1.{index}"), "attempt": 1, "epoch": EPOCH }));
    }

    pub(super) fn ack(&mut self, index: u32, seq: u64, stdout: u64, stderr: u64) {
        self.tell("task_ack", json!({
            "task": format!("1.{index}"), "attempt": 1, "epoch": EPOCH, "seq": seq, "stdout": stdout, "stderr": stderr,
        }));
    }

    /// Waits for an event of a task.
    pub(super) fn event(&mut self, kind: &str, index: u32) -> Value {
        let task = format!("1.{index}");
        loop {
            let (heard, payload) = self.hear();
            if heard == kind && payload["task"] == task.as_str() {
                return payload;
            }
        }
    }

    /// Waits for the end of a task and all its output, which is acknowledged as it comes.
    pub(super) fn end(&mut self, index: u32) -> End {
        let task = format!("1.{index}");
        let mut end: Option<Value> = None;
        let mut output: HashMap<String, Vec<u8>> = HashMap::new();
        loop {
            if let Some(event) = &end {
                let length = |stream: &str| output.get(stream).map_or(0, |bytes| bytes.len() as u64);
                if ["stdout", "stderr"].iter().all(|stream| length(stream) >= event[*stream].as_u64().unwrap()) {
                    let (seq, out, err) = (event["seq"].as_u64().unwrap(), length("stdout"), length("stderr"));
                    self.ack(index, seq, out, err);
                    let mut take = |stream: &str| output.remove(stream).unwrap_or_default();
                    return End { out: take("stdout"), err: take("stderr"), event: end.unwrap() };
                }
            }
            let (kind, payload) = self.hear();
            if payload["task"] != task.as_str() {
                continue;
            }
            match kind.as_str() {
                "task_finished" => end = Some(payload),
                "task_rejected" => panic!("rejected: {payload}"),
                "task_output" => {
                    let stream = output.entry(payload["stream"].as_str().unwrap().to_owned()).or_default();
                    let offset = payload["offset"].as_u64().unwrap() as usize;
                    let text = payload["data"].as_str().unwrap();
                    let data = match payload["base64"].as_bool() {
                        Some(true) => BASE64_STANDARD.decode(text).unwrap(),
                        _ => text.as_bytes().to_vec(),
                    };
                    assert!(offset <= stream.len(), "a gap before {offset}");
                    if offset == stream.len() {
                        stream.extend(data);
                    }
                    let length = |stream: &str| output.get(stream).map_or(0, |bytes| bytes.len() as u64);
                    let (out, err) = (length("stdout"), length("stderr"));
                    self.ack(index, 1, out, err);
                }
                _ => {}
            }
        }
    }

    pub(super) fn kill_and_restart(&mut self) -> Vec<Value> {
        self.slave.kill();
        self.slave = spawn(self.folder.path());
        self.heard.clear();
        self.greet()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(super) struct End {
    pub(super) event: Value,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
}

impl End {
    pub(super) fn outcome(&self) -> &str {
        self.event["outcome"].as_str().unwrap()
    }

    pub(super) fn out(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }
}

pub(super) fn spawn(folder: &Path) -> Process {
    let mut command = rpicluster(&Place::Here);
    command.args(["slave", "--config"]).arg(folder.join("rpicluster.toml"));
    Process::start("slave", command)
}

/// The process whose number a task has written into a file.
pub(super) fn noted_pid(file: &Path) -> u32 {
    wait_until("a task writes its number", || fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')));
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}
