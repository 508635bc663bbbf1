use std::fs;

use super::{Work, whole};
use crate::harness::{is_running, wait_until};

/// What a task may write unless its slave is told otherwise.
const OUTPUT_MAX: usize = 10 * 1024 * 1024;

/// So many inputs at once.
fn inputs() -> u32 {
    match std::env::var("SOAK_INPUTS") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("SOAK_INPUTS={text}: {error}")),
        Err(_) => 5_000,
    }
}

#[test]
fn two_hundred_megabytes_of_output_are_cut_and_the_task_goes_on() {
    let work = Work::start(1, "");
    let script = "head -c 200000000 /dev/zero; echo the end >&2";
    let (out, code, err) = whole(work.command(&["run", "--on", "pi-1", "--", "sh", "-c", script]));
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("pi-1: not all of its output was kept") && err.contains("pi-1: the end"), "{err}");
    // Prefixes, and line feeds where a line is too long.
    assert!((OUTPUT_MAX..OUTPUT_MAX + 10_000).contains(&out.len()), "{}", out.len());
    assert!(work.cluster.master.memory() < 200_000_000);
    assert!(work.slaves[0].memory() < 100_000_000);
    let task = work.task(1);
    assert_eq!((&task["truncated"], &task["exit_code"]), (&true.into(), &0.into()), "{task}");
    let (kept, ..) = whole(work.command(&["logs", "1.0"]));
    assert_eq!(kept.len() as u64, task["stdout"].as_u64().unwrap(), "what was kept is there later too");
}

#[test]
fn binary_output_arrives_byte_for_byte() {
    let work = Work::start(1, "");
    let file = work.cluster.slave_folder("bytes");
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number * 7 + number / 251) as u8).collect();
    fs::write(&file, &bytes).unwrap();
    let job = work.detached(&["run", "--on", "pi-1", "--detach", "--", "cat", file.to_str().unwrap()]);
    work.wait_until_job_is(job, "succeeded");
    let (copy, ..) = whole(work.command(&["logs", &job.to_string(), "--task", "0"]));
    assert!(copy == bytes, "other bytes than were written");
}

#[test]
fn what_a_task_leaves_behind_is_gone_when_it_has_ended() {
    let work = Work::start(1, "");
    let pid = work.cluster.slave_folder("pid");
    let script =
        format!("setsid sh -c 'echo $$ > {0}; exec sleep 1000' & while ! [ -s {0} ]; do :; done", pid.display());
    let finished = work.call(&["run", "--on", "pi-1", "--", "sh", "-c", &script]);
    assert_eq!(finished.code, Some(0), "{}", finished.err);
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    wait_until("the detached process has ended", || !is_running(pid));
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_its_time() {
    let work = Work::start(1, "[slave.tasks]\nkill_grace = \"300ms\"\n");
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let finished = work.call(&["run", "--on", "pi-1", "--timeout", "500ms", "--", "sh", "-c", script]);
    assert_eq!(finished.code, Some(124), "{}", finished.err);
    // Its shell may yet say that it lost a child.
    let end = "rpicluster: pi-1: timed out\njob 1: 1 task: 1 timed out\n  timed out  pi-1\n";
    assert!(finished.err.ends_with(end), "{}", finished.err);
    let job = work.detached(&["run", "--on", "pi-1", "--detach", "--", "sh", "-c", script]);
    wait_until("it has begun", || work.task(job)["stdout"] == 6);
    assert_eq!(work.call(&["cancel", &job.to_string(), "--running"]).code, Some(0));
    work.wait_until_job_is(job, "canceled");
    assert_eq!(work.task(job)["signal"], 9);
}

#[test]
fn what_cannot_begin_says_why() {
    let work = Work::start(1, "[slave.tasks]\nallow_users = [\"*\"]\n");
    for (arguments, code, words) in [
        (&["--on", "pi-1", "--", "nonesuch"][..], 127, "pi-1: exit 127: command not found: \"nonesuch\""),
        (&["--on", "pi-1", "--run-as", "nobody-here", "--", "true"], 126, "no user \"nobody-here\""),
        (&["--on", "pi-1", "--cwd", "/nonesuch", "--", "true"], 126, "cwd /nonesuch"),
        (&["--on", "pi-9", "--", "true"], 127, "no slave has the id \"pi-9\""),
        (&["--on", "role=none", "--", "true"], 127, "no slave matches"),
        (&["--on", "pi-[", "--", "true"], 2, "pi-["),
    ] {
        let finished = work.call(&[&["run"], arguments].concat());
        assert_eq!(finished.code, Some(code), "{arguments:?}: {}", finished.err);
        assert!(finished.err.contains(words), "{arguments:?}: {}", finished.err);
    }
    let killed = work.call(&["run", "--on", "pi-1", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.code, Some(137), "{}", killed.err);
}

#[test]
fn no_inputs_are_nothing_to_do() {
    let work = Work::start(1, "");
    let finished = work.call(&["map", "--on", "all", "--", "true"]);
    assert_eq!((finished.code, finished.out.as_str()), (Some(0), ""));
    assert_eq!(finished.err, "rpicluster: there are no inputs: nothing to do\n");
}

#[test]
fn thousands_of_inputs_each_have_one_result_in_their_order() {
    let work = Work::start(2, "[slave]\nslots = 8\n");
    let count = inputs();
    let list = work.cluster.slave_folder("list");
    fs::write(&list, (1..=count).map(|number| format!("{number}\n")).collect::<String>()).unwrap();
    let arguments = ["map", "--on", "all", "--keep-order", "-a", list.to_str().unwrap(), "--", "echo"];
    let (out, code, err) = whole(work.command(&arguments));
    assert_eq!(code, Some(0), "{err}");
    let out = String::from_utf8(out).unwrap();
    assert!(out.lines().eq((1..=count).map(|number| number.to_string())), "one line for each, in order");
    assert!(err.ends_with(&format!("job 1: {count} tasks: {count} ok\n")), "{err}");
}
