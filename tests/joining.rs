use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rpicluster_protocol::limits::BACKOFF_MAX;
use serde_json::{Value, json};

use crate::harness::mosquitto::retained;
use crate::harness::{Cluster, Place, Process, free_address, rpicluster, run, wait_for, wait_until, within};

/// Two users that are nobody else on a test machine.
const MASTER_USER: u32 = 54_321;
const SLAVE_USER: u32 = 54_322;

/// The same command as another user, in that user's own folder.
fn as_user(user: u32, home: &Path, arguments: &[&str]) -> Command {
    let mut command = rpicluster(&Place::Here);
    command.uid(user).gid(user).env("HOME", home).current_dir(home).args(arguments);
    command
}

#[test]
fn two_lines_join_a_machine_as_the_readme_tells_under_two_users() {
    assert!(rustix::process::geteuid().is_root(), "this test runs processes as other users: it needs root");
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let [head, worker] = [("head", MASTER_USER), ("worker", SLAVE_USER)].map(|(name, user)| {
        let home = folder.path().join(name);
        std::fs::create_dir(&home).unwrap();
        chown(&home, Some(user), Some(user)).unwrap();
        home
    });
    // The first line, with other ports and folders than on a machine of one's own.
    let any = free_address();
    let addresses = ["--mqtt", &any, "--mqtts", &any, "--http", &any, "--state-dir", "state"];
    let mut arguments = vec!["master", "--stop-on-stdin-close"];
    arguments.extend(addresses);
    let mut master = Process::start("master", as_user(MASTER_USER, &head, &arguments));
    master.wait_for_line("master: ready");
    let url = master.wait_for_line("master: http ");
    // What the second line is, the master's user asks there.
    let told = run(as_user(MASTER_USER, &head, &["token", "create", "--state-dir", "state", "--url", &url]));
    assert_eq!(told.code, Some(0), "{}", told.err);
    let line = told.out.lines().find_map(|line| line.trim().strip_prefix("rpicluster ")).expect("a line to run");
    let mut arguments: Vec<&str> = line.split(' ').collect();
    arguments.extend(["--id", "pi-1", "--state-dir", "state", "--stop-on-stdin-close"]);
    let slave = Process::start("slave", as_user(SLAVE_USER, &worker, &arguments));

    let list = || run(as_user(MASTER_USER, &head, &["slaves", "--json", "--state-dir", "state", "--url", &url])).out;
    wait_until("it is online", || list().contains(r#""state":"online""#));
    // From then on no token.
    drop(slave);
    wait_until("it has gone", || list().contains(r#""state":"offline""#));
    let at = arguments.iter().position(|word| *word == "--token").unwrap();
    arguments.drain(at..at + 2);
    let slave = Process::start("slave", as_user(SLAVE_USER, &worker, &arguments));
    wait_until("it is back", || list().contains(r#""state":"online""#));

    // Neither user has a way into what is the other's, and nobody else has one into either.
    for (owner, home, secret) in [(MASTER_USER, &head, "state/ca.key"), (SLAVE_USER, &worker, "state/identity.json")] {
        let other = MASTER_USER + SLAVE_USER - owner;
        let read = |user: u32| {
            let mut command = Command::new("cat");
            command.arg(home.join(secret)).uid(user).gid(user).current_dir("/");
            run(command).code
        };
        assert_eq!((read(owner), read(other)), (Some(0), Some(1)), "{secret}");
    }
    let stranger = run(as_user(SLAVE_USER, &worker, &["token", "create", "--url", &url]));
    assert_eq!(stranger.code, Some(1));
    assert!(stranger.err.contains("asks for a token"), "{}", stranger.err);
    // Nor do the secrets stand in the logs.
    let token = line.split("--token ").nth(1).unwrap();
    for log in [master.err(), slave.err()] {
        assert!(!log.join("\n").contains(token));
    }
}

/// A token made with these wishes.
fn token(cluster: &Cluster, wish: &Value) -> String {
    cluster.change("POST", "/api/v1/tokens", Some(wish))["token"].as_str().unwrap().to_owned()
}

/// A slave of a folder of its own that joins with this token.
fn joining(cluster: &Cluster, folder: &str, id: &str, token: &str) -> Process {
    let mut command = cluster.slave_command(&Place::Here, folder, id, token);
    command.arg("--stop-on-stdin-close");
    Process::start(folder, command)
}

#[test]
fn a_token_is_worthless_after_its_uses_and_its_time() {
    let cluster = Cluster::start();
    let once = token(&cluster, &json!({}));
    let _first = joining(&cluster, "first", "pi-1", &once);
    cluster.wait_until_online("pi-1");
    let thief = run(cluster.slave_command(&Place::Here, "thief", "pi-2", &once));
    assert_eq!(thief.code, Some(1));
    assert!(thief.err.contains("used up"), "{}", thief.err);

    let brief = token(&cluster, &json!({"ttl": "1s", "uses": 9}));
    let count = || cluster.get("/api/v1/tokens").as_array().unwrap().iter().filter(|t| t["uses_left"] == 9).count();
    assert_eq!(count(), 1);
    let late = wait_for("the token's time is over", || {
        let tried = run(cluster.slave_command(&Place::Here, "late", "pi-1", &brief));
        tried.err.contains("expired").then_some(tried)
    });
    assert_eq!(late.code, Some(1));
    let bound = token(&cluster, &json!({"id": "pi-7"}));
    let other = run(cluster.slave_command(&Place::Here, "other", "pi-8", &bound));
    assert!(other.err.contains("pi-7"), "{}", other.err);
    assert_eq!(cluster.get("/api/v1/slaves").as_array().unwrap().len(), 1, "only the first has come");
}

#[test]
fn two_cards_cloned_from_one_image_are_told_apart_on_both_sides() {
    let cluster = Cluster::start();
    let original = cluster.online_slave("pi-1");
    let session = cluster.view("pi-1")["session"].clone();
    let clone = run(cluster.slave_command(&Place::Here, "clone", "pi-1", &token(&cluster, &json!({}))));
    assert_eq!(clone.code, Some(1));
    assert!(clone.err.contains("taken by another machine") && clone.err.contains("--id"), "{}", clone.err);
    wait_until("the master's log says so", || {
        cluster.master.err().iter().any(|line| line.contains("taken by another machine"))
    });
    assert_eq!((&cluster.view("pi-1")["state"], &cluster.view("pi-1")["session"]), (&json!("online"), &session));

    // A new card in the place of the old one.
    let replace = token(&cluster, &json!({"id": "pi-1", "replace": true}));
    let _new = joining(&cluster, "new-card", "pi-1", &replace);
    wait_until("the new one is there", || cluster.is_online("pi-1") && cluster.view("pi-1")["session"] != session);
    wait_until("the old one says why it is not", || {
        original.err().iter().any(|line| line.contains("does not know this slave by its secret"))
    });
}

#[test]
fn a_removed_slave_is_out_at_once_and_for_good_until_it_joins_anew() {
    let cluster = Cluster::start();
    let slave = cluster.online_slave("pi-1");
    let bystander = cluster.online_slave("pi-2");
    let removed = Instant::now();
    cluster.change("DELETE", "/api/v1/slaves/pi-1", None);
    within(removed, BACKOFF_MAX, "it says why it is out", || {
        slave.err().iter().any(|line| line.contains("removed there"))
    });
    assert!(cluster.view("pi-1").is_null(), "nothing of it is left");
    assert_eq!(retained(&cluster, "rpicluster/from/pi-1/state"), None);
    drop(slave);
    std::fs::remove_file(cluster.slave_folder("pi-1").join("identity.json")).unwrap();
    let _again = cluster.online_slave("pi-1");
    assert!(cluster.is_online("pi-2"));
    drop(bystander);
}

#[test]
fn a_state_folder_that_others_can_read_is_an_error_with_its_cure() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o750)).unwrap();
    let any = free_address();
    let mut command = rpicluster(&Place::Here);
    command.args(["master", "--mqtt", &any, "--mqtts", &any, "--http", &any, "--state-dir"]).arg(&state);
    let refused = run(command);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains(&format!("chmod 700 {}", state.display())), "{}", refused.err);
}
