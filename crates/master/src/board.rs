//! Jobs that have not ended, as they stand between two looks into the store, and who watches jobs.
//!
//! A watcher subscribes before it looks into the store; the engine tells what it has written. One that reads too slowly is
//! cut: it may look again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rpicluster_protocol::JobId;
use tokio::sync::mpsc;

use crate::store::JobRow;

/// How many watchers there are at most: each may keep [`WATCHER_BYTES_MAX`].
const WATCHERS_MAX: usize = 64;

/// How much waits for one watcher at most: what a second of 10,000 tasks tells.
const WATCHER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How many portions wait for one watcher at most.
const WATCHER_PORTIONS_MAX: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Board {
    live: Mutex<HashMap<JobId, JobRow>>,
    watchers: Mutex<HashMap<JobId, Vec<Watcher>>>,
    count: Arc<AtomicUsize>,
}

/// The engine's end of a subscription.
#[derive(Debug)]
struct Watcher {
    output: bool,
    portions: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// The watcher's own end.
#[derive(Debug)]
pub(crate) struct Watch {
    portions: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    count: Arc<AtomicUsize>,
}

/// What watchers of a job want to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) tasks: bool,
    pub(crate) output: bool,
}

impl Board {
    /// How a job stands that has not ended. Ask this before the store, whose row says how the job ended.
    pub(crate) fn row(&self, job: JobId) -> Option<JobRow> {
        self.live().get(&job).cloned()
    }

    /// How all jobs stand that have not ended.
    pub(crate) fn rows(&self) -> HashMap<JobId, JobRow> {
        self.live().clone()
    }

    /// How a job stands now.
    pub(crate) fn set(&self, row: JobRow) {
        self.live().insert(row.job, row);
    }

    /// A job has ended, and the store says so.
    pub(crate) fn remove(&self, job: JobId) {
        self.live().remove(&job);
    }

    /// Subscribes; nothing if there are too many already.
    pub(crate) fn watch(&self, job: JobId, output: bool) -> Option<Watch> {
        let counted = self
            .count
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count < WATCHERS_MAX).then_some(count + 1));
        counted.ok()?;
        let (sender, portions) = mpsc::channel(WATCHER_PORTIONS_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let watcher = Watcher { output, portions: sender, waiting: waiting.clone() };
        let mut watchers = self.watchers();
        watchers.retain(|_, all| {
            all.retain(|watcher| !watcher.portions.is_closed());
            !all.is_empty()
        });
        watchers.entry(job).or_default().push(watcher);
        Some(Watch { portions, waiting, count: self.count.clone() })
    }

    /// What is worth being made for the watchers of a job.
    pub(crate) fn interest(&self, job: JobId) -> Interest {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Interest::default();
        }
        let watchers = self.watchers();
        let all = watchers.get(&job).map(Vec::as_slice).unwrap_or_default();
        Interest { tasks: !all.is_empty(), output: all.iter().any(|watcher| watcher.output) }
    }

    /// Tells the watchers of a job; `is_last` if nothing can follow.
    pub(crate) fn tell(&self, job: JobId, output: &[u8], others: &[u8], is_last: bool) {
        let mut watchers = self.watchers();
        let Some(all) = watchers.get_mut(&job) else { return };
        let whole = Bytes::from([output, others].concat());
        let without_output = whole.slice(output.len()..);
        all.retain(|watcher| watcher.tell(if watcher.output { &whole } else { &without_output }));
        if is_last || all.is_empty() {
            watchers.remove(&job);
        }
    }

    /// Leaves the watchers of a job to look again: more has happened than is worth being told piece by piece.
    pub(crate) fn cut(&self, job: JobId) {
        self.watchers().remove(&job);
    }

    fn live(&self) -> MutexGuard<'_, HashMap<JobId, JobRow>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<JobId, Vec<Watcher>>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Returns whether it goes on.
    fn tell(&self, portion: &Bytes) -> bool {
        if self.portions.is_closed() {
            return false;
        }
        if portion.is_empty() {
            return true;
        }
        let waiting = self.waiting.fetch_add(portion.len(), Ordering::SeqCst) + portion.len();
        waiting <= WATCHER_BYTES_MAX && self.portions.try_send(portion.clone()).is_ok()
    }
}

impl Watch {
    /// What was told next; nothing at the end. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let portion = self.portions.recv().await?;
        self.waiting.fetch_sub(portion.len(), Ordering::SeqCst);
        Some(portion)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_watches_is_told_in_order_and_who_does_not_read_is_cut() {
        let board = Board::default();
        let job = JobId(1);
        let mut all = board.watch(job, true).unwrap();
        let mut tasks = board.watch(job, false).unwrap();
        let mut lazy = board.watch(job, true).unwrap();
        assert_eq!(board.interest(job), Interest { tasks: true, output: true });
        assert_eq!(board.interest(JobId(2)), Interest::default());
        board.tell(job, b"output", b"tasks", false);
        assert_eq!(all.next().await.unwrap(), "outputtasks");
        assert_eq!(tasks.next().await.unwrap(), "tasks");
        let long = vec![b'x'; WATCHER_BYTES_MAX];
        board.tell(job, &long, b"", false);
        assert_eq!(all.next().await.unwrap().len(), long.len());
        board.tell(job, b"", b"end", true);
        assert_eq!((all.next().await.unwrap(), all.next().await), ("end".into(), None));
        assert_eq!((tasks.next().await.unwrap(), tasks.next().await), ("end".into(), None));
        assert_eq!((lazy.next().await.unwrap(), lazy.next().await), ("outputtasks".into(), None), "it was cut");
    }

    #[test]
    fn watchers_are_bounded_and_places_come_back() {
        let board = Board::default();
        let watches: Vec<Watch> = (0..WATCHERS_MAX).map_while(|_| board.watch(JobId(1), true)).collect();
        assert_eq!(watches.len(), WATCHERS_MAX);
        assert!(board.watch(JobId(2), true).is_none());
        drop(watches);
        assert!(board.watch(JobId(2), true).is_some());
        board.tell(JobId(1), b"", b"x", false);
        assert_eq!(board.interest(JobId(1)), Interest::default(), "who has gone is forgotten");
    }
}
