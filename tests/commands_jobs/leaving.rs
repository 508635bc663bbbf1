use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::json;

use super::{accepted, answer, command, job, master, output, task};
use crate::harness::fake_master::{FakeMaster, Reply};
use crate::harness::{Finished, Process, interruptible, run, wait_until};

/// A job that runs until it is canceled.
fn endless() -> FakeMaster {
    let canceled = Arc::new(AtomicBool::new(false));
    FakeMaster::start(move |asked| match asked.line.as_str() {
        "POST /api/v1/jobs/17/cancel" => {
            canceled.store(true, Ordering::SeqCst);
            Reply::json(200, &job("active", 1))
        }
        _ => answer(asked, &accepted(&["pi-1"]), || {
            let canceled = Arc::clone(&canceled);
            let begin = vec![job("active", 1), task(0, "pi-1", "running"), output(0, "stdout", 0, "begun\n")];
            Reply::EventsThen(
                begin,
                Box::new(move |events| {
                    wait_until("the job is canceled", || canceled.load(Ordering::SeqCst));
                    events.send(&task(0, "pi-1", "canceled"));
                    events.send(&job("canceled", 1));
                    events.wait_for_end();
                }),
            )
        }),
    })
}

#[test]
fn without_a_terminal_ctrl_c_leaves_the_job_to_itself_and_says_how_to_end_it() {
    for signal in [Signal::INT, Signal::TERM] {
        let master = endless();
        let mut process = Process::start("run", command(&master, &["run", "--on", "all", "--", "cmd"]));
        process.wait_for_line("pi-1: begun");
        process.signal(signal);
        let Finished { code, err, .. } = process.wait_for_exit();
        assert_eq!(code, Some(130), "{err}");
        assert!(err.contains("rpicluster cancel 17") && err.contains("rpicluster logs 17 -f"), "{err}");
        assert!(!master.asked().iter().any(|asked| asked.line.contains("cancel")));
    }
}

/// Runs `rpicluster` on a terminal of its own, presses these keys once a task has begun, and returns all that is shown.
fn on_a_terminal(master: &FakeMaster, environment: &str, arguments: &str, keys: &[&str]) -> Finished {
    let mut command = Command::new("script");
    let program = env!("CARGO_BIN_EXE_rpicluster");
    command.args(["--quiet", "--return", "--command", &format!("{environment} {program} {arguments}"), "/dev/null"]);
    command
        .env("RPICLUSTER_URL", master.url())
        .env("RPICLUSTER_API_TOKEN", "secret")
        .env("SHELL", "/bin/sh")
        .env("TERM", "linux")
        .env("TERM", "linux");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let shown: Arc<Mutex<Vec<u8>>> = Arc::default();
    let reader = {
        let (shown, mut out) = (Arc::clone(&shown), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Some(size) = out.read(&mut bytes).ok().filter(|size| *size > 0) {
                shown.lock().unwrap().extend_from_slice(&bytes[..size]);
            }
        })
    };
    let text = || String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
    wait_until("the task has begun", || text().contains("begun") || text().contains("1 running"));
    for key in keys {
        let questions = text().matches("c cancels it").count();
        stdin.write_all(key.as_bytes()).unwrap();
        if *key == "\u{3}" {
            wait_until("it asks or ends", || {
                text().matches("c cancels it").count() > questions || child.try_wait().unwrap().is_some()
            });
        }
    }
    wait_until("it ends", || child.try_wait().unwrap().is_some());
    let code = child.wait().unwrap().code();
    drop(stdin);
    reader.join().unwrap();
    Finished { code, out: text(), err: String::new() }
}

#[test]
fn on_a_terminal_ctrl_c_asks_whether_to_leave_or_to_cancel() {
    let master = endless();
    let canceled = on_a_terminal(&master, "", "run --on all -- cmd", &["\u{3}", "c\n"]);
    assert_eq!(canceled.code, Some(130), "{}", canceled.out);
    assert!(canceled.out.contains("1 canceled"), "{}", canceled.out);
    let cancel = master.asked().into_iter().find(|asked| asked.line.contains("cancel")).unwrap();
    assert_eq!(cancel.json(), json!({"running": true}));

    for keys in [&["\u{3}", "d\n"][..], &["\u{3}", "\u{3}"]] {
        let master = endless();
        let left = on_a_terminal(&master, "", "run --on all -- cmd", keys);
        assert_eq!(left.code, Some(130), "{keys:?}: {}", left.out);
        assert!(left.out.contains("job 17 goes on"), "{}", left.out);
        assert!(left.out.contains("\u{1b}[36mpi-1:\u{1b}[0m begun"), "names are coloured: {:?}", left.out);
    }
}

#[test]
fn a_terminal_is_protected_and_shows_no_colours_to_who_wants_none() {
    let events = vec![job("active", 1), task(0, "pi-1", "running"), output(0, "stdout", 0, "begun\t\u{1b}[2J\n")];
    let master = master(&["pi-1"], [events, vec![job("succeeded", 1)]].concat());
    let plain = on_a_terminal(&master, "NO_COLOR=1", "run --on all -- cmd", &[]);
    assert!(plain.out.starts_with("pi-1: begun\t\\u{1b}[2J\r\n"), "{:?}", plain.out);
}

#[test]
fn whoever_only_follows_a_log_is_not_asked() {
    let master = endless();
    let logs = interruptible(&command(&master, &["logs", "17", "-f"]));
    let mut process = Process::start("logs", logs);
    process.wait_for_line("pi-1: begun");
    process.signal(Signal::INT);
    let Finished { code, err, .. } = process.wait_for_exit();
    assert_eq!((code, err.as_str()), (None, ""), "the signal itself ends it");
}

#[test]
fn a_reader_that_goes_leaves_the_job_to_itself() {
    let lines = "line\n".repeat(4000);
    let events = (0..200).map(|piece| output(0, "stdout", piece * lines.len() as u64, &lines));
    let master = master(&["pi-1"], [task(0, "pi-1", "running")].into_iter().chain(events).collect());
    let mut piped = Command::new("bash");
    let program = env!("CARGO_BIN_EXE_rpicluster");
    piped.args(["-c", &format!("{program} run --on all -- cmd | head -1; exit ${{PIPESTATUS[0]}}")]);
    piped.env("RPICLUSTER_URL", master.url()).env("RPICLUSTER_API_TOKEN", "secret");
    let Finished { code, out, err } = run(piped);
    assert_eq!((code, out.as_str()), (Some(130), "pi-1: line\n"), "{err}");
    assert!(err.contains("job 17 goes on"), "{err}");
}

#[test]
fn a_terminal_shows_how_far_a_map_is() {
    let canceled = on_a_terminal(&endless(), "", "map --on all -- cmd ::: a", &["\u{3}", "c\n"]);
    assert!(canceled.out.contains("] 0 % 0/1, 1 running"), "{:?}", canceled.out);
    assert!(canceled.out.contains("1 canceled") && canceled.code == Some(130), "{:?}", canceled.out);
}
