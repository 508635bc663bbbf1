//! Waiting for conditions, and how long tests may last.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How long anything may take whose promptness is not the claim: many tests share few cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a long test lasts unless `SOAK` says otherwise.
const SOAK_DEFAULT: Duration = Duration::from_secs(15);

/// Heavy tests run alone, so that those that measure promptness measure the product and not the neighbours.
static TURN: RwLock<()> = RwLock::new(());

/// For a test that claims promptness: no heavy test runs while the guard lives.
pub(crate) fn timed() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that uses all cores: no other heavy and no timed test runs while the guard lives.
pub(crate) fn heavy() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// The length of long tests: `SOAK=30s`, by default 15 s.
pub(crate) fn soak() -> Duration {
    match std::env::var("SOAK") {
        Ok(text) => humantime::parse_duration(&text).unwrap_or_else(|error| panic!("SOAK={text}: {error}")),
        Err(_) => SOAK_DEFAULT,
    }
}

/// Prints a measured figure, which `soak.sh` collects.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display, unit: &str) {
    println!("figure: {name}: {value} {unit}");
}

/// Waits for `condition`, with patience.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()))
}

/// Waits until `look` finds something, with patience.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(Instant::now(), PATIENCE, look).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Fails unless `condition` holds within `bound` after `event`; tells how long it took.
pub(crate) fn within(event: Instant, bound: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    poll(event, bound, || condition().then(|| event.elapsed()))
        .unwrap_or_else(|| panic!("not within {bound:?} after the event: {what}"))
}

/// Looks again and again until something is found, or `limit` after `from` is over.
pub(crate) fn poll<T>(from: Instant, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        let started = from.elapsed();
        if let Some(found) = look() {
            return Some(found);
        }
        if started > limit {
            return None;
        }
        std::thread::sleep(POLL);
    }
}
