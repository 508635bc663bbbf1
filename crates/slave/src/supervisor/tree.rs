//! Which processes belong to an attempt, as `/proc` tells, and how they are ended.
//!
//! A process belongs to an attempt if it is its first one, bears its mark in the environment it was started with, is in
//! the process group or session of its first one, or descends from one that belongs to it. The supervisor is the reaper
//! of all orphans among them (PR_SET_CHILD_SUBREAPER). What escapes: a process that leaves the group, drops the environment
//! and loses its parents, all three; it is killed when no attempt runs any more, or with the cgroup.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid};

use super::wire::{AGENT_MARK, ATTEMPT_MARK};

/// The longest environment that is searched for a mark.
const ENVIRONMENT_BYTES_MAX: usize = 1024 * 1024;

/// A process that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// In ticks since boot: tells it from another one with its number.
    begun: u64,
}

impl Member {
    pub(crate) fn is_in_group(&self, group: i32) -> bool {
        self.group == group
    }
}

/// All processes.
pub(crate) fn all() -> Vec<Member> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| member(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// One of that number, unless it is a zombie.
fn member(pid: i32) -> Option<Member> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let is_over = matches!(fields.next()?, "Z" | "X" | "x");
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    let begun = fields.nth(15)?.parse().ok()?;
    (!is_over).then_some(Member { pid, parent, group, session, begun })
}

/// Those that belong to an attempt of an agent, by the marks of both, whose first process was `first`.
pub(crate) fn of_attempt(agent: &str, attempt: &str, first: i32) -> Vec<Member> {
    let wanted = [format!("{AGENT_MARK}={agent}"), format!("{ATTEMPT_MARK}={attempt}")];
    with_descendants(|member| {
        member.pid == first || member.group == first || member.session == first || bears(member.pid, &wanted)
    })
}

/// Those that descend from this one, and itself.
pub(crate) fn of_process(first: i32) -> Vec<Member> {
    with_descendants(|member| member.pid == first)
}

/// Those that an agent of this mark has started, in whatever life.
pub(crate) fn of_agent(mark: &str) -> Vec<Member> {
    let wanted = [format!("{AGENT_MARK}={mark}")];
    with_descendants(|member| bears(member.pid, &wanted))
}

fn with_descendants(belongs: impl Fn(&Member) -> bool) -> Vec<Member> {
    let this = getpid().as_raw_nonzero().get();
    let all: Vec<Member> = all().into_iter().filter(|member| member.pid != this).collect();
    let mut children: HashMap<i32, Vec<&Member>> = HashMap::new();
    for member in &all {
        children.entry(member.parent).or_default().push(member);
    }
    let mut found: HashSet<i32> = HashSet::new();
    let mut next: Vec<&Member> = all.iter().filter(|member| belongs(member)).collect();
    let mut members = Vec::new();
    while let Some(member) = next.pop() {
        if found.insert(member.pid) {
            members.push(*member);
            next.extend(children.get(&member.pid).into_iter().flatten());
        }
    }
    members
}

/// Whether a process was started with all of these in its environment.
fn bears(pid: i32, wanted: &[String]) -> bool {
    let holds = |all: &[u8], one: &String| all.split(|byte| *byte == 0).any(|variable| variable == one.as_bytes());
    environment(pid).is_some_and(|all| wanted.iter().all(|one| holds(&all, one)))
}

/// The attempt that a process was started for, as its mark says.
pub(crate) fn attempt_of(pid: i32) -> Option<String> {
    let all = environment(pid)?;
    let mut variables = all.split(|byte| *byte == 0);
    let prefix = format!("{ATTEMPT_MARK}=");
    let mark = variables.find_map(|variable| variable.strip_prefix(prefix.as_bytes()))?;
    String::from_utf8(mark.to_vec()).ok()
}

fn environment(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/environ")).ok().filter(|all| all.len() <= ENVIRONMENT_BYTES_MAX)
}

/// Sends a signal to each, unless its number is another's by now.
pub(crate) fn signal(members: &[Member], signal: Signal) {
    for expected in members {
        let Some(pid) = Pid::from_raw(expected.pid) else { continue };
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if member(expected.pid).is_some_and(|found| found.begun == expected.begun) {
            // It may have ended meanwhile, which is as good.
            let _ = pidfd_send_signal(&descriptor, signal);
        }
    }
}

/// The numbers of this process's children, zombies included.
pub(crate) fn children() -> Vec<i32> {
    let this = getpid().as_raw_nonzero().get();
    // The supervisor has one thread. The file is missing in kernels made without CONFIG_PROC_CHILDREN.
    match fs::read_to_string(format!("/proc/self/task/{this}/children")) {
        Ok(children) => children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        Err(_) => all().into_iter().filter(|member| member.parent == this).map(|member| member.pid).collect(),
    }
}

/// Takes leave of a child that has ended; whether it had.
pub(crate) fn reap(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_)))
}

/// Kills everything in a cgroup (Linux 5.14).
pub(crate) fn kill_cgroup(folder: &Path) {
    // Without one there is nothing in it.
    let _ = fs::write(folder.join("cgroup.kill"), "1");
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_mark_its_group_and_its_parent() {
        let mut child = Command::new("sh")
            .args(["-c", "env -i setsid sleep 60 & read line"])
            .env(AGENT_MARK, "an agent")
            .env(ATTEMPT_MARK, "tree-test")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let first = i32::try_from(child.id()).unwrap();
        let found = loop {
            let found = of_attempt("an agent", "tree-test", -1);
            let is_sleep =
                |member: &Member| fs::read(format!("/proc/{}/comm", member.pid)).is_ok_and(|name| name == b"sleep\n");
            if found.iter().any(is_sleep) {
                // By now it has its own session, which it may not have had when it was found.
                break of_attempt("an agent", "tree-test", -1);
            }
        };
        assert!(found.iter().any(|member| member.pid == first));
        assert_eq!(attempt_of(first).as_deref(), Some("tree-test"));
        assert_eq!(of_attempt("another agent", "tree-test", -1), []);
        assert!(of_process(first).iter().all(|member| found.contains(member)));
        signal(&found, Signal::KILL);
        child.wait().unwrap();
    }
}
