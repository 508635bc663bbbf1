use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::fake_master::{Asked, FakeMaster, Reply};
use crate::harness::{Finished, Place, rpicluster, run};

/// Ctrl-C, terminals, and readers that go.
mod leaving;
/// `rpicluster map`: where inputs come from, and in which order results are shown.
mod map;

/// `rpicluster` with these arguments, asking this master.
fn command(master: &FakeMaster, arguments: &[&str]) -> Command {
    let mut command = rpicluster(&Place::Here);
    command.args(arguments).env("RPICLUSTER_URL", master.url()).env("RPICLUSTER_API_TOKEN", "secret");
    command
}

fn call(master: &FakeMaster, arguments: &[&str]) -> Finished {
    run(command(master, arguments))
}

fn job(state: &str, tasks: u32) -> Value {
    json!({
        "type": "job", "job": 17, "requester": "admin", "state": state, "submitted": "2026-11-24T12:00:00Z",
        "tasks": tasks, "counts": {"succeeded": tasks}, "steps": [{"on": "all", "work": "x", "tasks": tasks}],
    })
}

fn task(index: u32, slave: &str, state: &str) -> Value {
    json!({"type": "task", "task": format!("17.{index}"), "state": state, "slave": slave, "attempt": 1})
}

/// The same with more members.
fn with(mut task: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("{more}") };
    task.as_object_mut().unwrap().extend(more);
    task
}

fn output(index: u32, stream: &str, offset: u64, data: &str) -> Value {
    json!({
        "type": "output", "task": format!("17.{index}"), "attempt": 1, "epoch": "0000000000000001",
        "stream": stream, "offset": offset, "data": data,
    })
}

/// Accepts job 17 for these slaves, and tells these events.
fn master(slaves: &[&str], events: Vec<Value>) -> FakeMaster {
    let accepted = accepted(slaves);
    FakeMaster::start(move |asked| answer(asked, &accepted, || Reply::Events(events.clone())))
}

fn accepted(slaves: &[&str]) -> Value {
    json!({"job": 17, "steps": [{"slaves": slaves, "tasks": slaves.len()}]})
}

fn answer(asked: &Asked, accepted: &Value, events: impl Fn() -> Reply) -> Reply {
    match asked.line.as_str() {
        "POST /api/v1/jobs" => Reply::json(201, accepted),
        "GET /api/v1/jobs/17/events?output=true" => events(),
        other => Reply::json(404, &json!({"error": format!("not expected: {other}")})),
    }
}

/// Lines that begin with this.
fn beginning(text: &str, with: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with(with)).map(str::to_owned).collect()
}

#[test]
fn output_comes_line_by_line_behind_the_slaves_name_with_a_summary() {
    let master = master(
        &["pi-1", "pi-2"],
        vec![
            job("active", 2),
            task(0, "pi-1", "running"),
            task(1, "pi-2", "running"),
            output(0, "stdout", 0, "one\ntw"),
            output(1, "stderr", 0, "oh\n"),
            output(1, "stdout", 0, "\u{1b}[31mred\tend"),
            output(0, "stdout", 6, "o\n"),
            with(task(0, "pi-1", "succeeded"), json!({"exit_code": 0, "stdout": 8})),
            with(task(1, "pi-2", "failed"), json!({"exit_code": 3, "stdout": 12, "stderr": 3})),
            job("failed", 2),
        ],
    );
    let Finished { code, out, err } = call(&master, &["run", "--on", "all", "--timeout", "5m", "--", "cmd", "-x"]);
    assert_eq!(code, Some(3), "{err}");
    assert_eq!(out, "pi-1: one\npi-1: two\npi-2: \u{1b}[31mred\tend\n", "where no terminal is, bytes stay as they are");
    assert_eq!(err, "pi-2: oh\nrpicluster: pi-2: exit 3\njob 17: 2 tasks: 1 ok, 1 failed\n  exit 3  pi-2\n");

    let asked = &master.asked()[0];
    assert_eq!(asked.header("authorization"), Some("Bearer secret"));
    assert_eq!(asked.header("idempotency-key").map(str::len), Some(32));
    let step = &asked.json()["steps"][0];
    assert_eq!((&step["argv"], &step["on"]), (&json!(["cmd", "-x"]), &json!("all")));
    assert_eq!((&step["wait_ms"], &step["timeout_ms"]), (&json!(0), &json!(300_000)));
}

#[test]
fn how_tasks_end_is_how_the_command_ends() {
    for (state, more, code, word) in [
        ("succeeded", json!({}), 0, "1 ok"),
        ("failed", json!({"exit_code": 7}), 7, "exit 7"),
        ("failed", json!({"signal": 9}), 137, "signal 9"),
        ("failed", json!({"reason": "no such command"}), 1, "no such command"),
        ("timed_out", json!({}), 124, "timed out"),
        ("lost", json!({}), 125, "lost"),
        ("rejected", json!({"reason": "policy: commands"}), 126, "policy: commands"),
        ("expired", json!({"attempt": 0}), 127, "offline"),
        ("canceled", json!({}), 1, "canceled"),
    ] {
        let master = master(&["pi-1"], vec![with(task(0, "pi-1", state), more), job("failed", 1)]);
        let Finished { code: ended, err, .. } = call(&master, &["run", "--on", "pi-1", "--", "cmd"]);
        assert_eq!(ended, Some(code), "{state}: {err}");
        assert!(err.contains(word), "{state}: {err}");
    }
}

#[test]
fn equal_outputs_are_folded() {
    let mut events = Vec::new();
    for index in 0..4 {
        let text = if index == 2 { "old\n" } else { "new\n" };
        let slave = format!("pi-{}", index + 1);
        events.extend([with(task(index, &slave, "succeeded"), json!({"stdout": 4})), output(index, "stdout", 0, text)]);
    }
    events.push(job("succeeded", 4));
    let master = master(&["pi-1", "pi-2", "pi-3", "pi-4"], events);
    let Finished { code, out, .. } = call(&master, &["run", "--on", "all", "--fold", "--", "cmd"]);
    let rule = "----------------";
    assert_eq!(out, format!("{rule}\npi-[1-2,4] (3)\n{rule}\nnew\n{rule}\npi-3 (1)\n{rule}\nold\n"));
    assert_eq!(code, Some(0));
}

#[test]
fn scripts_get_a_line_of_json_for_each_change() {
    let events = vec![task(0, "pi-1", "running"), output(0, "stdout", 0, "a"), job("succeeded", 1)];
    let master = master(&["pi-1"], [events.clone(), events].concat());
    let Finished { code, out, err } = call(&master, &["run", "--on", "all", "--json", "--", "cmd"]);
    let types: Vec<Value> =
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
    assert_eq!(types, ["task", "output", "job"]);
    assert_eq!(err, "");
    assert_eq!(code, Some(1), "the task has not ended: {out}");
}

#[test]
fn what_is_detached_prints_its_number_and_a_dry_run_its_plan() {
    let master = FakeMaster::start(|asked| {
        let job = if asked.json()["dry_run"] == true { Value::Null } else { json!(17) };
        let step = json!({"slaves": ["pi-1", "pi-2"], "offline": ["pi-2"], "tasks": 2});
        Reply::json(201, &json!({"job": job, "steps": [step]}))
    });
    let detached = call(&master, &["run", "--on", "all", "--detach", "--", "cmd"]);
    assert_eq!((detached.code, detached.out.as_str()), (Some(0), "17\n"));
    let plan = call(&master, &["run", "--on", "all", "--dry-run", "--", "cmd", "-x"]);
    assert_eq!((plan.code, plan.out.as_str()), (Some(0), "step 1: cmd -x: pi-[1-2]\n  offline: pi-2\n"));
}

#[test]
fn a_broken_stream_is_taken_up_again_and_nothing_is_shown_twice() {
    let times = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&times);
    let accepted = accepted(&["pi-1"]);
    let master = FakeMaster::start(move |asked| {
        answer(asked, &accepted, || match counted.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::Events(vec![task(0, "pi-1", "running"), output(0, "stdout", 0, "one\ntw")]),
            1 => Reply::Nothing,
            2 => Reply::json(503, &json!({"error": "not now"})),
            3 => Reply::Events(vec![task(0, "pi-1", "running"), output(0, "stdout", 0, "one\n")]),
            _ => Reply::Events(vec![
                with(task(0, "pi-1", "succeeded"), json!({"stdout": 14})),
                output(0, "stdout", 0, "one\n"),
                output(0, "stdout", 4, "two\nthree\n"),
                job("succeeded", 1),
            ]),
        })
    });
    let Finished { code, out, err } = call(&master, &["run", "--on", "all", "--", "cmd"]);
    assert_eq!((code, out.as_str()), (Some(0), "pi-1: one\npi-1: two\npi-1: three\n"), "{err}");
    assert_eq!(times.load(Ordering::SeqCst), 5);
}

#[test]
fn events_that_are_none_end_the_command_and_name_the_job() {
    let master = master(&["pi-1"], vec![json!({"type": "surprise"})]);
    let Finished { code, err, .. } = call(&master, &["run", "--on", "all", "--", "cmd"]);
    assert_eq!(code, Some(69), "{err}");
    assert!(err.contains("surprise") && err.contains("rpicluster logs 17 -f"), "{err}");
}

#[test]
fn a_submission_that_was_not_answered_is_sent_again_under_the_same_key() {
    let times = AtomicUsize::new(0);
    let master = FakeMaster::start(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Nothing,
        1 => Reply::json(503, &json!({"error": "the store cannot write"})),
        _ => Reply::json(200, &accepted(&["pi-1"])),
    });
    let Finished { code, out, err } = call(&master, &["run", "--on", "all", "--detach", "--", "cmd"]);
    assert_eq!((code, out.as_str()), (Some(0), "17\n"), "{err}");
    assert!(err.contains("the store cannot write"), "{err}");
    let keys: Vec<String> =
        master.asked().iter().map(|asked| asked.header("idempotency-key").unwrap().to_owned()).collect();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let again = call(&master, &["run", "--on", "all", "--detach", "--", "cmd"]);
    assert_eq!(again.code, Some(0));
    assert_ne!(master.asked()[3].header("idempotency-key"), Some(keys[0].as_str()), "another one is another job");
}

#[test]
fn targets_that_are_wrong_or_match_nobody_are_told_apart() {
    for (status, body, code) in [
        (400, json!({"error": "target \"pi[\": ] is missing"}), 2),
        (422, json!({"error": "no slave matches \"pi[\""}), 127),
        (201, json!({"job": 17, "steps": [{"slaves": [], "tasks": 0}]}), 127),
        (503, json!({"error": "the disk is full"}), 1),
        (401, json!({"error": "no"}), 1),
    ] {
        let master = FakeMaster::start(move |_| Reply::json(status, &body));
        let Finished { code: ended, out, err } = call(&master, &["run", "--on", "pi[", "--", "cmd"]);
        assert_eq!((ended, out.as_str()), (Some(code), ""), "{status}: {err}");
        assert!(err.contains("pi[") || status == 401 || status == 503, "{err}");
    }
}

#[test]
fn a_job_in_a_file_is_submitted_and_mistakes_in_it_are_named_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.toml");
    let name = file.display().to_string();
    let master = master(&["pi-1"], vec![task(0, "pi-1", "succeeded"), job("succeeded", 1)]);
    fs::write(&file, "name = 'x'\n[[steps]]\non = 'all'\nrun = ['true']\n").unwrap();
    let submitted = call(&master, &["submit", &name]);
    assert_eq!((submitted.code, submitted.out.as_str()), (Some(0), "17\n"), "{}", submitted.err);
    assert_eq!(master.asked()[0].json()["name"], "x");
    let followed = call(&master, &["submit", &name, "--follow"]);
    assert_eq!(followed.code, Some(0));
    assert!(followed.err.contains("1 ok"), "{}", followed.err);

    fs::write(&file, "[[steps]]\non = 'all'\nrun = ['true']\nretrys = 3\n").unwrap();
    let wrong = call(&master, &["submit", &name]);
    assert_eq!(wrong.code, Some(2));
    assert!(["job.toml", "line 4", "retrys"].iter().all(|part| wrong.err.contains(part)), "{}", wrong.err);
}

/// A job of two tasks that has ended, with what they wrote.
fn ended() -> FakeMaster {
    let tasks = || {
        let failed = json!({"stdout": 2, "stderr": 4, "exit_code": 3});
        [with(task(0, "pi-1", "succeeded"), json!({"stdout": 6})), with(task(1, "pi-2", "failed"), failed)]
    };
    FakeMaster::start(move |asked| match asked.line.as_str() {
        "GET /api/v1/jobs?limit=20" => Reply::json(200, &json!([job("failed", 2)])),
        "GET /api/v1/jobs/17" => {
            Reply::json(200, &with(job("failed", 2), json!({"counts": {"failed": 1, "succeeded": 1}})))
        }
        "GET /api/v1/jobs/17/tasks?from=0&limit=1000" => Reply::json(200, &json!({"tasks": tasks()})),
        "GET /api/v1/jobs/17/tasks?from=0&limit=1000&state=failed" => Reply::json(200, &json!({"tasks": [tasks()[1]]})),
        "GET /api/v1/jobs/17/tasks/1" => Reply::json(200, &tasks()[1]),
        "GET /api/v1/jobs/17/output?task=0&stream=stdout&attempt=1" => Reply::Whole(200, b"a\n\nb\xff\n".to_vec()),
        "GET /api/v1/jobs/17/output?task=1&stream=stdout&attempt=1" => Reply::Whole(200, b"c\xff".to_vec()),
        "GET /api/v1/jobs/17/output?task=1&stream=stderr&attempt=1" => Reply::Whole(200, b"oh!\n".to_vec()),
        "GET /api/v1/jobs/17/events?output=true" => Reply::Events(vec![
            job("active", 2),
            tasks()[1].clone(),
            output(1, "stdout", 0, "c"),
            output(1, "stderr", 0, "oh!\n"),
            job("failed", 2),
        ]),
        "POST /api/v1/jobs/17/cancel" | "POST /api/v1/jobs/17/retry" => Reply::json(200, &job("active", 2)),
        other => Reply::json(404, &json!({"error": other})),
    })
}

#[test]
fn logs_are_shown_as_they_were_written_and_followed() {
    let master = ended();
    let all = call(&master, &["logs", "17"]);
    assert_eq!(all.code, Some(0), "{}", all.err);
    assert_eq!(all.out, "pi-1: a\npi-1: \npi-1: b\u{fffd}\npi-2: c\u{fffd}\n");
    assert!(all.err == "pi-2: oh!\nrpicluster: pi-2: exit 3\n", "{}", all.err);
    let stderr = call(&master, &["logs", "17", "--stderr"]);
    assert_eq!(stderr.out, "pi-2: oh!\n");
    let one = call(&master, &["logs", "17", "--task", "1"]);
    assert_eq!((one.out.as_str(), one.err.as_str()), ("c\u{fffd}\n", "oh!\n"));
    assert_eq!(call(&master, &["logs", "17.1"]).out, one.out, "a task's number is enough");
    let followed = call(&master, &["logs", "17", "-f"]);
    assert_eq!((followed.code, followed.out.as_str()), (Some(0), "pi-2: c\n"), "{}", followed.err);
    let unknown = call(&master, &["logs", "18"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("job 18"), "{}", unknown.err);
}

#[test]
fn jobs_are_listed_shown_canceled_and_retried() {
    let master = ended();
    let list = call(&master, &["jobs"]);
    assert_eq!(list.code, Some(0), "{}", list.err);
    assert!(beginning(&list.out, "17 ").first().is_some_and(|row| row.contains("failed")), "{}", list.out);
    let one = call(&master, &["jobs", "17"]);
    assert!(one.out.contains("exit 3") && one.out.contains("pi-2") && !one.out.contains("pi-1"), "{}", one.out);
    for (arguments, path, body) in [
        (&["cancel", "17"][..], "POST /api/v1/jobs/17/cancel", json!({"running": false})),
        (&["cancel", "17", "--running"], "POST /api/v1/jobs/17/cancel", json!({"running": true})),
        (&["retry", "17"], "POST /api/v1/jobs/17/retry", json!({"failed": false})),
        (&["retry", "17", "--failed"], "POST /api/v1/jobs/17/retry", json!({"failed": true})),
    ] {
        let done = call(&master, arguments);
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(done.out.starts_with("job 17 is active"), "{}", done.out);
        let asked = master.asked().pop().unwrap();
        assert_eq!((asked.line.as_str(), asked.json()), (path, body));
    }
    assert_eq!(call(&master, &["jobs", "18"]).code, Some(1));
}

#[test]
fn slaves_are_drained_and_labelled_and_do_what_every_slave_can() {
    let accepted = accepted(&["pi-1"]);
    let master = FakeMaster::start(move |asked| match asked.line.as_str() {
        "POST /api/v1/jobs" => Reply::json(201, &accepted),
        _ => Reply::Whole(204, Vec::new()),
    });
    for (arguments, line, body) in [
        (
            &["slaves", "drain", "pi-1", "--reason", "fan", "--deadline", "10m"][..],
            "POST /api/v1/slaves/pi-1/drain",
            json!({"reason": "fan", "deadline_ms": 600_000}),
        ),
        (&["slaves", "undrain", "pi-1"], "DELETE /api/v1/slaves/pi-1/drain", Value::Null),
        (
            &["slaves", "label", "pi-1", "role=worker", "old="],
            "PUT /api/v1/slaves/pi-1/labels",
            json!({"role": "worker", "old": null}),
        ),
    ] {
        let done = call(&master, arguments);
        assert_eq!(done.code, Some(0), "{}", done.err);
        let asked = master.asked().pop().unwrap();
        assert_eq!(asked.line, line);
        assert_eq!(if asked.body.is_empty() { Value::Null } else { asked.json() }, body);
    }
    for action in ["ping", "reboot", "shutdown", "os-upgrade"] {
        let done = call(&master, &[action, "--on", "pi-1", "--detach"]);
        assert_eq!((done.code, done.out.as_str()), (Some(0), "17\n"), "{}", done.err);
        let step = &master.asked().pop().unwrap().json()["steps"][0];
        assert_eq!((&step["kind"], &step["action"]), (&json!("action"), &json!(action)));
    }
}
