//! A process that becomes a task's under another user: its groups, then its ids, then the program itself.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::SuperviseError;
use super::wire::User;

/// How the supervisor's own program is asked for it.
const COMMAND: [&str; 2] = ["__supervise", "as"];

/// What a process needs to become another user's.
const NEEDED: [CapabilitySet; 2] = [CapabilitySet::SETUID, CapabilitySet::SETGID];

/// Whether this process may turn others into those of other users.
pub(crate) fn is_able() -> bool {
    capabilities(None).is_ok_and(|sets| NEEDED.into_iter().all(|needed| sets.effective.contains(needed)))
}

/// Runs `start` so that the process it starts may become another user's, if this one may.
pub(crate) fn enabling<T>(start: impl FnOnce() -> T) -> T {
    for needed in NEEDED {
        // Root needs none of this; who else may not is told by the process that tries.
        let _ = configure_capability_in_ambient_set(needed, true);
    }
    let started = start();
    let _ = clear_ambient_capability_set();
    started
}

/// The arguments before the program and its own.
pub(crate) fn becoming(user: &User) -> Vec<String> {
    let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
    let mut arguments = COMMAND.map(str::to_owned).to_vec();
    arguments.extend([user.uid.to_string(), user.gid.to_string(), format!("[{}]", groups.join(","))]);
    arguments
}

/// Runs the program in this process's place; does not return if it can.
pub(super) fn run(arguments: &[OsString]) -> Result<(), SuperviseError> {
    let unknown = || SuperviseError::NotForPeople(format!("{arguments:?}"));
    let [word, uid, gid, groups, program, rest @ ..] = arguments else { return Err(unknown()) };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u32>().ok());
    let groups: Option<Vec<u32>> = groups.to_str().and_then(|text| serde_json::from_str(text).ok());
    let (Some(uid), Some(gid), Some(groups)) = (number(uid), number(gid), groups) else { return Err(unknown()) };
    if *word != *COMMAND[1] {
        return Err(unknown());
    }
    let failed = |action| move |cause: io::Error| SuperviseError::System { action, cause };
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The kernel knows threads only; this process has one.
    set_thread_groups(&groups).map_err(io::Error::from).map_err(failed("set the groups of another user"))?;
    set_thread_res_gid(gid, gid, gid).map_err(io::Error::from).map_err(failed("set the group of another user"))?;
    set_thread_res_uid(uid, uid, uid).map_err(io::Error::from).map_err(failed("become another user"))?;
    // From one ordinary user to another, the kernel takes nothing away.
    let _ = clear_ambient_capability_set();
    let cause = Command::new(program).args(rest).exec();
    Err(SuperviseError::System { action: "execute the program", cause })
}
