//! All long-lived tasks: the first that ends unexpectedly ends the master.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use rpicluster_broker::RouterStopped;
use tokio::task::{Id, JoinError, JoinSet};

/// Why a running master stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The broker cannot go on.
    #[error("the broker failed: {0}")]
    Broker(#[from] RouterStopped),
    /// A part of the master panicked.
    #[error("the master's {task} failed: {problem}; please report this as a bug")]
    Failed {
        /// Which part.
        task: &'static str,
        /// What it said.
        problem: String,
    },
    /// A part of the master that never ends has ended.
    #[error("the master's {0} ended unexpectedly; please report this as a bug")]
    Ended(&'static str),
    /// Some parts did not end when the master was stopped.
    #[error("the master did not stop within {} s: still running: {parts}", .limit.as_secs())]
    Stuck {
        /// How long they had.
        limit: Duration,
        /// Their names.
        parts: String,
    },
}

/// See the module. Dropping it ends all tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    tasks: JoinSet<Result<(), RunError>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task.
    pub(crate) fn spawn<E: Into<RunError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) });
        self.names.insert(handle.id(), name);
    }

    /// Starts a task on a thread of its own.
    pub(crate) fn spawn_thread(
        &mut self,
        name: &'static str,
        task: impl FnOnce() -> Result<(), RunError> + Send + 'static,
    ) {
        let handle = self.tasks.spawn_blocking(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends while none should. Cancel safe.
    pub(crate) async fn failure(&mut self) -> RunError {
        match self.next().await {
            Some((name, Ok(()))) => RunError::Ended(name),
            Some((_, Err(error))) => error,
            // Without any task there is nobody whose end could be waited for.
            None => std::future::pending().await,
        }
    }

    /// Waits until only the task `last` still runs, or none.
    ///
    /// # Errors
    /// The first error with which a task ended, or the names of those that are left when `limit` is over.
    pub(crate) async fn finish(&mut self, last: Option<&'static str>, limit: Duration) -> Result<(), RunError> {
        let result = tokio::time::timeout(limit, async {
            let mut first = Ok(());
            while self.names.values().any(|name| Some(*name) != last) {
                let Some((_, result)) = self.next().await else { break };
                first = first.and(result);
            }
            first
        });
        let result = result.await;
        result.unwrap_or_else(|_| {
            let mut parts: Vec<&str> = self.names.values().copied().filter(|name| Some(*name) != last).collect();
            parts.sort_unstable();
            Err(RunError::Stuck { limit, parts: parts.join(", ") })
        })
    }

    async fn next(&mut self) -> Option<(&'static str, Result<(), RunError>)> {
        let ended = self.tasks.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or("task");
        let failed = |error: JoinError| Err(RunError::Failed { task: name, problem: error.to_string() });
        Some((name, ended.map_or_else(failed, |(_, result)| result)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn for_ever() -> Result<(), RunError> {
        std::future::pending().await
    }

    #[tokio::test]
    async fn whoever_ends_first_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("bus", for_ever());
        tasks.spawn("web", async { Ok::<(), RunError>(()) });
        assert!(matches!(tasks.failure().await, RunError::Ended("web")));
        tasks.spawn_thread("engine", || panic!("no such row"));
        let error = tasks.failure().await.to_string();
        assert!(error.contains("engine") && error.contains("no such row"), "{error}");
    }

    #[tokio::test]
    async fn a_broker_whose_router_died_ends_the_master_with_its_error() {
        let mut tasks = Tasks::default();
        tasks.spawn("bus", for_ever());
        tasks.spawn("broker", async { Err::<(), _>(RouterStopped) });
        let error = tasks.failure().await.to_string();
        assert!(error.starts_with("the broker failed: the broker's router has stopped"), "{error}");
    }

    #[tokio::test]
    async fn stopping_waits_for_all_but_the_last() {
        let mut tasks = Tasks::default();
        tasks.spawn("broker", for_ever());
        tasks.spawn("web", async { Ok::<(), RunError>(()) });
        tasks.finish(Some("broker"), LONG).await.unwrap();
        let error = tasks.finish(None, Duration::from_millis(1)).await.unwrap_err().to_string();
        assert!(error.contains("broker"), "{error}");
    }
}
