use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::{accepted, answer, call, job, output, task, with};
use crate::harness::fake_master::{FakeMaster, Reply};
use crate::harness::{Finished, run};

/// A job whose tasks succeed from the last to the first, each with its input as output.
fn backwards(inputs: Vec<&'static str>) -> FakeMaster {
    FakeMaster::start(move |asked| {
        answer(asked, &accepted(&["pi-1"]), || {
            let mut events = vec![job("active", inputs.len() as u32)];
            for (index, input) in inputs.iter().enumerate().rev() {
                let ended = json!({"input": input, "stdout": input.len() + 1, "exit_code": 0, "duration_ms": 5});
                events.push(output(index as u32, "stdout", 0, &format!("{input}\n")));
                events.push(with(task(index as u32, "pi-1", "succeeded"), ended));
            }
            events.push(job("succeeded", inputs.len() as u32));
            Reply::Events(events)
        })
    })
}

#[test]
fn results_of_a_map_come_as_they_end_or_in_order_and_are_logged() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.tsv").display().to_string();
    let arguments = ["map", "--on", "all", "--joblog", &log, "--", "echo", "-n", ":::", "a", "b", "c"];
    let master = backwards(vec!["a", "b", "c"]);
    let Finished { code, out, err } = call(&master, &arguments);
    assert_eq!((code, out.as_str()), (Some(0), "c\nb\na\n"), "{err}");
    let step = &master.asked()[0].json()["steps"][0];
    assert_eq!((&step["argv"], &step["inputs"]), (&json!(["echo", "-n", "{}"]), &json!(["a", "b", "c"])));
    assert_eq!(step.get("wait_ms"), None, "a queue is there for whoever comes");
    let log = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("Seq\tHost\tStarttime"), "{log}");
    assert_eq!(lines[1], "3\tpi-1\t0.000\t0.005\t0\t2\t0\t0\techo -n c");

    let ordered = call(&master, &["map", "--on", "all", "--keep-order", "--", "echo", "{}", ":::", "a", "b", "c"]);
    assert_eq!((ordered.code, ordered.out.as_str()), (Some(0), "a\nb\nc\n"), "{}", ordered.err);
}

#[test]
fn what_is_too_much_to_keep_until_its_turn_is_asked_for_again() {
    const MEGABYTE: usize = 1024 * 1024;
    let accepted = accepted(&["pi-1"]);
    let master = FakeMaster::start(move |asked| match asked.line.as_str() {
        "GET /api/v1/jobs/17/output?task=1&stream=stdout&attempt=1" => Reply::Whole(200, b"stored\n".to_vec()),
        "GET /api/v1/jobs/17/output?task=1&stream=stderr&attempt=1" => Reply::Whole(200, Vec::new()),
        _ => answer(asked, &accepted, || {
            let text = "x".repeat(MEGABYTE);
            let mut events: Vec<Value> =
                (0..70).map(|piece| output(1, "stdout", (piece * MEGABYTE) as u64, &text)).collect();
            events.extend([
                with(task(1, "pi-1", "succeeded"), json!({"input": "b", "stdout": 70 * MEGABYTE})),
                output(0, "stdout", 0, "first\n"),
                with(task(0, "pi-1", "succeeded"), json!({"input": "a", "stdout": 6})),
                job("succeeded", 2),
            ]);
            Reply::Events(events)
        }),
    });
    let Finished { code, out, err } = call(&master, &["map", "--on", "all", "-k", "--", "cmd", ":::", "a", "b"]);
    assert_eq!((code, out.as_str()), (Some(0), "first\nstored\n"), "{err}");
}

#[test]
fn inputs_come_from_a_file_or_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("inputs");
    fs::write(&file, "a b\nc\n").unwrap();
    let file = file.display().to_string();
    let master = backwards(vec!["a b", "c"]);
    let from_file = call(&master, &["map", "--on", "all", "-a", &file, "--", "echo"]);
    assert_eq!(from_file.code, Some(0), "{}", from_file.err);
    let mut piped = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_rpicluster");
    piped.args(["-c", &format!("{program} map --on all -- echo <{file}")]);
    piped.env("RPICLUSTER_URL", master.url()).env("RPICLUSTER_API_TOKEN", "secret");
    assert_eq!(run(piped).code, Some(0));
    let submitted = master.asked().into_iter().filter(|asked| asked.line.starts_with("POST"));
    let inputs: Vec<Value> = submitted.map(|asked| asked.json()["steps"][0]["inputs"].clone()).collect();
    assert_eq!(inputs, [json!(["a b", "c"]), json!(["a b", "c"])]);
}

#[test]
fn an_empty_list_of_inputs_is_nothing_to_do() {
    let master = backwards(Vec::new());
    for arguments in
        [&["map", "--on", "all", "--", "echo", ":::"][..], &["map", "--on", "all", "-a", "/dev/null", "--", "echo"]]
    {
        let Finished { code, out, err } = call(&master, arguments);
        assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
        assert!(err.contains("nothing to do"), "{err}");
    }
    assert!(master.asked().is_empty());
    for arguments in [
        &["map", "--on", "all", "-a", "/dev/null", "--", "echo", ":::", "a"][..],
        &["map", "--on", "all", "--", ":::", "a"],
        &["map", "--on", "all", "--", "echo", ":::", "a", ":::", "b"],
    ] {
        assert_eq!(call(&master, arguments).code, Some(2), "{arguments:?}");
    }
}

#[test]
fn a_hundred_thousand_inputs_are_mapped() {
    const INPUTS: usize = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("inputs");
    fs::write(&file, (0..INPUTS).map(|n| format!("input {n}\n")).collect::<String>()).unwrap();
    let log = folder.path().join("log.tsv").display().to_string();
    let master = FakeMaster::start(|asked| {
        answer(asked, &accepted(&["pi-1"]), || {
            let ended = |n| match n {
                777 => with(task(n, "pi-1", "failed"), json!({"input": "input 777", "exit_code": 5})),
                n => task(n, "pi-1", "succeeded"),
            };
            let events = (0..INPUTS as u32).map(ended);
            Reply::Events(events.chain([job("failed", INPUTS as u32)]).collect())
        })
    });
    let arguments = ["map", "--on", "all", "-a", &file.display().to_string(), "--joblog", &log, "--", "true"];
    let Finished { code, out, err } = call(&master, &arguments);
    assert_eq!((code, out.as_str()), (Some(5), ""), "{err}");
    assert!(err.contains("100000 tasks: 99999 ok, 1 failed") && err.contains("17.777 \"input 777\" on pi-1"), "{err}");
    assert_eq!(master.asked()[0].json()["steps"][0]["inputs"].as_array().unwrap().len(), INPUTS);
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), INPUTS + 1);
}

#[test]
fn what_has_not_succeeded_is_continued() {
    let accepted = accepted(&["pi-1"]);
    let master = FakeMaster::start(move |asked| match asked.line.as_str() {
        "GET /api/v1/jobs/17" => Reply::json(200, &job("failed", 4)),
        "GET /api/v1/jobs/18" => Reply::json(200, &job("active", 4)),
        "GET /api/v1/jobs/17/tasks?from=0&limit=1000" => Reply::json(
            200,
            &json!({"next": 2, "tasks": [
                with(task(0, "pi-1", "succeeded"), json!({"input": "a"})),
                with(task(1, "pi-1", "failed"), json!({"input": "b"})),
            ]}),
        ),
        "GET /api/v1/jobs/17/tasks?from=2&limit=1000" => Reply::json(
            200,
            &json!({"tasks": [
                with(task(2, "pi-1", "lost"), json!({"input": "c"})),
                with(task(3, "pi-1", "succeeded"), json!({"input": "d"})),
            ]}),
        ),
        _ => answer(asked, &accepted, || Reply::Events(vec![])),
    });
    let continued = call(&master, &["map", "--on", "all", "--continue", "17", "--detach", "--", "echo"]);
    assert_eq!((continued.code, continued.out.as_str()), (Some(0), "17\n"), "{}", continued.err);
    assert_eq!(master.asked().last().unwrap().json()["steps"][0]["inputs"], json!(["b", "c"]));
    let active = call(&master, &["map", "--on", "all", "--continue", "18", "--", "echo"]);
    assert_eq!(active.code, Some(1));
    assert!(active.err.contains("has not ended"), "{}", active.err);
}
