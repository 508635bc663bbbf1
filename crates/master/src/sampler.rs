//! Keeps the figures of the master's own machine fresh, so that no answer waits for a measurement.

use std::sync::Arc;
use std::time::Duration;

use rpicluster_machine::Sampler;
use rpicluster_protocol::Details;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::tasks::RunError;

/// How old the CPU figure may be.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// One sample.
pub(crate) fn sample(sampler: &mut Sampler) -> Arc<Details> {
    // The CPU figure of the details is that of the newest vitals.
    sampler.vitals();
    Arc::new(Details { agent_version: Some(crate::VERSION.to_owned()), ..sampler.details() })
}

/// Samples until `stop` turns true.
///
/// # Errors
/// If a measurement panicked.
pub(crate) async fn run(
    mut sampler: Sampler,
    machine: watch::Sender<Arc<Details>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
        let sampling = tokio::task::spawn_blocking(move || {
            let details = sample(&mut sampler);
            (sampler, details)
        });
        let failed = |error: tokio::task::JoinError| RunError::Failed { task: "sampler", problem: error.to_string() };
        let details;
        (sampler, details) = sampling.await.map_err(failed)?;
        machine.send_replace(details);
    }
}
