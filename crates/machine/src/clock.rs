use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since boot, suspend included (CLOCK_BOOTTIME): the clock of every decision, because a Raspberry Pi has no time of
/// day until NTP answers.
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel counts this clock upwards from zero, so neither part can be negative.
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_forward_beside_the_kernels_uptime() {
        let before = boottime();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
        let after = boottime();
        // /proc/uptime is cut to hundredths of a second.
        assert!(before.as_secs_f64() - 0.01 <= uptime && uptime <= after.as_secs_f64());
    }
}
