//! Pure functions from the kernel's texts to values. Odd text gives `None` or is skipped; nothing here panics.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rpicluster_protocol::{Network, Throttled};

/// A longer mount point would fill the message for one disk's sake.
const MOUNT_BYTES_MAX: usize = 255;
/// What the host hands into every container: files that look like mounts of its disk.
const CONTAINER_FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The bits of `get_throttled` that hold now; the same bits, 16 higher, have held since boot.
const THROTTLED_WORDS: [&str; 4] = ["under_voltage", "frequency_capped", "throttled", "soft_temperature_limit"];

/// A property of the device tree: text that ends with a NUL.
pub(crate) fn device_tree_text(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

/// The line `Serial : 10000000abcdef01` of `/proc/cpuinfo`.
pub(crate) fn cpuinfo_serial(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "Serial" && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

/// The last four hex digits of a serial number; none of one that is all zeros, which many boards share.
pub(crate) fn last_hex_digits(serial: &str) -> Option<[u8; 2]> {
    let digits = serial.trim();
    if digits.bytes().all(|digit| digit == b'0') {
        return None;
    }
    let tail = digits.get(digits.len().checked_sub(4)?..)?;
    if !tail.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(tail, 16).ok().map(u16::to_be_bytes)
}

/// The last two bytes of the first MAC address, by interface name, that its maker gave: those that software makes up (of
/// bridges, containers, virtual machines) change or repeat.
pub(crate) fn first_universal_mac(addresses: &[(String, String)]) -> Option<[u8; 2]> {
    let mut universal: Vec<_> = addresses
        .iter()
        .filter_map(|(name, address)| Some((name, mac(address)?)))
        .filter(|(_, mac)| *mac != [0; 6] && mac[0] & 0b11 == 0)
        .collect();
    universal.sort();
    universal.first().map(|(_, mac)| [mac[4], mac[5]])
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// The firmware's word on power and heat: hexadecimal, with or without `0x`, or as `vcgencmd` prints it.
pub(crate) fn throttled(text: &str) -> Option<Throttled> {
    let text = text.trim();
    let text = text.strip_prefix("throttled=").unwrap_or(text);
    let bits = u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()?;
    let words = |shift: usize| {
        let set = THROTTLED_WORDS.iter().enumerate().filter(|(bit, _)| bits >> (bit + shift) & 1 == 1);
        set.map(|(_, word)| (*word).to_owned()).collect()
    };
    Some(Throttled { now: words(0), since_boot: words(16), source: "firmware".to_owned() })
}

/// MHz from a file of `cpufreq`, which tells kHz.
pub(crate) fn megahertz(kilohertz: &str) -> Option<u32> {
    let kilohertz: u32 = kilohertz.trim().parse().ok()?;
    (kilohertz > 0).then_some(kilohertz / 1000)
}

/// °C, to one decimal, from a thermal zone, which tells thousandths.
pub(crate) fn celsius(millicelsius: &str) -> Option<f32> {
    let millicelsius: i32 = millicelsius.trim().parse().ok()?;
    // A sensor that is not there answers with absurd figures.
    (-100_000..200_000).contains(&millicelsius).then(|| one_decimal(millicelsius as f32 / 1000.0))
}

/// Rounded to one decimal: more would claim a precision that nobody has.
pub(crate) fn one_decimal(value: f32) -> f32 {
    (value * 10.0).round() / 10.0
}

/// The mount points of real disks from `/proc/mounts`: the shortest for each device, in the order of first mention.
///
/// Network and user-space file systems are not asked how full they are: an unreachable server would block the caller.
pub(crate) fn disk_mounts(mounts: &str, count_max: usize) -> Vec<String> {
    let mut order = Vec::new();
    let mut shortest: BTreeMap<&str, String> = BTreeMap::new();
    for line in mounts.lines() {
        let mut fields = line.split_whitespace();
        let (Some(device), Some(mount), Some(kind)) = (fields.next(), fields.next(), fields.next()) else { continue };
        // A loop device is a file on a disk that is listed already.
        let real = device.starts_with("/dev/") && !device.starts_with("/dev/loop") && !kind.starts_with("fuse");
        if !real || mount.len() > MOUNT_BYTES_MAX || CONTAINER_FILES.contains(&mount) {
            continue;
        }
        let mount = unescape(mount);
        match shortest.get_mut(device) {
            Some(known) if known.len() <= mount.len() => {}
            Some(known) => *known = mount,
            None => {
                order.push(device);
                shortest.insert(device, mount);
            }
        }
    }
    order.into_iter().filter_map(|device| shortest.remove(device)).take(count_max).collect()
}

/// `/proc/mounts` writes blanks and backslashes as three octal digits.
fn unescape(mount: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(mount.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// The counters of `/proc/net/dev` without loopback, in the kernel's order, which has the built-in interfaces first.
pub(crate) fn networks(net_dev: &str, count_max: usize) -> Vec<Network> {
    let network = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let mut counters = counters.split_whitespace();
        let received = counters.next()?.parse().ok()?;
        // Bytes sent are the ninth column, after eight about receiving.
        let transmitted = counters.nth(7)?.parse().ok()?;
        Some(Network { name: name.trim().to_owned(), received, transmitted })
    };
    net_dev.lines().filter_map(network).filter(|network| network.name != "lo").take(count_max).collect()
}

/// The addresses by which others reach the machine, sorted: neither loopback nor link-local.
pub(crate) fn reachable(addresses: impl IntoIterator<Item = IpAddr>, count_max: usize) -> Vec<String> {
    let local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    };
    let mut addresses: Vec<IpAddr> = addresses.into_iter().filter(|address| !local(address)).collect();
    addresses.sort();
    addresses.dedup();
    addresses.into_iter().take(count_max).map(|address| address.to_string()).collect()
}

#[cfg(test)]
mod tests;
