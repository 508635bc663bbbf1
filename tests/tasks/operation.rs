use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::{Work, lines};
use crate::harness::{Cluster, Finished, Place, Process, descendants, is_running, rpicluster, wait_for, wait_until};

/// What `run` on one slave comes to, from a job's number to its end.
fn assert_ends(finished: &Finished, code: i32, words: &str) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    assert!(finished.err.contains(words), "{words:?} is not in {}", finished.err);
}

#[test]
fn a_reboot_is_refused_by_default_with_the_name_of_the_rule() {
    let work = Work::start(1, "");
    let refused = work.call(&["reboot", "--on", "pi-1"]);
    assert_ends(&refused, 126, "pi-1: slave.tasks.allow_actions does not hold \"reboot\"");
    assert_ends(&work.call(&["ping", "--on", "pi-1"]), 0, "1 task: 1 ok");
}

#[test]
fn a_drained_slave_begins_nothing_and_its_work_waits_until_it_is_undrained() {
    let work = Work::start(2, "");
    let drained = work.call(&["slaves", "drain", "pi-2", "--reason", "new fan"]);
    assert_eq!(drained.code, Some(0), "{}", drained.err);
    let shared =
        work.call(&["map", "--on", "all", "--", "sh", "-c", "echo $RPICLUSTER_SLAVE", ":::", "a", "b", "c", "d"]);
    assert_eq!((shared.code, shared.out.as_str()), (Some(0), "pi-1\npi-1\npi-1\npi-1\n"), "{}", shared.err);

    let mut waiting = Process::start("run", work.command(&["run", "--on", "pi-2", "--", "echo", "at last"]));
    wait_until("it is told that it waits", || waiting.err().join("\n").contains("undrain ID\": pi-2"));
    assert_eq!(work.task(2)["state"], "queued");
    assert_eq!(work.call(&["slaves", "undrain", "pi-2"]).code, Some(0));
    let finished = waiting.wait_for_exit();
    assert_eq!((finished.code, finished.out.as_str()), (Some(0), "pi-2: at last\n"), "{}", finished.err);
}

#[test]
fn what_failed_is_tried_again_when_told_and_what_succeeded_is_not() {
    let work = Work::start(1, "");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let script = format!("cd {}; echo $1 >> began; test -e $1", folder.path().display());
    std::fs::write(file("a"), "").unwrap();
    let first = work.call(&["map", "--on", "all", "--", "sh", "-c", &script, "sh", "{}", ":::", "a", "b"]);
    assert_ends(&first, 1, "2 tasks: 1 ok, 1 failed");
    std::fs::write(file("b"), "").unwrap();
    let again = work.call(&["retry", "1"]);
    assert_eq!(again.code, Some(0), "{}", again.err);
    work.wait_until_job_is(1, "succeeded");
    let mut began = lines(&file("began"));
    began.sort();
    assert_eq!(began, ["a", "b", "b"]);
}

#[test]
fn a_master_that_is_killed_and_comes_back_does_not_disturb_a_run() {
    let mut work = Work::start(3, "");
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let script = format!("echo before; while ! [ -e {} ]; do sleep 0.05; done; echo after", go.display());
    let mut run = Process::start("run", work.command(&["run", "--on", "all", "--", "sh", "-c", &script]));
    wait_until("all have begun", || run.out().len() == 3);
    work.cluster.master.kill();
    // What ends meanwhile is told afterwards.
    std::fs::write(&go, "").unwrap();
    wait_until("the command notices", || run.err().iter().any(|line| line.contains("waiting for the master")));
    work.cluster.restart();
    let finished = run.wait_for_exit();
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    assert!(finished.err.ends_with("job 1: 3 tasks: 3 ok\n"), "{}", finished.err);
    let said: BTreeSet<&str> = finished.out.lines().collect();
    let wanted = ["pi-1: after", "pi-1: before", "pi-2: after", "pi-2: before", "pi-3: after", "pi-3: before"];
    assert_eq!((said, finished.out.lines().count()), (BTreeSet::from(wanted), 6), "each line once");
}

#[test]
fn the_tasks_of_an_agent_that_is_killed_end_with_it_and_are_lost_or_tried_again() {
    let mut work = Work::start(1, "");
    let lost = work.detached(&["run", "--on", "pi-1", "--detach", "--", "sleep", "1000"]);
    let tried =
        work.detached(&["run", "--on", "pi-1", "--detach", "--idempotent", "--retries", "1", "--", "sleep", "1000"]);
    for job in [lost, tried] {
        work.wait_until_task_is(job, "running");
    }
    let family = descendants(work.slaves[0].pid());
    work.slaves[0].kill();
    wait_until("its tasks have ended too", || !family.iter().any(|process| is_running(*process)));
    wait_for("nobody knows", || (work.task(lost)["state"] == "unknown").then_some(()));
    work.slaves[0] = work.cluster.slave("pi-1");
    let followed = work.call(&["logs", &lost.to_string(), "-f"]);
    assert_eq!(work.task(lost)["state"], "lost", "{followed:?}");
    wait_until("the other is tried again", || {
        let task = work.task(tried);
        task["state"] == "running" && task["attempt"] == 2
    });
}

#[test]
fn a_job_for_a_slave_that_never_returns_waits_as_long_as_it_is_told() {
    let mut work = Work::start(1, "");
    work.slaves[0].kill();
    wait_until("it is offline", || !work.cluster.is_online("pi-1"));
    assert_ends(&work.call(&["run", "--on", "pi-1", "--", "true"]), 127, "pi-1: offline");
    let began = std::time::Instant::now();
    assert_ends(&work.call(&["run", "--on", "pi-1", "--wait", "1s", "--", "true"]), 127, "1 task: 1 offline");
    assert!(began.elapsed() >= Duration::from_secs(1), "it was waited for");
    let waits = work.detached(&["run", "--on", "pi-1", "--wait", "1h", "--detach", "--", "true"]);
    assert_eq!(work.task(waits)["state"], "queued");
    assert_eq!(work.call(&["cancel", &waits.to_string()]).code, Some(0));
    work.wait_until_job_is(waits, "canceled");
}

/// A queue, then a script on the same slaves, then something that fails, and what never begins for that reason.
const STEPS: &str = r#"
[[steps]]
name = "convert"
on = "role=worker"
run = ["echo", "{}", "{#}.png"]
inputs = ["a.tif", "b.tif"]

[[steps]]
name = "greet"
on = "role=worker"
after = ["convert"]
interpreter = ["/bin/sh", "-eu"]
script = "read -r greeting; echo $greeting from $RPICLUSTER_SLAVE, $1"
arguments = ["weekly"]
stdin = "hello\n"

[[steps]]
name = "fail"
on = "all"
after = ["greet"]
run = ["sh", "-c", "exit 5"]

[[steps]]
on = "all"
after = ["fail"]
action = "ping"
"#;

#[test]
fn a_job_of_several_steps_runs_in_their_order_on_a_slave_whose_folder_is_named_from_where_it_started() {
    let cluster = Cluster::start();
    let token = cluster.change("POST", "/api/v1/tokens", Some(&json!({})))["token"].as_str().unwrap().to_owned();
    let mut slave = rpicluster(&Place::Here);
    slave.args(["slave", "--id", "pi-1", "--state-dir", "here", "--stop-on-stdin-close", "--master"]);
    slave.arg(cluster.mqtts.to_string()).env("RPICLUSTER_TOKEN", token).current_dir(cluster.slave_folder("."));
    let work = Work { slaves: vec![Process::start("pi-1", slave)], cluster };
    work.cluster.wait_until_online("pi-1");
    assert_eq!(work.call(&["slaves", "label", "pi-1", "role=worker"]).code, Some(0));
    let file = work.cluster.slave_folder("job.toml");
    std::fs::write(&file, STEPS).unwrap();
    let finished = work.call(&["submit", file.to_str().unwrap(), "--follow"]);
    assert_ends(&finished, 5, "job 1: 5 tasks: 3 ok, 1 failed, 1 canceled\n");
    let mut lines: Vec<&str> = finished.out.lines().collect();
    assert_eq!(lines.pop(), Some("1.2 pi-1: hello from pi-1, weekly"), "last: {}", finished.out);
    lines.sort_unstable();
    assert_eq!(lines, ["1.0 pi-1: a.tif 1.png", "1.1 pi-1: b.tif 2.png"]);
}

#[test]
fn a_map_in_order_shows_each_result_once_while_master_and_slave_are_killed() {
    let mut work = Work::start(2, "");
    let list = work.cluster.slave_folder("list");
    let inputs: String = (1..=150).map(|number| format!("{number}\n")).collect();
    std::fs::write(&list, &inputs).unwrap();
    let mut arguments = vec!["map", "--on", "all", "--keep-order", "--idempotent", "--retries", "9"];
    arguments.extend(["-a", list.to_str().unwrap(), "--", "sh", "-c", "echo $1; sleep 0.05", "sh", "{}"]);
    let mut map = Process::start("map", work.command(&arguments));
    wait_until("some have ended", || map.out().len() >= 20);
    work.cluster.master.kill();
    work.cluster.restart();
    wait_until("more have ended", || map.out().len() >= 40);
    work.slaves[1].kill();
    work.slaves[1] = work.cluster.slave("pi-2");
    let finished = map.wait_for_exit();
    assert_eq!((finished.code, &finished.out), (Some(0), &inputs), "{}", finished.err);
}
