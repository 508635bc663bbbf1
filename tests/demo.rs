use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Place, Process, descendants, is_running, rpicluster, wait_until};

/// One demo at a time: two that start together would both find the usual ports free.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A demo, and the folder that it takes for the system's temporary one.
fn demo(arguments: &[&str]) -> (Process, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = rpicluster(&Place::Here);
    command.arg("demo").args(arguments).env("TMPDIR", folder.path());
    (Process::start("demo", command), folder)
}

/// The processes of a demo with `slaves` slaves, once all are there.
fn family(demo: &Process, slaves: usize) -> Vec<u32> {
    wait_until("master and slaves run", || descendants(demo.pid()).len() == slaves + 1);
    descendants(demo.pid())
}

fn none_is_left(family: &[u32]) {
    wait_until("nothing is left running", || !family.iter().any(|process| is_running(*process)));
}

#[test]
fn it_ends_by_itself_with_a_summary_and_leaves_nothing() {
    let _alone = alone();
    let (mut demo, folder) = demo(&["--slaves", "5", "--for", "5s", "--json"]);
    let family = family(&demo, 5);
    let finished = demo.wait_for_exit();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let last: Value = serde_json::from_str(finished.out.lines().last().unwrap()).unwrap();
    for (name, value) in [("slaves", 5), ("online", 5), ("answered", 5), ("dropped", 0)] {
        assert_eq!(last[name], value, "{last}");
    }
    // State, details, info and vitals of each.
    assert!(last["handled"].as_u64() >= Some(20), "{last}");
    none_is_left(&family);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "no files are left either");
}

#[test]
fn the_command_that_it_shows_runs_on_all_of_its_slaves() {
    let _alone = alone();
    let (mut demo, _folder) = demo(&[]);
    wait_until("all slaves are online", || demo.out().iter().filter(|line| line.ends_with(" is online")).count() == 3);
    let shown = demo.out().iter().find_map(|line| line.trim().strip_prefix("work ").map(str::to_owned)).unwrap();
    let output = Command::new("sh").args(["-c", &shown]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().filter(|line| line.contains("Linux")).count(), 3, "{output:?}");
    demo.signal(Signal::INT);
    assert_eq!(demo.wait_for_exit().code, Some(0));
}

#[test]
fn for_people_it_names_the_line_to_paste_and_the_url() {
    let _alone = alone();
    let (mut demo, _folder) = demo(&["--for", "3s"]);
    let finished = demo.wait_for_exit();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["mosquitto_sub -h 127.0.0.1 -p ", "-t 'rpicluster/#' -v", "http://127.0.0.1:", "3 of 3 slaves online"]
    {
        assert!(finished.out.contains(part), "{part}: {}", finished.out);
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let _alone = alone();
    let (mut demo, folder) = demo(&[]);
    let family = family(&demo, 3);
    demo.signal(Signal::INT);
    assert_eq!(demo.wait_for_exit().code, Some(0));
    none_is_left(&family);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "no files are left either");
}

#[test]
fn a_killed_demo_leaves_nothing() {
    let _alone = alone();
    let (mut demo, _folder) = demo(&[]);
    let family = family(&demo, 3);
    demo.kill();
    none_is_left(&family);
}
