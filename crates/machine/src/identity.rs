//! Who this machine is: names that survive a reboot, and one that does not.

use std::fs;
use std::path::Path;

use rpicluster_protocol::SlaveId;
use sysinfo::System;

use crate::parse;

/// Changes with every boot of the machine.
pub fn boot_id() -> Option<String> {
    first_word("/proc/sys/kernel/random/boot_id")
}

/// The machine's host name.
pub fn host_name() -> Option<String> {
    System::host_name().ok().filter(|name| !name.is_empty())
}

/// The id of this machine's slave unless the configuration names another: host name and four hex digits that cloned SD
/// cards do not share.
///
/// The digits are the last of the board's serial number, else of the first MAC address that its maker gave, else of
/// `/etc/machine-id`.
pub fn default_slave_id() -> SlaveId {
    let unique = board_serial()
        .and_then(|serial| parse::last_hex_digits(&serial))
        .or_else(|| parse::first_universal_mac(&mac_addresses()))
        .or_else(|| first_word("/etc/machine-id").and_then(|id| parse::last_hex_digits(&id)))
        .unwrap_or_default();
    SlaveId::from_host(&host_name().unwrap_or_default(), unique)
}

/// The serial number of a board that has one.
pub(crate) fn board_serial() -> Option<String> {
    device_tree("serial-number").or_else(|| {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
        parse::cpuinfo_serial(&cpuinfo)
    })
}

/// What a board says of itself. Containers hide it, but may be given the host's `/sys` elsewhere.
pub(crate) fn device_tree(name: &str) -> Option<String> {
    const FOLDERS: [&str; 2] = ["/proc/device-tree", "/host/sys/firmware/devicetree/base"];
    let text = FOLDERS.iter().find_map(|folder| fs::read_to_string(Path::new(folder).join(name)).ok())?;
    parse::device_tree_text(&text)
}

/// Interface name and MAC address as the kernel prints it.
fn mac_addresses() -> Vec<(String, String)> {
    let Ok(interfaces) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    interfaces
        .flatten()
        .filter_map(|interface| {
            let address = fs::read_to_string(interface.path().join("address")).ok()?;
            Some((interface.file_name().into_string().ok()?, address))
        })
        .collect()
}

fn first_word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_id_is_the_same_every_time() {
        assert_eq!(default_slave_id(), default_slave_id());
    }

    #[test]
    fn the_boot_id_is_a_uuid() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
