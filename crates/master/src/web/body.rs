//! Answers that are made while they are sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Frame;
use rpicluster_core::Moment;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock;
use crate::store::StoreError;

/// How many portions are made ahead of the connection.
const PORTIONS_MAX: usize = 4;

/// Where a body is made.
pub(super) type Portions = mpsc::Sender<Result<Bytes, StoreError>>;

/// Shows that the answer on a connection still makes its way: then it may take its time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lifeline(Arc<AtomicU64>);

struct Stream {
    portions: mpsc::Receiver<Result<Bytes, StoreError>>,
    maker: JoinHandle<()>,
    lifeline: Lifeline,
}

/// A body of what `make` sends; whoever makes it ends with the connection.
pub(super) fn streamed<F: Future<Output = ()> + Send + 'static>(
    lifeline: Lifeline,
    make: impl FnOnce(Portions) -> F,
) -> Body {
    let (sender, portions) = mpsc::channel(PORTIONS_MAX);
    let maker = tokio::spawn(make(sender));
    lifeline.beat();
    Body::new(Stream { portions, maker, lifeline })
}

impl Lifeline {
    /// For how long yet an answer that is being streamed may stand still; nothing if it stood still for `limit`, or there
    /// is none.
    pub(super) fn left(&self, limit: Duration) -> Option<Duration> {
        let at = self.0.load(Ordering::Relaxed);
        let still = clock::now().since(Moment::from_millis(at));
        (at > 0 && still < limit).then(|| limit - still)
    }

    fn beat(&self) {
        self.0.store(clock::now().as_millis().max(1), Ordering::Relaxed);
    }
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        // The connection asks only when it has room for more.
        self.lifeline.beat();
        self.portions.poll_recv(context).map(|portion| portion.map(|portion| portion.map(Frame::data)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.maker.abort();
        self.lifeline.0.store(0, Ordering::Relaxed);
    }
}
