use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Work, lines};
use crate::harness::faults::{Network, SmallDisk};
use crate::harness::{Cluster, Process, figure, heavy, run, wait_until};

/// How many slaves work.
const SLAVES: usize = 8;
/// How many tasks each of them runs at once.
const SLOTS: u32 = 2;
/// How many tasks are submitted before each crash.
const TASKS_OF_A_ROUND: u32 = 50;
/// A crash comes at most so long after a submission: tasks of a round need more.
const CALM_MAX: Duration = Duration::from_millis(700);

/// A network fails at most so long: beyond the time after which a silent slave is offline.
const FAULT_MAX: Duration = Duration::from_secs(5);
/// Who is silent is soon offline.
const IMPATIENT: &str =
    "[master]\npresence_timeout = '3s'\n[slave]\nslots = 8\nvitals_interval = '500ms'\nkeep_alive = '2s'";

/// 2,000 tasks in a full run: `SOAK_TASKS=2000`.
fn rounds() -> u32 {
    let tasks: u32 = match std::env::var("SOAK_TASKS") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("SOAK_TASKS={text}: {error}")),
        Err(_) => 400,
    };
    tasks.div_ceil(TASKS_OF_A_ROUND)
}

/// Printed, and taken from `SEED` when it is to be the same once more.
fn seed() -> u64 {
    match std::env::var("SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("SEED={text}: {error}")),
        Err(_) => fastrand::u64(..),
    }
}

#[test]
fn no_task_vanishes_or_runs_twice_while_master_and_slaves_are_killed() {
    let _alone = heavy();
    let seed = seed();
    println!("seed {seed}: SEED={seed} chooses the same moments once more");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut work = Work::start(SLAVES, &format!("[slave]\nslots = {SLOTS}\n"));
    let folder = work.cluster.slave_folder("files");
    std::fs::create_dir(&folder).unwrap();
    let (mut seen, mut jobs) = (BTreeMap::new(), Vec::new());
    let mut kills = (0, 0);
    for round in 0..rounds() {
        // Half of them may be tried again when they were lost.
        let is_idempotent = round % 4 >= 2;
        let mut submission = Process::start("map", map(&work, "all", &folder, round, is_idempotent));
        for (job, _) in &jobs {
            notice(&work, *job, &mut seen);
        }
        // Often early enough to meet the submission itself.
        thread::sleep(CALM_MAX.mul_f64(random.f64().powi(3)));
        if round % 2 == 0 {
            work.cluster.master.kill();
            work.cluster.restart();
            kills.0 += 1;
        } else {
            let victim = random.usize(..SLAVES);
            work.slaves[victim].kill();
            work.slaves[victim] = work.cluster.slave(&format!("pi-{}", victim + 1));
            kills.1 += 1;
        }
        let mut submitted = submission.wait_for_exit();
        // It found no master, and so it has sent nothing.
        if submitted.code == Some(69) {
            submitted = run(map(&work, "all", &folder, round, is_idempotent));
        }
        assert_eq!(submitted.code, Some(0), "{}", submitted.err);
        jobs.push((submitted.out.trim().parse().unwrap(), is_idempotent));
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut tried_again = 0;
    for (job, is_idempotent) in &jobs {
        wait_until(&format!("job {job} has ended"), || work.job(*job)["state"] != "active");
        for task in tasks(&work, *job) {
            *counts.entry(task["state"].as_str().unwrap().to_owned()).or_default() += 1;
            tried_again += u32::from(task["attempt"] != 1);
            check(&task, &folder, *is_idempotent);
        }
        notice(&work, *job, &mut seen);
    }
    assert_eq!(listed(&work), jobs.iter().map(|(job, _)| *job).collect(), "the accepted jobs, each once");
    assert_eq!(counts.values().sum::<u32>(), rounds() * TASKS_OF_A_ROUND);
    let (masters, slaves) = kills;
    let crashes = format!("{masters} kills of the master, {slaves} of slaves");
    figure("tasks through crashes", format!("{counts:?}, {tried_again} tried again, {crashes}"), "");
}

#[test]
fn no_task_is_lost_or_runs_twice_while_the_network_fails() {
    let seed = seed();
    println!("seed {seed}: SEED={seed} chooses the same moments once more");
    let mut random = fastrand::Rng::with_seed(seed);
    let network = Network::new();
    let cluster = Cluster::at(network.head(), Network::HEAD, IMPATIENT);
    let slaves = (1..=2).map(|number| cluster.slave_at(&network.node(), &format!("pi-{number}"))).collect();
    let work = Work { slaves, cluster };
    ["pi-1", "pi-2"].iter().for_each(|id| work.cluster.wait_until_online(id));
    let folder = work.cluster.slave_folder("files");
    std::fs::create_dir(&folder).unwrap();
    let faults = [Network::cut, Network::deafen_head, Network::lose_a_third, Network::reset];
    let mut jobs = Vec::new();
    for round in 0..(rounds() / 2).max(4) {
        let submitted = run(map(&work, "all", &folder, round, false));
        assert_eq!(submitted.code, Some(0), "{}", submitted.err);
        jobs.push(submitted.out.trim().parse::<u64>().unwrap());
        thread::sleep(CALM_MAX.mul_f64(random.f64()));
        let fault = faults[round as usize % faults.len()](&network);
        thread::sleep(FAULT_MAX.mul_f64(random.f64()));
        drop(fault);
    }
    for job in jobs {
        wait_until(&format!("job {job} has ended"), || work.job(job)["state"] != "active");
        for task in tasks(&work, job) {
            assert_eq!(task["state"], "succeeded", "nobody died: {task}");
            check(&task, &folder, false);
        }
    }
}

/// Disks fill up while tasks run: the master's, then a slave's. Both go on when there is room again, killed meanwhile or not.
#[test]
fn no_task_is_lost_or_runs_twice_while_disks_are_full() {
    let _alone = heavy();
    let mut work = Work::start(SLAVES, &format!("[slave]\nslots = {SLOTS}\n"));
    let folder = work.cluster.slave_folder("files");
    std::fs::create_dir(&folder).unwrap();
    work.cluster.master.kill();
    let masters_disk = SmallDisk::under(&work.cluster.master_folder());
    work.cluster.restart();
    work.slaves[0].kill();
    let slaves_disk = SmallDisk::under(&work.cluster.slave_folder("pi-1"));
    work.slaves[0] = work.cluster.online_slave("pi-1");
    let (mut seen, mut jobs, mut elsewhere) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut kills, mut lost) = (0, 0);
    let rounds = (rounds() / 2).max(4);
    let mut more = rounds..;
    for round in 0..rounds {
        // One slave alone writes more than what its journal has room for in any case.
        let on = if round % 2 == 0 { "all" } else { "pi-1" };
        let submitted = run(map(&work, on, &folder, round, false));
        assert_eq!(submitted.code, Some(0), "{}", submitted.err);
        jobs.push(submitted.out.trim().parse::<u64>().unwrap());
        let is_killed = round % 4 >= 2;
        if round % 2 == 0 {
            masters_disk.fill();
            let mut waiting = loop {
                let mut map = Process::start("map", map(&work, "all", &folder, more.next().unwrap(), false));
                let is_refused = |map: &Process| map.err().iter().any(|line| line.contains("cannot be written"));
                wait_until("it is accepted or refused", || is_refused(&map) || map.exit_status().is_some());
                if map.exit_status().is_none() {
                    break map;
                }
                // There was room in what the store had already.
                jobs.push(map.wait_for_exit().out.trim().parse().unwrap());
            };
            if is_killed {
                work.cluster.master.kill();
                work.cluster.restart();
            }
            masters_disk.free();
            let submitted = waiting.wait_for_exit();
            assert_eq!(submitted.code, Some(0), "it is accepted when there is room: {}", submitted.err);
            jobs.push(submitted.out.trim().parse().unwrap());
        } else {
            slaves_disk.fill();
            wait_until("the slave says that it cannot write", || can_write(&work.slaves[0]) == Some(false));
            // The others go on. After the first of these, what had begun before has written its line.
            let mut begun_after = || {
                let job = work.detached(&["run", "--on", "pi-2", "--detach", "--", "sleep", "0.3"]);
                wait_until("the others go on", || work.job(job)["state"] == "succeeded");
                elsewhere.push(job);
                files(&folder, round)
            };
            let begun = begun_after();
            assert_eq!(begun_after(), begun, "what cannot be journalled does not begin");
            if is_killed {
                kills += 1;
                work.slaves[0].kill();
                work.slaves[0] = work.cluster.slave("pi-1");
            }
            slaves_disk.free();
            wait_until("the slave can write again", || can_write(&work.slaves[0]) != Some(false));
        }
        jobs.iter().for_each(|job| notice(&work, *job, &mut seen));
    }
    assert_eq!(listed(&work), jobs.iter().chain(&elsewhere).copied().collect(), "the accepted jobs, each once");
    for job in jobs {
        // In a full run the jobs for one slave take minutes together.
        while work.job(job)["state"] == "active" {
            let before = work.job(job)["counts"].clone();
            wait_until(&format!("job {job} goes on"), || work.job(job)["counts"] != before);
        }
        for task in tasks(&work, job) {
            let is_lost = task["state"] == "lost";
            assert!(!is_lost || task["slave"] == "pi-1", "only this slave was killed: {task}");
            lost += u32::from(is_lost);
            check(&task, &folder, false);
        }
        notice(&work, job, &mut seen);
    }
    assert!(lost <= SLOTS * kills, "{lost} lost by {kills} kills of a slave with {SLOTS} slots");
}

/// A job whose tasks append their attempt's number to files of their own.
fn map(work: &Work, on: &str, folder: &Path, round: u32, is_idempotent: bool) -> Command {
    let inputs: Vec<String> = (0..TASKS_OF_A_ROUND).map(|number| format!("{round}-{number}")).collect();
    let script = format!("echo $RPICLUSTER_ATTEMPT >> {}/$1; sleep 0.3", folder.display());
    let mut arguments = vec!["map", "--on", on, "--detach"];
    if is_idempotent {
        arguments.extend(["--idempotent", "--retries", "100"]);
    }
    arguments.extend(["--", "sh", "-c", &script, "sh", "{}", ":::"]);
    arguments.extend(inputs.iter().map(String::as_str));
    work.command(&arguments)
}

/// How many tasks of a round have begun.
fn files(folder: &Path, round: u32) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(&format!("{round}-"))).count()
}

/// What a slave has last said of its journal.
fn can_write(slave: &Process) -> Option<bool> {
    let lines = slave.err();
    let last = lines.iter().rev().find(|line| line.contains("the journal of tasks can"))?;
    Some(last.contains("can be written again"))
}

/// The numbers of all jobs.
fn listed(work: &Work) -> BTreeSet<u64> {
    let jobs = work.cluster.get("/api/v1/jobs?limit=1000");
    jobs.as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap()).collect()
}

fn tasks(work: &Work, job: u64) -> Vec<Value> {
    let page = work.cluster.get(&format!("/api/v1/jobs/{job}/tasks?limit={TASKS_OF_A_ROUND}"));
    page["tasks"].as_array().unwrap().clone()
}

/// What the master has once shown as succeeded stays so.
fn notice(work: &Work, job: u64, seen: &mut BTreeMap<String, Value>) {
    for task in tasks(work, job) {
        let end = json!([task["state"], task["attempt"], task["ended"]]);
        let name = task["task"].as_str().unwrap();
        if let Some(before) = seen.get(name) {
            assert_eq!(*before, end, "{name} had succeeded");
        }
        if task["state"] == "succeeded" {
            seen.insert(name.to_owned(), end);
        }
    }
}

/// At most one line of each attempt, exactly one of the one that succeeded, and none of a slave that was not asked.
fn check(task: &Value, folder: &Path, is_idempotent: bool) {
    let written = lines(&folder.join(task["input"].as_str().unwrap()));
    // TASK-ATTEMPT-EPOCH
    let attempts: BTreeSet<u64> = written.iter().map(|line| line.split('-').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(attempts.len(), written.len(), "an attempt ran twice: {task} {written:?}");
    let last = task["attempt"].as_u64().unwrap();
    assert!(attempts.iter().all(|attempt| (1..=last).contains(attempt)), "{task} {written:?}");
    match task["state"].as_str().unwrap() {
        "succeeded" => assert!(attempts.contains(&last), "it never ran: {task} {written:?}"),
        "lost" => assert!(!is_idempotent, "{task}"),
        // Its shell may have been told to end with its agent.
        other => panic!("{other} is no end for it: {task} {written:?}"),
    }
}
