mod bench;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{descendants, is_running, wait_until};
use bench::{Bench, noted_pid, spawn};

#[test]
fn what_a_command_writes_and_how_it_ends_is_told_byte_for_byte() {
    let mut bench = Bench::start("");
    bench.shell(1, "printf 'out\\377\\000'; printf err >&2; exit 7");
    let end = bench.end(1);
    assert_eq!((end.out.as_slice(), end.err.as_slice()), (&b"out\xff\0"[..], &b"err"[..]));
    assert_eq!((end.outcome(), &end.event["exit_code"]), ("failed", &json!(7)));
    assert_eq!(end.event["seq"], 2);
    bench.offer(2, json!({ "kind": "exec", "argv": ["cat"], "stdin": "hello" }));
    let end = bench.end(2);
    assert_eq!((end.out(), end.outcome()), ("hello", "succeeded"));
    bench.shell(3, "kill -9 $$");
    let end = bench.end(3);
    assert_eq!((end.outcome(), &end.event["signal"]), ("failed", &json!(9)));
    bench.offer(
        4,
        json!({ "kind": "script", "interpreter": ["sh", "-e"], "script": "echo $1 $#", "arguments": ["a b"] }),
    );
    assert_eq!(bench.end(4).out(), "a b 1\n");
}

#[test]
fn the_environment_is_clean_and_the_folder_is_its_own_and_gone_afterwards() {
    let mut bench = Bench::start("");
    let work = json!({ "kind": "exec", "argv": ["sh", "-c", "env | sort; touch x; pwd"], "env": { "LANG": "C", "MINE": "1" } });
    bench.offer(1, work);
    let end = bench.end(1);
    let lines: Vec<&str> = end.out().lines().collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let own = ["RPICLUSTER_AGENT", "RPICLUSTER_ATTEMPT", "RPICLUSTER_JOB", "RPICLUSTER_SLAVE", "RPICLUSTER_TASK"];
    assert_eq!(names, [&["HOME", "LANG", "MINE", "PATH", "PWD"][..], &own, &["USER"]].concat());
    assert!(lines.contains(&"LANG=C") && lines.contains(&"RPICLUSTER_TASK=1.1"));
    assert!(!Path::new(lines.last().unwrap()).exists());
}

#[test]
fn what_cannot_begin_fails_as_in_a_shell_and_says_why() {
    let mut bench = Bench::start("allow_users = [\"*\"]");
    let folder = bench.file("state").display().to_string();
    for (index, work, code, reason) in [
        (1, json!({ "kind": "exec", "argv": ["nonesuch"] }), 127, "command not found"),
        (2, json!({ "kind": "exec", "argv": [folder] }), 126, "is not executable"),
        (3, json!({ "kind": "exec", "argv": ["/nonesuch"] }), 127, "command not found"),
        (4, json!({ "kind": "exec", "argv": ["true"], "cwd": "/nonesuch" }), 126, "cwd /nonesuch"),
        (5, json!({ "kind": "exec", "argv": ["true"], "run_as": "nobody-here" }), 126, "no user \"nobody-here\""),
        (6, json!({ "kind": "exec", "argv": ["true"], "env": { "A=B": "" } }), 126, "env \"A=B\""),
    ] {
        bench.offer(index, work);
        let end = bench.end(index);
        assert_eq!((end.outcome(), &end.event["exit_code"]), ("failed", &json!(code)));
        assert!(end.event["reason"].as_str().unwrap().contains(reason), "{}", end.event);
    }
}

#[test]
fn what_the_policy_does_not_hold_is_refused_by_the_rules_name() {
    let mut bench = Bench::start(
        "allow_kinds = [\"exec\", \"action\", \"function\"]\nallow_commands = [\"echo\", \"/usr/bin/un*\"]\nallow_functions = [\"a*\"]",
    );
    for (index, work, reason, detail) in [
        (1, json!({ "kind": "script", "interpreter": ["sh"], "script": "" }), "policy", "allow_kinds"),
        (2, json!({ "kind": "exec", "argv": ["true"] }), "policy", "allow_commands"),
        (3, json!({ "kind": "exec", "argv": ["/usr/bin/../bin/true"] }), "policy", "allow_commands"),
        (4, json!({ "kind": "exec", "argv": ["echo"], "env": { "PATH": "/tmp" } }), "policy", "allow_commands"),
        (5, json!({ "kind": "exec", "argv": ["echo"], "run_as": "nobody" }), "policy", "allow_users"),
        (6, json!({ "kind": "action", "action": "reboot" }), "policy", "allow_actions"),
        (7, json!({ "kind": "function", "function": "b" }), "policy", "allow_functions"),
        (8, json!({ "kind": "function", "function": "a" }), "unknown_function", "functions.d"),
        (9, json!({ "kind": "exec", "argv": [] }), "unsupported", "argv"),
    ] {
        bench.offer(index, work);
        let rejected = bench.event("task_rejected", index);
        assert_eq!(rejected["reason"], reason, "{rejected}");
        assert!(rejected["detail"].as_str().unwrap().contains(detail), "{rejected}");
    }
    bench.offer(10, json!({ "kind": "exec", "argv": ["echo", "hi"] }));
    assert_eq!(bench.end(10).out(), "hi\n");
    bench.offer(11, json!({ "kind": "exec", "argv": ["/usr/bin/uname"] }));
    assert_eq!(bench.end(11).out(), "Linux\n");
}

#[test]
fn actions_are_answered_by_the_agent_itself() {
    let mut bench = Bench::start("");
    for (index, action) in [(1, "ping"), (2, "time"), (3, "revision"), (4, "details")] {
        bench.offer(index, json!({ "kind": "action", "action": action }));
        let end = bench.end(index);
        assert_eq!((end.outcome(), &end.event["seq"]), ("succeeded", &json!(1)));
        match action {
            "ping" => assert_eq!(end.event["result"], "pong"),
            "time" => assert!(end.event["result"]["unix_ms"].is_u64()),
            "revision" => assert_eq!(end.event["result"], env!("CARGO_PKG_VERSION")),
            _ => assert!(end.event["result"]["cpu_cores"].is_u64(), "{}", end.event),
        }
    }
}

#[test]
fn a_container_is_not_booted() {
    if Path::new("/run/systemd/system").exists() {
        // A machine of its own, and one that others need: nothing here may boot it.
        return;
    }
    let mut bench = Bench::start("allow_actions = [\"reboot\", \"shutdown\"]");
    for (index, action) in [(1, "reboot"), (2, "shutdown")] {
        bench.offer(index, json!({ "kind": "action", "action": action }));
        let rejected = bench.event("task_rejected", index);
        assert_eq!(rejected["reason"], "unsupported", "{rejected}");
    }
}

#[test]
fn a_repeated_offer_never_runs_twice_not_even_after_kill_9() {
    let mut bench = Bench::start("");
    let lines = bench.file("lines");
    let script = format!("echo run >> {}", lines.display());
    bench.shell(1, &script);
    bench.shell(1, &script);
    bench.event("task_finished", 1);
    bench.shell(1, &script);
    bench.event("task_finished", 1);
    let journal = bench.kill_and_restart();
    assert_eq!((&journal[0]["event"], &journal[0]["outcome"]), (&json!("finished"), &json!("succeeded")));
    bench.shell(1, &script);
    bench.event("task_finished", 1);
    bench.ack(1, 2, 0, 0);
    bench.shell(1, &script);
    bench.shell(2, "true");
    bench.end(2);
    assert_eq!(fs::read_to_string(lines).unwrap(), "run\n");
}

#[test]
fn kill_9_of_the_agent_ends_what_it_ran_and_the_next_one_says_so() {
    let mut bench = Bench::start("kill_grace = \"1s\"");
    let pid_file = bench.file("pid");
    bench.shell(
        1,
        &format!("trap '' TERM; echo before; echo $$ > {}; while true; do sleep 1; done", pid_file.display()),
    );
    let pid = noted_pid(&pid_file);
    bench.event("task_output", 1);
    let journal = bench.kill_and_restart();
    assert!(!is_running(pid), "the task has outlived its agent's next life");
    assert_eq!((&journal[0]["outcome"], &journal[0]["reason"]), (&json!("lost"), &json!("agent crashed")));
    bench.heard.push(("task_finished".to_owned(), journal[0].clone()));
    let end = bench.end(1);
    assert_eq!(end.out(), "before\n");
}

#[test]
fn kill_9_of_the_supervisor_loses_what_it_ran_and_nothing_else() {
    let mut bench = Bench::start("");
    let pid_file = bench.file("pid");
    bench.shell(1, &format!("setsid sh -c 'echo $$ > {}; exec sleep 600' & sleep 600", pid_file.display()));
    let pid = noted_pid(&pid_file);
    let supervisor = descendants(bench.slave.pid())[0];
    rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor as i32).unwrap(), Signal::KILL).unwrap();
    let end = bench.end(1);
    assert_eq!((end.outcome(), &end.event["reason"]), ("lost", &json!("supervisor crashed")));
    assert!(!is_running(pid));
    bench.shell(2, "echo on");
    assert_eq!(bench.end(2).out(), "on\n");
}

#[test]
fn a_cancel_ends_the_whole_tree_also_what_was_forked_twice_into_a_session_of_its_own() {
    let mut bench = Bench::start("kill_grace = \"1s\"");
    let files = [bench.file("plain"), bench.file("detached"), bench.file("deaf")];
    let [plain, detached, deaf] = files.each_ref().map(|file| file.display());
    bench.shell(
        1,
        &format!(
            "(setsid sh -c 'setsid sh -c \"echo \\$\\$ > {detached}; exec sleep 600\" & exit' &)
         (trap '' TERM; sh -c 'echo $PPID > {deaf}'; while true; do sleep 1; done) &
         echo $$ > {plain}; wait; sleep 600"
        ),
    );
    let pids = files.map(|file| noted_pid(&file));
    bench.cancel(1);
    let end = bench.end(1);
    assert_eq!(end.outcome(), "canceled");
    assert_eq!(pids.map(is_running), [false; 3]);
}

#[test]
fn what_a_task_leaves_behind_when_it_ends_is_ended_too() {
    let mut bench = Bench::start("kill_grace = \"1s\"");
    let file = bench.file("pid");
    bench.shell(
        1,
        &format!("setsid sh -c 'echo $$ > {}; exec sleep 600' & while ! [ -s {0} ]; do :; done", file.display()),
    );
    let end = bench.end(1);
    assert_eq!(end.outcome(), "succeeded");
    assert!(!is_running(noted_pid(&file)));
}

#[test]
fn a_timeout_and_the_end_of_a_lease_kill_also_who_ignores_sigterm() {
    let mut bench = Bench::start("kill_grace = \"200ms\"");
    let deaf = json!({ "kind": "exec", "argv": ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"], "timeout_ms": 300 });
    bench.offer(1, deaf);
    let end = bench.end(1);
    assert_eq!((end.outcome(), &end.event["signal"]), ("timed_out", &json!(9)));
    let mut short = bench.an_offer(2, json!({ "kind": "exec", "argv": ["sleep", "600"] }));
    short["lease_ms"] = json!(500);
    bench.tell("task_offer", short);
    let end = bench.end(2);
    assert_eq!((end.outcome(), &end.event["reason"]), ("lost", &json!("lease over")));
}

#[test]
fn output_beyond_the_limit_is_cut_and_makes_nobody_wait() {
    let mut bench = Bench::start("");
    let work = json!({ "kind": "exec", "argv": ["head", "-c", "200000000", "/dev/zero"], "output_limit": 100_000 });
    bench.offer(1, work);
    let end = bench.end(1);
    assert_eq!((end.outcome(), &end.event["truncated"], end.out.len()), ("succeeded", &json!(true), 100_000));
    let supervisor = descendants(bench.slave.pid())[0];
    let status = fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn a_long_output_arrives_whole() {
    let mut bench = Bench::start("");
    bench.shell(1, "seq 1 300000");
    let expected: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    let end = bench.end(1);
    assert!(end.out() == expected, "{} bytes of {}", end.out.len(), expected.len());
}

#[test]
fn a_damaged_journal_is_set_aside_and_a_torn_one_read() {
    let mut bench = Bench::start("");
    bench.shell(1, "true");
    bench.event("task_finished", 1);
    bench.slave.kill();
    let path = bench.file("state/tasks/journal");
    let good = fs::read(&path).unwrap();
    fs::write(&path, [&good[..], b"0000 torn"].concat()).unwrap();
    bench.slave = spawn(bench.folder.path());
    bench.heard.clear();
    assert_eq!(bench.greet().len(), 1);
    bench.slave.kill();
    let mut bad = fs::read(&path).unwrap();
    bad[2] ^= 1;
    fs::write(&path, bad).unwrap();
    bench.slave = spawn(bench.folder.path());
    bench.heard.clear();
    assert!(bench.greet().is_empty());
    assert!(bench.file("state/tasks/journal.damaged").exists());
}

#[test]
fn another_epoch_ends_and_forgets_what_was_of_the_old_one() {
    let mut bench = Bench::start("");
    let file = bench.file("pid");
    bench.shell(1, &format!("echo $$ > {}; exec sleep 600", file.display()));
    let pid = noted_pid(&file);
    let mut new = bench.an_offer(2, json!({ "kind": "exec", "argv": ["true"] }));
    new["epoch"] = json!("00000000000000aa");
    bench.tell("task_offer", new);
    wait_until("the old attempt ends", || !is_running(pid));
    bench.event("task_finished", 2);
    assert!(bench.kill_and_restart().iter().all(|attempt| attempt["task"] != "1.1"));
}

#[test]
fn a_canceled_attempt_does_not_begin_when_its_offer_comes_late() {
    let mut bench = Bench::start("");
    bench.cancel(1);
    assert_eq!(bench.event("task_finished", 1)["outcome"], "canceled");
    let file = bench.file("ran");
    bench.shell(1, &format!("touch {}", file.display()));
    assert_eq!(bench.event("task_finished", 1)["outcome"], "canceled");
    let stale = {
        let mut offer = bench.an_offer(2, json!({ "kind": "exec", "argv": ["true"] }));
        offer["session"] = json!("of-before");
        offer
    };
    bench.tell("task_offer", stale);
    assert_eq!(bench.event("task_rejected", 2)["reason"], "stale");
    assert!(!file.exists());
}

#[test]
fn a_task_runs_as_another_user_with_its_groups_if_the_policy_allows_it() {
    let mut bench = Bench::start("allow_users = [\"nobody\"]");
    let work =
        json!({ "kind": "exec", "argv": ["sh", "-c", "id -un; id -u; echo $HOME; touch x && ls"], "run_as": "nobody" });
    bench.offer(1, work);
    if rustix::process::geteuid().is_root() {
        let end = bench.end(1);
        assert_eq!(end.out(), "nobody\n65534\n/nonexistent\nx\n", "{}", end.event);
    } else {
        assert_eq!(bench.end(1).event["exit_code"], 126);
    }
}

fn examples() -> String {
    format!("functions_dir = {:?}", concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/functions.d"))
}

#[test]
fn the_examples_of_functions_work() {
    let mut bench =
        Bench::start(&format!("{}\nfunctions = {{ word-count = {{ persistent = true, workers = 1 }} }}", examples()));
    for index in 1..20 {
        bench.offer(
            index,
            json!({ "kind": "function", "function": "word-count", "input": { "text": "a b ".repeat(index as usize) } }),
        );
        let end = bench.end(index);
        assert_eq!((end.outcome(), &end.event["result"]["words"]), ("succeeded", &json!(2 * index)), "{}", end.event);
    }
    assert_eq!(descendants(bench.slave.pid()).len(), 2, "one supervisor and one worker");
    bench.offer(20, json!({ "kind": "function", "function": "disk-free", "input": "/" }));
    let end = bench.end(20);
    assert!(end.event["result"]["free_kib"].is_u64() && end.out.is_empty(), "{}", end.event);
    bench.offer(21, json!({ "kind": "function", "function": "word-count", "input": 7 }));
    let end = bench.end(21);
    assert_eq!(end.outcome(), "failed");
    assert!(end.event["reason"].as_str().unwrap().contains("without an answer (exit code 1)"), "{}", end.event);
    assert!(String::from_utf8_lossy(&end.err).contains("TypeError"));
    bench.offer(22, json!({ "kind": "function", "function": "word-count", "input": { "text": "again" } }));
    assert_eq!(bench.end(22).event["result"]["words"], 1);
}

#[test]
fn a_worker_is_ended_with_a_task_that_is_canceled_and_who_waits_gets_another() {
    let mut bench = Bench::start("kill_grace = \"1s\"");
    let functions = bench.file("functions.d");
    fs::create_dir(&functions).unwrap();
    let script = "#!/bin/sh\nwhile read -r line; do id=${line#*\\\"id\\\":\\\"}; id=${id%%\\\"*}; echo begun; case $line in *sleep*) sleep 600;; esac; \
        echo \"{\\\"id\\\":\\\"$id\\\",\\\"event\\\":$$}\"; echo \"{\\\"id\\\":\\\"$id\\\",\\\"result\\\":$$}\"; done\n";
    let path = functions.join("pid");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bench.slave.kill();
    let config = bench.file("rpicluster.toml");
    let text = fs::read_to_string(&config).unwrap();
    let tasks =
        format!("functions_dir = {functions:?}\nfunctions = {{ pid = {{ persistent = true, workers = 1 }} }}\n");
    fs::write(&config, text + &tasks).unwrap();
    bench.slave = spawn(bench.folder.path());
    bench.greet();
    bench.offer(1, json!({ "kind": "function", "function": "pid", "input": "quick" }));
    let first = bench.end(1);
    assert_eq!(first.out(), format!("begun\n{}\n", first.event["result"]));
    bench.offer(2, json!({ "kind": "function", "function": "pid", "input": "sleep" }));
    bench.offer(3, json!({ "kind": "function", "function": "pid", "input": "quick" }));
    bench.offer(4, json!({ "kind": "function", "function": "pid", "input": "quick" }));
    bench.event("task_output", 2);
    bench.cancel(4);
    assert_eq!(bench.end(4).outcome(), "canceled");
    bench.cancel(2);
    assert_eq!(bench.end(2).outcome(), "canceled");
    let other = bench.end(3);
    assert_eq!(other.outcome(), "succeeded");
    assert_ne!(other.event["result"], first.event["result"]);
}

#[test]
fn who_drops_its_mark_its_session_and_its_parents_does_not_outlive_the_last_task() {
    let mut bench = Bench::start("");
    let file = bench.file("pid");
    let escape =
        format!("setsid env -i sh -c 'echo $$ > {}; exec sleep 600' & while ! [ -s {0} ]; do :; done", file.display());
    bench.shell(1, &escape);
    let pid = noted_pid(&file);
    assert_eq!(bench.end(1).outcome(), "succeeded");
    wait_until("the escaped process is ended", || !is_running(pid));
}

#[test]
fn agent_and_supervisor_killed_together_leave_nothing_that_the_next_agent_does_not_end() {
    let mut bench = Bench::start("");
    let files = [bench.file("marked"), bench.file("escaped")];
    let [marked, escaped] = files.each_ref().map(|file| file.display());
    bench.shell(1, &format!(
        "setsid env -i sh -c 'echo $$ > {escaped}; exec sleep 600' & setsid sh -c 'echo $$ > {marked}; exec sleep 600' & sleep 600"
    ));
    let [marked, escaped] = files.map(|file| noted_pid(&file));
    bench.event("task_started", 1);
    let supervisor = descendants(bench.slave.pid())[0];
    let in_cgroup = fs::read_to_string(format!("/proc/{supervisor}/cgroup")).unwrap().contains("/rpicluster-");
    bench.slave.signal(Signal::STOP);
    rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor as i32).unwrap(), Signal::KILL).unwrap();
    let journal = bench.kill_and_restart();
    assert_eq!((&journal[0]["outcome"], &journal[0]["reason"]), (&json!("lost"), &json!("agent crashed")));
    assert!(!is_running(marked));
    // Without a mark only the cgroup holds it, where there is one.
    if in_cgroup {
        assert!(!is_running(escaped));
    } else {
        rustix::process::kill_process(rustix::process::Pid::from_raw(escaped as i32).unwrap(), Signal::KILL).unwrap();
    }
}

#[test]
fn whenever_the_agent_is_killed_its_journal_tells_what_ran() {
    let mut bench = Bench::start("");
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..10 {
        let indexes: Vec<u32> = (round * 8..round * 8 + 8).collect();
        let lines: Vec<PathBuf> = indexes.iter().map(|index| bench.file(&format!("lines-{index}"))).collect();
        for (index, file) in indexes.iter().zip(&lines) {
            bench.shell(*index, &format!("echo run >> {}", file.display()));
        }
        for _ in 0..random.u32(0..8) {
            bench.hear();
        }
        let journal = bench.kill_and_restart();
        for (index, file) in indexes.iter().zip(&lines) {
            let ran = fs::read_to_string(file).unwrap_or_default();
            let held = journal.iter().find(|attempt| attempt["task"] == format!("1.{index}").as_str());
            match held.map(|held| (held["event"].as_str().unwrap(), held["outcome"].as_str().unwrap_or_default())) {
                None => assert_eq!(ran, "", "it ran, and the journal does not know"),
                Some(("finished", "succeeded")) => assert_eq!(ran, "run\n"),
                Some(("finished", "lost")) => assert!(ran.is_empty() || ran == "run\n", "{ran}"),
                other => panic!("1.{index}: {other:?}"),
            }
        }
    }
}
