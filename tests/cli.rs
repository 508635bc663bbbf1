use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Cluster, Finished, Place, rpicluster, run, wait_until};

const USAGE: Option<i32> = Some(2);
const UNREACHABLE: Option<i32> = Some(69);
const CONFIGURATION: Option<i32> = Some(78);

/// Runs `rpicluster` where no configuration lies.
fn call(arguments: &[&str]) -> Finished {
    call_with(arguments, &[])
}

fn call_with(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let mut command = rpicluster(&Place::Here);
    command.args(arguments).envs(environment.iter().copied()).current_dir(folder.path());
    run(command)
}

/// A port where nobody listens.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_possible() {
    for arguments in
        [&["nonsense"][..], &[], &["slaves", "--nonsense"], &["slave", "--id", "Ä"], &["demo", "--for", "x"]]
    {
        let Finished { code, out, err } = call(arguments);
        assert_eq!((code, out.as_str()), (USAGE, ""), "{arguments:?}: {err}");
        assert!(!err.is_empty());
    }
}

#[test]
fn version_help_and_completions_go_to_standard_output() {
    let version = call(&["--version"]);
    assert_eq!((version.code, version.out.trim()), (Some(0), concat!("rpicluster ", env!("CARGO_PKG_VERSION"))));
    let help = call(&["--help"]);
    assert_eq!(help.code, Some(0));
    for part in ["master", "slave", "demo", "slaves", "health", "check-config", "completions", "69", "78"] {
        assert!(help.out.contains(part), "{part}: {}", help.out);
    }
    let completions = call(&["completions", "bash"]);
    assert_eq!(completions.code, Some(0));
    assert!(completions.out.contains("_rpicluster()") && completions.out.contains("check-config"));
}

#[test]
fn a_master_that_does_not_answer_is_69_and_named() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for command in [&["slaves"][..], &["slaves", "pi-1"], &["slaves", "--json"], &["health"]] {
        let Finished { code, out, err } = call_with(command, &[("RPICLUSTER_URL", &url)]);
        assert_eq!((code, out.as_str()), (UNREACHABLE, ""), "{command:?}");
        assert!(err.contains(&url) && err.contains("--url"), "{err}");
    }
}

#[test]
fn slaves_are_listed_for_people_and_for_scripts() {
    let cluster = Cluster::start();
    let url = cluster.url();
    let none = call(&["slaves", "--json", "--url", &url]);
    assert_eq!((none.code, none.out.trim()), (Some(0), "[]"));

    let _slave = cluster.online_slave("pi-1");
    wait_until("details are known", || cluster.view("pi-1")["details"].is_object());
    let all: Value = serde_json::from_str(&call(&["slaves", "--json", "--url", &url]).out).unwrap();
    assert_eq!((&all[0]["id"], &all[0]["state"]), (&"pi-1".into(), &"online".into()));
    assert!(all[0]["details"]["hostname"].is_string() && all[0]["since"].is_string(), "{all}");
    let one: Value = serde_json::from_str(&call(&["slaves", "pi-1", "--json", "--url", &url]).out).unwrap();
    assert_eq!(one["id"], "pi-1");

    let table = call(&["slaves", "--url", &url]);
    assert_eq!(table.code, Some(0));
    let row = table.out.lines().find(|line| line.contains("pi-1")).unwrap();
    assert!(row.contains("online"), "{}", table.out);
    assert!(!table.out.contains('\u{1b}'), "no colours without a terminal: {:?}", table.out);

    let unknown = call(&["slaves", "nobody", "--url", &url]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("nobody"), "{}", unknown.err);
}

#[test]
fn health_tells_of_master_and_slave() {
    let cluster = Cluster::start();
    let mut slave = cluster.slave("pi-1");
    let state_dir = cluster.slave_folder("pi-1").display().to_string();
    let ask_slave = || call(&["health", "slave", "--state-dir", &state_dir]);
    assert_eq!(call(&["health", "--url", &cluster.url()]).code, Some(0));
    wait_until("the slave is well", || ask_slave().code == Some(0));
    assert!(ask_slave().out.contains("pi-1"));
    slave.kill();
    let dead = ask_slave();
    assert_eq!(dead.code, Some(1));
    assert!(dead.err.contains(&state_dir), "{}", dead.err);
}

#[test]
fn wrong_configuration_is_78_and_names_file_key_and_the_nearest_valid_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rpicluster.toml");
    let name = file.display().to_string();
    for (text, parts) in [
        ("[master]\npresense_timeout = '15s'", &["master.presense_timeout", "master.presence_timeout"][..]),
        ("[slav]\nid = 'a'", &["slav", "slave"]),
        ("[slave]\nkeep_alive = 5", &["slave.keep_alive"]),
        ("[slave]\nkeep_alive = '0s'", &["slave.keep_alive"]),
        ("[slave]\nid = 'Ä'", &["slave.id"]),
        ("[master]\nhttp = 'here'", &["master.http"]),
        ("[cluster]\ntopic_root = '#'", &["cluster.topic_root"]),
        ("[master", &[]),
    ] {
        fs::write(&file, text).unwrap();
        for command in ["check-config", "master", "slave"] {
            let Finished { code, err, .. } = call(&[command, "--config", &name]);
            assert_eq!(code, CONFIGURATION, "{command}: {text}: {err}");
            assert!(err.contains(&name) && parts.iter().all(|part| err.contains(part)), "{text}: {err}");
        }
    }
    let missing = folder.path().join("missing.toml").display().to_string();
    let Finished { code, err, .. } = call(&["check-config", "--config", &missing]);
    assert_eq!(code, CONFIGURATION);
    assert!(err.contains(&missing), "{err}");
}

#[test]
fn a_wrong_variable_is_78_and_named() {
    for (name, value, part) in [
        ("RPICLUSTER__MASTER__PRESENSE_TIMEOUT", "15s", "presence_timeout"),
        ("RPICLUSTER__SLAVE__KEEP_ALIVE", "soon", "slave.keep_alive"),
        ("RPICLUSTER__BROKER__LIMITS__CONECTIONS", "5", "limits.connections"),
    ] {
        let Finished { code, err, .. } = call_with(&["check-config"], &[(name, value)]);
        assert_eq!(code, CONFIGURATION, "{name}: {err}");
        assert!(err.contains(name) && err.contains(part), "{err}");
    }
}

#[test]
fn the_sample_files_are_valid_and_none_is_needed() {
    for arguments in [
        vec!["check-config".to_owned()],
        vec![
            "check-config".to_owned(),
            "--config".to_owned(),
            repository().join("rpicluster.toml").display().to_string(),
        ],
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let Finished { code, out, err } = call(&arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        assert!(out.contains("rpicluster.toml") && out.contains("broker.toml"), "{out}");
    }
}

#[test]
fn a_taken_port_is_named_together_with_the_flag_that_moves_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("state").display().to_string();
    let flags = ["--mqtt", "--mqtts", "--http"];
    for flag in flags {
        let mut arguments = vec!["master", "--state-dir", &state_dir, flag, &address];
        for other in flags.into_iter().filter(|other| *other != flag) {
            arguments.extend([other, "127.0.0.1:0"]);
        }
        let Finished { code, err, .. } = call(&arguments);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&address) && err.contains(flag), "{err}");
    }
}

#[test]
fn two_masters_cannot_share_a_folder() {
    let cluster = Cluster::start();
    let state_dir = cluster.slave_folder("master").display().to_string();
    let second = call(&["master", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state-dir", &state_dir]);
    assert_eq!(second.code, Some(1));
    assert!(second.err.contains(&state_dir), "{}", second.err);
}
