//! Gathers details and vitals from the kernel, reading only what is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rpicluster_protocol::{Details, Disk, Throttled, Vitals};
use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, Networks, System};

use crate::{identity, parse};

/// More file systems than these are not told: a message has its limit.
const DISKS_MAX: usize = 8;
/// More interfaces than these are not told: a machine with containers has hundreds.
const NETWORKS_MAX: usize = 8;
/// More addresses than these are not told.
const ADDRESSES_MAX: usize = 16;
/// Addresses come and go with DHCP; asking for them more often would cost the master at every `info` request.
const ADDRESSES_AGE_MAX: Duration = Duration::from_secs(60);

const CPUFREQ: &str = "/sys/devices/system/cpu/cpu0/cpufreq";
const THROTTLED: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";
const FIRMWARE_DRIVER: &str = "/sys/bus/platform/drivers/raspberrypi-firmware";
const THERMAL: &str = "/sys/class/thermal";
/// The thermal zones that measure the processor, on a Raspberry Pi and on a PC.
const CPU_ZONES: [&str; 4] = ["cpu-thermal", "cpu_thermal", "soc-thermal", "x86_pkg_temp"];

/// Tells what this machine is and how it fares. One sample takes about half a millisecond and never waits.
#[derive(Debug)]
pub struct Sampler {
    system: System,
    cpu_refreshed: Instant,
    cpu_percentage: Option<f32>,
    temperature_file: Option<PathBuf>,
    throttled_file: Option<PathBuf>,
    /// Gathered at the first request.
    details: Option<Details>,
    addresses_refreshed: Instant,
}

impl Sampler {
    /// A sampler whose first CPU figure is the average since boot.
    pub fn new() -> Sampler {
        // On Linux this cannot fail: sysinfo refuses only operating systems that it does not know.
        let mut system = System::new().expect("sysinfo knows Linux");
        system.refresh_cpu_usage();
        Sampler {
            cpu_percentage: percentage(system.global_cpu_usage()),
            system,
            cpu_refreshed: Instant::now(),
            temperature_file: temperature_file(),
            throttled_file: throttled_file(),
            details: None,
            addresses_refreshed: Instant::now(),
        }
    }

    /// What the machine is: facts gathered once, addresses at most a minute old, and the CPU figure of the last sample.
    ///
    /// `labels` and `agent_version` are the agent's business and stay empty.
    pub fn details(&mut self) -> Details {
        let age = self.addresses_refreshed.elapsed();
        let mut details = match self.details.take() {
            Some(details) if age < ADDRESSES_AGE_MAX => details,
            Some(details) => {
                self.addresses_refreshed = Instant::now();
                Details { addresses: addresses(), ..details }
            }
            None => {
                self.addresses_refreshed = Instant::now();
                self.gather_details()
            }
        };
        details.cpu_percent_used = self.cpu_percentage;
        self.details.insert(details).clone()
    }

    /// How the machine fares now; the CPU figure covers the time since the sample before.
    pub fn vitals(&mut self) -> Vitals {
        self.refresh_cpu();
        self.system.refresh_memory();
        Vitals {
            cpu_percentage: self.cpu_percentage,
            cpu_frequency: cpu_frequency("scaling_cur_freq"),
            ram_free: known(self.system.available_memory()),
            swap_free: known(self.system.total_swap()).map(|_| self.system.free_swap()),
            cpu_temperature: self.temperature_file.as_deref().and_then(|path| parse::celsius(&read(path)?)),
            load: System::load_average().ok().map(|load| [load.one, load.five, load.fifteen].map(|load| load as f32)),
            disks: disks(),
            networks: read("/proc/net/dev").map(|text| parse::networks(&text, NETWORKS_MAX)).unwrap_or_default(),
            uptime: System::uptime().ok(),
            throttled: self.throttled(),
        }
    }

    /// Two samples close together would divide by next to nothing: then the last figure stays.
    fn refresh_cpu(&mut self) {
        if self.cpu_refreshed.elapsed() < MINIMUM_CPU_UPDATE_INTERVAL {
            return;
        }
        self.cpu_refreshed = Instant::now();
        self.system.refresh_cpu_usage();
        self.cpu_percentage = percentage(self.system.global_cpu_usage());
    }

    fn throttled(&self) -> Option<Throttled> {
        self.throttled_file.as_deref().and_then(|path| parse::throttled(&read(path)?))
    }

    fn gather_details(&mut self) -> Details {
        self.system.refresh_memory();
        let cpus = self.system.cpus();
        Details {
            hostname: identity::host_name(),
            ram: known(self.system.total_memory()),
            cpu: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty()),
            cpu_cores: u32::try_from(cpus.len()).ok().filter(|count| *count > 0),
            swap: Some(self.system.total_swap()),
            arch: Some(System::cpu_arch()),
            os: System::long_os_version().ok(),
            kernel: System::kernel_version().ok(),
            model: identity::device_tree("model"),
            serial: identity::board_serial(),
            cpu_frequency_min: cpu_frequency("cpuinfo_min_freq"),
            cpu_frequency_max: cpu_frequency("cpuinfo_max_freq"),
            addresses: addresses(),
            boot_time: System::boot_time().ok(),
            ..Details::default()
        }
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler::new()
    }
}

fn percentage(usage: f32) -> Option<f32> {
    usage.is_finite().then(|| parse::one_decimal(usage))
}

/// A figure of which zero means that the kernel did not tell.
fn known(figure: u64) -> Option<u64> {
    (figure > 0).then_some(figure)
}

fn cpu_frequency(file: &str) -> Option<u32> {
    parse::megahertz(&read(Path::new(CPUFREQ).join(file))?)
}

/// The addresses by which others reach this machine, sorted: neither loopback nor link-local.
pub fn addresses() -> Vec<String> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return Vec::new() };
    let addresses = networks.values().flat_map(|network| network.ip_networks()).map(|network| network.addr);
    parse::reachable(addresses, ADDRESSES_MAX)
}

fn disks() -> Vec<Disk> {
    let mounts = read("/proc/mounts").unwrap_or_default();
    parse::disk_mounts(&mounts, DISKS_MAX).into_iter().filter_map(disk).collect()
}

fn disk(mount: String) -> Option<Disk> {
    let usage = rustix::fs::statvfs(&mount).ok()?;
    let total = known(usage.f_blocks.saturating_mul(usage.f_frsize))?;
    Some(Disk { mount, total, free: usage.f_bavail.saturating_mul(usage.f_frsize) })
}

/// The zone that measures the processor, else the first one that answers.
fn temperature_file() -> Option<PathBuf> {
    let mut zones: Vec<PathBuf> = fs::read_dir(THERMAL).ok()?.flatten().map(|entry| entry.path()).collect();
    zones.retain(|zone| read(zone.join("temp")).is_some_and(|text| parse::celsius(&text).is_some()));
    zones.sort();
    let measures_cpu = |zone: &&PathBuf| read(zone.join("type")).is_some_and(|kind| CPU_ZONES.contains(&kind.trim()));
    zones.iter().find(measures_cpu).or(zones.first()).map(|zone| zone.join("temp"))
}

/// The usual place, else wherever the firmware's driver put it: the path differs between boards and kernels.
fn throttled_file() -> Option<PathBuf> {
    let usual = PathBuf::from(THROTTLED);
    if usual.exists() {
        return Some(usual);
    }
    let devices = fs::read_dir(FIRMWARE_DRIVER).ok()?;
    devices.flatten().map(|device| device.path().join("get_throttled")).find(|path| path.exists())
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_name_this_machine() {
        let mut sampler = Sampler::new();
        let details = sampler.details();
        assert_eq!(details.hostname, identity::host_name());
        assert!(details.ram.unwrap() > 1 << 20);
        assert!(details.cpu_cores.unwrap() >= 1);
        assert!((0.0..=100.0).contains(&details.cpu_percent_used.unwrap()));
        assert_eq!(sampler.details(), details);
    }

    #[test]
    fn details_carry_the_figure_of_the_last_sample() {
        let mut sampler = Sampler::new();
        let started = Instant::now();
        while started.elapsed() <= MINIMUM_CPU_UPDATE_INTERVAL {
            std::hint::spin_loop();
        }
        let vitals = sampler.vitals();
        assert!(vitals.cpu_percentage.unwrap() > 0.0, "one core was busy");
        assert_eq!(sampler.details().cpu_percent_used, vitals.cpu_percentage);
    }

    #[test]
    fn vitals_stay_within_their_bounds() {
        let vitals = Sampler::new().vitals();
        assert!(vitals.ram_free.unwrap() > 0);
        assert!(vitals.uptime.unwrap() > 0);
        assert!(vitals.disks.len() <= DISKS_MAX && vitals.networks.len() <= NETWORKS_MAX);
        assert!(vitals.disks.iter().all(|disk| disk.free <= disk.total));
        assert!(vitals.networks.iter().all(|network| network.name != "lo"));
    }
}
