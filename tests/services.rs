use std::fs;
use std::process::Command;

use crate::harness::docker::{Engine, command, docker, skipped, succeeds};
use crate::harness::{Finished, Place, rpicluster, run, wait_until};

/// The image and the container of the machine whose init is systemd.
const MACHINE: &str = "rpicluster-test-systemd";

/// What `install … --print` prints, as path and text.
fn printed(role: &str) -> Vec<(String, String)> {
    let mut install = rpicluster(&Place::Here);
    install.args(["install", role, "--print"]);
    let mut files: Vec<(String, String)> = Vec::new();
    for line in succeeds(install).out.lines() {
        match line.strip_prefix("# /etc/").or(line.strip_prefix("// /etc/")) {
            Some(path) => files.push((format!("/etc/{path}"), String::new())),
            None => files.last_mut().expect("a path comes first").1.extend([line, "\n"]),
        }
    }
    files
}

#[test]
fn both_units_are_valid_and_confined() {
    for (role, exposure_max) in [("master", "30"), ("slave", "50")] {
        let folder = tempfile::tempdir().unwrap();
        let (path, text) = printed(role).remove(0);
        let unit = folder.path().join(path.rsplit('/').next().unwrap());
        fs::write(&unit, text).unwrap();
        let analyze = |arguments: &[&str]| {
            let mut analyze = Command::new("systemd-analyze");
            analyze.args(arguments).arg(&unit);
            succeeds(analyze)
        };
        assert_eq!(analyze(&["verify"]).err, "", "{role}");
        let security = analyze(&["security", "--offline=true", "--threshold", exposure_max]);
        println!("{}", security.out.lines().last().unwrap_or_default());
    }
}

#[test]
fn what_is_installed_is_told_before() {
    let paths = |role| printed(role).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(
        paths("master"),
        ["/etc/systemd/system/rpicluster-master.service", "/etc/sysusers.d/rpicluster-master.conf"]
    );
    let slave = paths("slave");
    assert_eq!(slave[..2], ["/etc/systemd/system/rpicluster-slave.service", "/etc/sysusers.d/rpicluster-slave.conf"]);
    assert_eq!(slave[2..], ["/etc/polkit-1/rules.d/50-rpicluster-slave.rules"]);
}

/// Runs a command on that machine.
fn there(arguments: &[&str]) -> Finished {
    run(command(&[&["exec", MACHINE], arguments].concat()))
}

/// The same, which must succeed: what it prints.
fn done(arguments: &[&str]) -> String {
    let finished = there(arguments);
    assert_eq!(finished.code, Some(0), "{arguments:?}:\n{}{}", finished.out, finished.err);
    finished.out
}

/// A property of a unit, as `systemctl show` tells it.
fn property(unit: &str, name: &str) -> String {
    done(&["systemctl", "show", "--value", "--property", name, unit]).trim().to_owned()
}

#[test]
fn systemd_runs_both_and_restarts_the_one_that_hangs() {
    let Some(mut engine) = Engine::find("services under systemd") else { return };
    engine.systemd_image(MACHINE);
    // An init needs these; a mount of credentials reaches the service only through a shared root.
    let init = "mount --make-rshared / && exec /sbin/init";
    let mut arguments = vec!["run", "--detach", "--name", MACHINE, "--cap-add", "SYS_ADMIN", "--cgroupns", "host"];
    arguments.extend(["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]);
    arguments.extend(["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/tmp:exec"]);
    arguments.extend(["--env", "container=docker", MACHINE, "sh", "-c", init]);
    let started = run(command(&arguments));
    let booted = || ["running", "degraded"].contains(&there(&["systemctl", "is-system-running"]).out.trim());
    if started.code != Some(0) {
        skipped("services under systemd", &format!("this engine runs no init: {}", started.err.trim()));
        return;
    }
    wait_until("systemd has booted", booted);
    docker(&["cp", env!("CARGO_BIN_EXE_rpicluster"), &format!("{MACHINE}:/usr/local/bin/rpicluster")]);

    // As the README says, on one machine.
    done(&["rpicluster", "install", "master"]);
    done(&["systemctl", "enable", "--now", "rpicluster-master"]);
    done(&["rpicluster", "token", "create", "--output", "/root/token"]);
    let token = done(&["cat", "/root/token"]);
    done(&["rpicluster", "install", "slave", "--master", "localhost", "--token", token.trim()]);
    done(&["systemctl", "enable", "--now", "rpicluster-slave"]);
    wait_until("the slave is well", || there(&["rpicluster", "health", "slave"]).code == Some(0));

    // Each is its own user, and needs the token no more.
    for (unit, user) in [("rpicluster-master", "rpicluster"), ("rpicluster-slave", "rpicluster-slave")] {
        let process = property(unit, "MainPID");
        assert_eq!(done(&["stat", "--format", "%U", &format!("/proc/{process}")]).trim(), user);
    }
    done(&["rm", "/etc/rpicluster/token"]);
    done(&["systemctl", "restart", "rpicluster-slave"]);
    wait_until("the slave is well without a token", || there(&["rpicluster", "health", "slave"]).code == Some(0));

    its_tasks_are_another_users_and_may_nothing();
    the_journal_has_one_time_a_line();
    only_the_slaves_agent_may_restart_the_machine();
    for (unit, who) in [("rpicluster-master", "master"), ("rpicluster-slave", "slave")] {
        a_hanging_one_is_restarted(unit);
        wait_until("it is well again", || there(&["rpicluster", "health", who]).code == Some(0));
    }
    // A clean stop is one for the others too.
    done(&["systemctl", "stop", "rpicluster-slave"]);
    let slaves = done(&["rpicluster", "slaves", "--json"]);
    assert!(slaves.contains(r#""reason":"stopped""#), "{slaves}");
    done(&["systemctl", "stop", "rpicluster-master"]);
    assert_eq!(property("rpicluster-master", "Result"), "success");
}

/// Not even what the agent may: to become other users.
fn its_tasks_are_another_users_and_may_nothing() {
    let what = "id -un; grep Cap /proc/self/status; mkdir -m 700 -p a/b && touch a/b/c";
    let told = done(&["rpicluster", "run", "--on", "all", "--wait", "1m", "--", "sh", "-c", what]);
    assert!(told.contains(": rpicluster-task\n"), "{told}");
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        let line = told.lines().find(|line| line.contains(set));
        assert!(line.is_some_and(|line| line.ends_with("\t0000000000000000")), "{told}");
    }
    let left = "find /tmp/systemd-private-*rpicluster-slave*/tmp -mindepth 1";
    wait_until("nothing of it is left", || there(&["sh", "-c", left]).out.is_empty());
    let secret = there(&["rpicluster", "run", "--on", "all", "--", "ls", "/var/lib/rpicluster-slave"]);
    assert_eq!(secret.code, Some(2), "the agent's folder is not its tasks': {}{}", secret.out, secret.err);
}

fn the_journal_has_one_time_a_line() {
    let journal = done(&["journalctl", "--unit", "rpicluster-*", "--output", "cat"]);
    let lines: Vec<&str> = journal.lines().filter(|line| line.contains(" INFO ")).collect();
    assert!(lines.len() > 1 && lines.iter().all(|line| line.starts_with(" INFO ")), "{journal}");
}

/// `systemd-logind` tells over D-Bus whom polkit lets do what.
fn only_the_slaves_agent_may_restart_the_machine() {
    let manager = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
    for (user, answer) in [("rpicluster-slave", "s \"yes\""), ("rpicluster-task", "s \"challenge\"")] {
        for question in ["CanReboot", "CanPowerOff"] {
            let become_user = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "busctl", "call"];
            assert_eq!(done(&[&become_user[..], &manager, &[question]].concat()).trim(), answer, "{user}: {question}");
        }
    }
}

/// With a shorter watchdog than in the unit, to save time.
fn a_hanging_one_is_restarted(unit: &str) {
    let drop_in = format!("/run/systemd/system/{unit}.service.d");
    let write = format!("mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=3\\n' > {drop_in}/watchdog.conf");
    done(&["sh", "-c", &write]);
    done(&["systemctl", "daemon-reload"]);
    done(&["systemctl", "restart", unit]);
    let process = property(unit, "MainPID");
    // It is fed: three times its time pass without a restart.
    std::thread::sleep(std::time::Duration::from_secs(9));
    assert_eq!(property(unit, "MainPID"), process, "{unit} was restarted for nothing");
    done(&["systemctl", "kill", "--signal", "STOP", "--kill-whom", "main", unit]);
    wait_until("systemd has restarted it", || {
        property(unit, "NRestarts") == "1" && property(unit, "ActiveState") == "active"
    });
    let journal = done(&["journalctl", "--unit", unit, "--output", "cat"]);
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}
