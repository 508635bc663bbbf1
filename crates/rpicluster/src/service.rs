//! What systemd is told of a service: ready, alive, stopping. Where it did not start the process, nothing happens.

use std::convert::Infallible;
use std::future::{self, Future};
use std::io;

use rustix::fs::fstat;
use sd_notify::NotifyState;
use tokio::select;
use tokio::time::{self, MissedTickBehavior};

/// Where systemd tells which device and inode a service's output goes to, as `8:1234`.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";
/// A watchdog is fed this many times in its time.
const FEEDS: u32 = 3;

/// Says that the service is ready, and runs it to its end; meanwhile the watchdog is fed for as long as `is_beating`.
pub(crate) async fn supervised<T>(run: impl Future<Output = T>, is_beating: impl Fn() -> bool) -> T {
    say(NotifyState::Ready);
    select! {
        result = run => result,
        never = feed_watchdog(is_beating) => match never {},
    }
}

async fn feed_watchdog(is_beating: impl Fn() -> bool) -> Infallible {
    let Some(time) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) else {
        return future::pending().await;
    };
    let mut turns = time::interval(time / FEEDS);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if is_beating() {
            say(NotifyState::Watchdog);
        }
    }
}

/// Completes with `shutdown`, having said so.
pub(crate) async fn stopping_after(shutdown: impl Future<Output = ()>) {
    shutdown.await;
    say(NotifyState::Stopping);
}

/// Whether what is written to standard error ends in the journal, which notes the time itself.
pub(crate) fn journal_reads_stderr() -> bool {
    let Ok(stream) = std::env::var(JOURNAL_VARIABLE) else { return false };
    // The variable is inherited by those whose output goes elsewhere: only the numbers tell.
    fstat(io::stderr()).is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

fn say(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told how this service fares");
    }
}
