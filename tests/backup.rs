use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::harness::mosquitto::tool_at;
use crate::harness::{Cluster, Finished, Place, rpicluster, run, wait_until};

/// `rpicluster backup` or `restore`, on the state folder of this cluster's master.
fn on_state(cluster: &Cluster, arguments: &[&str], file: &Path) -> Finished {
    let mut command = rpicluster(&Place::Here);
    command.args(arguments).arg(file).arg("--state-dir").arg(cluster.master_folder());
    command.arg("--config").arg(cluster.config());
    run(command)
}

/// Names and contents of a state folder's files.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(&path).unwrap_or_default())).collect();
    files.sort();
    files
}

#[test]
fn a_head_that_is_lost_comes_back_from_a_backup_and_no_slave_joins_anew() {
    let mut cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("head.tar");
    let slaves = ["pi-1", "pi-2"].map(|id| cluster.online_slave(id));
    let api_token = cluster.change("POST", "/api/v1/api-tokens", Some(&json!({ "name": "robot" })))["token"].clone();

    // The backup is taken while slaves enrol; those that had been answered before are in it.
    let (is_over, enrolled) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (before, backup) = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0..).take_while(|_| !is_over.load(Ordering::SeqCst)) {
                cluster.change("POST", "/api/v1/slaves", Some(&json!({ "id": format!("load-{number}") })));
                enrolled.fetch_add(1, Ordering::SeqCst);
            }
        });
        wait_until("slaves enrol", || enrolled.load(Ordering::SeqCst) >= 10);
        let before = enrolled.load(Ordering::SeqCst);
        let backup = on_state(&cluster, &["backup"], &file);
        is_over.store(true, Ordering::SeqCst);
        (before, backup)
    });
    assert_eq!(backup.code, Some(0), "{}", backup.err);
    assert!(backup.out.contains("who has it is the master"), "{}", backup.out);

    cluster.master.kill();
    fs::remove_dir_all(cluster.master_folder()).unwrap();
    let restored = on_state(&cluster, &["restore"], &file);
    assert_eq!(restored.code, Some(0), "{}", restored.err);
    let told = restored.out.split_once(": ").unwrap().1.split_once(" slaves, 1 account, 1 API token").unwrap().0;
    let count: usize = told.parse().unwrap();
    assert!((slaves.len() + before..=slaves.len() + enrolled.into_inner() + 1).contains(&count), "{}", restored.out);

    cluster.restart();
    for id in ["pi-1", "pi-2"] {
        cluster.wait_until_online(id);
    }
    let mut publish = tool_at(cluster.place(), cluster.mqtt, "mosquitto_pub");
    publish.args(["-t", "a/b", "-m", "hello"]);
    assert_eq!(run(publish).code, Some(0), "the account has its password");
    let mut remote = rpicluster(&Place::Here);
    remote.args(["token", "create", "--json", "--url", &cluster.url(), "--state-dir", "/nowhere"]);
    remote.env("RPICLUSTER_API_TOKEN", api_token.as_str().unwrap());
    let made = run(remote);
    assert_eq!(made.code, Some(0), "the API token opens what it did: {}", made.err);
    assert_eq!(
        cluster.get("/api/v1/tokens").as_array().unwrap().len(),
        1,
        "of tokens for joining there are new ones only"
    );
}

#[test]
fn what_cannot_be_backed_up_or_restored_says_why_and_changes_nothing() {
    let mut cluster = Cluster::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("head.tar");
    assert_eq!(on_state(&cluster, &["backup"], &file).code, Some(0));
    let whole = fs::read(&file).unwrap();
    let again = on_state(&cluster, &["backup"], &file);
    assert!(again.code == Some(1) && again.err.contains("--force"), "{}", again.err);
    assert_eq!(fs::read(&file).unwrap(), whole);
    assert_eq!(on_state(&cluster, &["backup", "--force"], &file).code, Some(0));

    let running = on_state(&cluster, &["restore", "--force"], &file);
    assert!(running.code == Some(1) && running.err.contains("another master uses"), "{}", running.err);
    assert_eq!(cluster.get("/api/v1/accounts").as_array().unwrap().len(), 1, "it goes on");

    cluster.master.kill();
    let before = files(&cluster.master_folder());
    let occupied = on_state(&cluster, &["restore"], &file);
    assert!(occupied.code == Some(1) && occupied.err.contains("--force"), "{}", occupied.err);
    let cut = folder.path().join("cut.tar");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let mut damaged = whole;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let scratched = folder.path().join("scratched.tar");
    fs::write(&scratched, damaged).unwrap();
    fs::write(folder.path().join("notes.txt"), "hello").unwrap();
    let foreign = folder.path().join("foreign.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&foreign).arg("-C").arg(folder.path()).arg("notes.txt");
    assert_eq!(run(tar).code, Some(0));
    for (file, problem) in [(cut, "cut short"), (scratched, "damaged"), (foreign, "notes.txt")] {
        let refused = on_state(&cluster, &["restore", "--force"], &file);
        assert!(refused.code == Some(1) && refused.err.contains(problem), "{problem}: {}", refused.err);
        assert!(refused.err.contains(file.to_str().unwrap()), "{}", refused.err);
    }
    assert_eq!(files(&cluster.master_folder()), before);

    let aside = on_state(&cluster, &["restore", "--force"], &file);
    assert_eq!(aside.code, Some(0), "{}", aside.err);
    assert!(aside.out.contains("before-restore-"), "{}", aside.out);
    cluster.restart();
    assert_eq!(cluster.get("/api/v1/accounts").as_array().unwrap().len(), 1);
}

#[test]
fn ones_own_certificate_is_named_as_not_in_the_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (state, config) = (folder.path().join("state"), folder.path().join("rpicluster.toml"));
    let cluster = Cluster::start();
    fs::write(&config, "[master]\ntls_certificate = \"/etc/my.pem\"\ntls_key = \"/etc/my.key\"\n").unwrap();
    let mut backup = rpicluster(&Place::Here);
    backup.arg("backup").arg(folder.path().join("x.tar")).arg("--config").arg(&config);
    backup.arg("--state-dir").arg(cluster.master_folder());
    let backup = run(backup);
    assert!(backup.code == Some(0) && backup.out.contains("/etc/my.pem"), "{} {}", backup.out, backup.err);
    let mut nothing = rpicluster(&Place::Here);
    nothing.arg("backup").arg(folder.path().join("y.tar")).arg("--state-dir").arg(&state);
    let nothing = run(nothing);
    assert!(nothing.code == Some(1) && nothing.err.contains("no master's state"), "{}", nothing.err);
    assert!(!state.exists());
}
