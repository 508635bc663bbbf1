//! Tasks over 8 slaves on this machine: a queue that they share, and one task at a time; and one job on 1,000.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::figure::{Figures, median, percentile};
use crate::others::{self, Measured};
use crate::peers::{Master, Process, start_slave, wait_until};
use crate::simulated::Slaves;

pub(crate) const SLAVES: usize = 8;
pub(crate) const ROUNDS: usize = 3;
const PINGS: usize = 50_000;
pub(crate) const COMMANDS: usize = 2_000;
const CALLS: usize = 10_000;
/// Tasks one at a time, of which the median is a round's figure.
pub(crate) const SINGLE: usize = 200;
const THOUSAND: usize = 1_000;
/// Jobs on all of a thousand slaves.
const BROADCASTS: usize = 9;

/// Slots of a slave where waiting for the disk, not the machine, is what takes time.
const MANY_SLOTS: usize = 64;

/// A Python function that stays and answers at once.
const FUNCTION: &str = "#!/usr/bin/env python3
import json, sys
for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({\"id\": call[\"id\"], \"result\": call[\"input\"]}), flush=True)
";

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let syncs: Vec<f64> = (0..ROUNDS).map(|_| fdatasync()).collect::<Result<_>>()?;
    figures.add("fdatasync p50", "ms", &syncs, None);
    let functions = functions()?;

    let cluster = Cluster::start(MANY_SLOTS, functions.path())?;
    let pings = queue(json!({"kind": "action", "action": "ping"}), PINGS);
    let before = cluster.master.process.cpu_time()?;
    let rates = cluster.rates(&pings, PINGS)?;
    let spent = cluster.master.process.cpu_time()?.saturating_sub(before);
    figures.add("ping, a queue of 50,000", "1/s", &rates, None);
    let each = spent.as_secs_f64() * 1e6 / (PINGS * ROUNDS) as f64;
    figures.add("processor time of the master for each", "us", &[each], None);
    let calls = queue(json!({"kind": "function", "function": "echo"}), CALLS);
    let function = cluster.rates(&calls, CALLS)?;
    figures.add("warm Python function", "1/s", &function, None);
    drop(cluster);

    let commands = queue(json!({"kind": "exec", "argv": ["/bin/true"]}), COMMANDS);
    for slots in [4, 2] {
        let floor: Vec<f64> = (0..ROUNDS).map(|_| xargs()).collect::<Result<_>>()?;
        let rates = Cluster::start(slots, functions.path())?.rates(&commands, COMMANDS)?;
        figures.add(&format!("exec /bin/true, {slots} slots each"), "1/s", &rates, Some(("xargs -P8", &floor)));
    }
    let cluster = Cluster::start(1, functions.path())?;
    let (mut exec, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floor.push(xargs()?);
        exec.push(cluster.rate(&commands, COMMANDS)?);
    }
    figures.add("exec /bin/true, a slot each", "1/s", &exec, Some(("xargs -P8", &floor)));
    let one = cluster.latency(&json!({"steps": [{"on": "bench-0", "kind": "action", "action": "ping"}]}))?;
    figures.add("one ping, submitted to known, p50", "ms", &one, Some(("fdatasync", &syncs)));
    let all = cluster.latency(&json!({"steps": [{"on": "all", "kind": "exec", "argv": ["/bin/true"]}]}))?;
    figures.add("true on 8 slaves, submitted to known, p50", "ms", &all, None);
    drop(cluster);

    thousand_slaves(figures)?;
    others::measure(figures, &Measured { function, exec, one, all });
    Ok(())
}

/// One job for all of a thousand slaves, whose tasks end at once.
fn thousand_slaves(figures: &mut Figures) -> Result<()> {
    let master = Master::start(&[])?;
    let slaves = Slaves::start(master.mqtt, THOUSAND)?;
    wait_until("1,000 slaves are online", || Ok(master.status()?["online"] == json!(THOUSAND)))?;
    for (name, step) in [
        ("ping on 1,000 simulated slaves, p50", json!({"on": "all", "kind": "action", "action": "ping"})),
        ("true on 1,000 simulated slaves, p50", json!({"on": "all", "kind": "exec", "argv": ["/bin/true"]})),
    ] {
        let job = json!({"steps": [step]});
        // Their journals have come.
        master.run(&job)?;
        let mut rounds = Vec::new();
        for _ in 0..BROADCASTS {
            let began = Instant::now();
            let ended = master.run(&job)?;
            rounds.push(began.elapsed().as_secs_f64() * 1e3);
            let known = &ended["counts"]["succeeded"];
            ensure!(*known == json!(THOUSAND), "not all of 1,000 slaves answered: {ended}");
        }
        figures.add(name, "ms", &rounds, None);
    }
    ensure!(slaves.connected() == THOUSAND, "some slaves are gone again");
    Ok(())
}

/// A job whose tasks are a queue that all slaves share.
fn queue(kind: Value, count: usize) -> Value {
    let mut step = json!({"on": "all", "inputs": (0..count).map(|n| n.to_string()).collect::<Vec<_>>()});
    merge(&mut step, kind);
    json!({ "steps": [step] })
}

/// A master and its slaves.
struct Cluster {
    master: Master,
    _slaves: Vec<Process>,
}

impl Cluster {
    fn start(slots: usize, functions: &Path) -> Result<Cluster> {
        let master = Master::start(&[])?;
        let settings = [
            ("RPICLUSTER__SLAVE__SLOTS", slots.to_string()),
            ("RPICLUSTER__SLAVE__TASKS__FUNCTIONS_DIR", functions.display().to_string()),
            ("RPICLUSTER__SLAVE__TASKS__FUNCTIONS__ECHO__PERSISTENT", "true".to_owned()),
            ("RPICLUSTER__SLAVE__TASKS__FUNCTIONS__ECHO__WORKERS", "1".to_owned()),
        ];
        let slaves = (0..SLAVES).map(|number| start_slave(&master, &format!("bench-{number}"), &settings));
        let slaves: Vec<Process> = slaves.collect::<Result<_>>()?;
        wait_until("the slaves are online", || Ok(master.status()?["online"] == json!(SLAVES)))?;
        let cluster = Cluster { master, _slaves: slaves };
        // Their journals have come, and what is started once is.
        cluster.run(&json!({"steps": [{"on": "all", "kind": "exec", "argv": ["/bin/true"]}]}))?;
        Ok(cluster)
    }

    /// Runs a job to its end; an unsuccessful one is no measurement.
    fn run(&self, job: &Value) -> Result<Duration> {
        let began = Instant::now();
        let ended = self.master.run(job)?;
        let took = began.elapsed();
        ensure!(ended["state"] == "succeeded", "a job that is measured did not succeed: {ended}");
        Ok(took)
    }

    fn rates(&self, job: &Value, tasks: usize) -> Result<Vec<f64>> {
        (0..ROUNDS).map(|_| self.rate(job, tasks)).collect()
    }

    fn rate(&self, job: &Value, tasks: usize) -> Result<f64> {
        Ok(tasks as f64 / self.run(job)?.as_secs_f64())
    }

    /// Milliseconds, the median of each round.
    fn latency(&self, job: &Value) -> Result<Vec<f64>> {
        let round = || -> Result<f64> {
            let each = (0..SINGLE).map(|_| Ok(self.run(job)?.as_secs_f64() * 1e3));
            Ok(median(&each.collect::<Result<Vec<f64>>>()?))
        };
        (0..ROUNDS).map(|_| round()).collect()
    }
}

/// How long it takes to make 4 KiB safe where the state of masters lies: milliseconds, the median.
fn fdatasync() -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let mut file = File::create(folder.path().join("file"))?;
    let mut each = Vec::new();
    for _ in 0..SINGLE {
        file.write_all(&[1; 4096])?;
        let began = Instant::now();
        file.sync_data()?;
        each.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(percentile(&each, 50))
}

/// The same commands by a program that only starts processes, 8 at once.
fn xargs() -> Result<f64> {
    others::commands_per_second(Command::new("xargs").args(["-P8", "-n1", "/bin/true"]))
}

/// A folder of functions.
fn functions() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("echo");
    std::fs::write(&path, FUNCTION)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

fn merge(step: &mut Value, more: Value) {
    if let (Value::Object(step), Value::Object(more)) = (step, more) {
        step.extend(more);
    }
}
