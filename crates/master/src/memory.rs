//! Gives memory back that was needed in a storm and is not any more.

use std::time::Duration;

use rpicluster_machine::give_back_free_pages;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::tasks::RunError;

/// How long freed memory may stay.
const INTERVAL: Duration = Duration::from_secs(20);

/// Looks again and again until `stop` turns true.
///
/// # Errors
/// If a look panicked.
pub(crate) async fn run(mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
        // Elsewhere, because it takes a moment.
        let looking = tokio::task::spawn_blocking(give_back_free_pages);
        looking.await.map_err(|error| RunError::Failed { task: "memory", problem: error.to_string() })?;
    }
}
