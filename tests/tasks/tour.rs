use std::fs;
use std::path::Path;

use rustix::process::Signal;

use super::Work;
use crate::harness::{Process, interruptible, wait_until};

/// A command of the README, and the lines below it.
struct Step {
    command: String,
    sample: Vec<String>,
}

/// All commands below "Give it work", as they stand there.
fn tour() -> Vec<Step> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Give it work")).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for block in section.split("```").skip(1).step_by(2) {
        for line in block.lines().filter(|line| !line.is_empty()) {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), sample: Vec::new() }),
                (None, Some(step)) => step.sample.push(line.to_owned()),
                (None, None) => panic!("a sample before the first command: {line}"),
            }
        }
    }
    steps
}

/// A line without what differs between machines and times; the README's and this machine's become the same.
fn shape(line: &str) -> String {
    let line = match line.split_once(": Linux ") {
        Some((slave, _)) => return format!("{slave}: Linux"),
        None => line,
    };
    match line.split_once(" UTC ").and_then(|_| line.split_once(": ")) {
        Some((slave, _)) => return format!("{slave}: DATE"),
        None if line.starts_with("6.") => return "RELEASE".to_owned(),
        None => {}
    }
    // In a table, how long ago is a number and a unit.
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_age = |place: usize| words.get(place + 1) == Some(&"s") || (place > 0 && words[place] == "s");
    (0..words.len()).filter(|place| !is_age(*place)).map(|place| words[place]).collect::<Vec<_>>().join(" ")
}

/// Fails unless what was printed has the lines of the sample; where `…` ends it, more may follow.
fn compare(step: &Step, printed: &str) {
    let is_cut = step.sample.iter().any(|line| line == "…");
    let mut sample: Vec<String> = step.sample.iter().filter(|line| *line != "…").map(|line| shape(line)).collect();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let printed = printed.replace(release.trim(), "6.RELEASE");
    let mut lines: Vec<String> = printed.lines().map(shape).collect();
    if is_cut {
        // The last line, a summary, stands below what was cut.
        let tail = step.sample.iter().skip_while(|line| *line != "…").count() - 1;
        let head = sample.len() - tail;
        assert!(lines.len() > sample.len(), "{}: {printed}", step.command);
        lines.drain(head..lines.len() - tail);
    }
    // Slaves speak as they like.
    sample.sort();
    lines.sort();
    assert_eq!(lines, sample, "$ {}\n{printed}", step.command);
}

#[test]
fn the_tour_of_the_readme_prints_what_it_says() {
    let work = Work::start(3, "");
    let steps = tour();
    assert!(steps.len() >= 9, "the README's tour is not where it was");
    let mut last = 0;
    for step in &steps {
        let command = &step.command;
        if let Some(followed) = command.strip_prefix("rpicluster logs ") {
            follow(&work, step, followed);
            continue;
        }
        let finished = work.shell(&format!("(exit {last}); {command}"));
        compare(step, &finished.out);
        last = finished.code.unwrap();
        if let Some(canceled) = command.strip_prefix("rpicluster cancel ") {
            let job = canceled.split(' ').next().unwrap().parse().unwrap();
            work.wait_until_job_is(job, "canceled");
        }
    }
}

/// `logs -f` until every slave has spoken, then Ctrl-C.
fn follow(work: &Work, step: &Step, arguments: &str) {
    let arguments: Vec<&str> = ["logs"].into_iter().chain(arguments.split(' ')).collect();
    let mut logs = Process::start("logs", interruptible(&work.command(&arguments)));
    let spoken = |lines: &[String], slave: &str| lines.iter().any(|line| shape(line) == format!("{slave}: DATE"));
    wait_until("every slave is heard", || {
        let lines = logs.out();
        ["pi-1", "pi-2", "pi-3"].iter().all(|slave| spoken(&lines, slave))
    });
    assert!(["pi-1", "pi-2"].iter().all(|slave| spoken(&step.sample, slave)), "{:?}", step.sample);
    logs.signal(Signal::INT);
    let finished = logs.wait_for_exit();
    assert_eq!(finished.err, "");
}
