//! What waits to be published: bounded, the oldest goes first when there is no connection.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rpicluster_broker::Outgoing;
use tokio::sync::Notify;

use crate::counters::Counter;

/// How many messages wait at most; each has at most 48 KiB, most have a few hundred bytes.
const WAITING_MAX: usize = 1_000;

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
    room: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Outgoing>,
    is_connected: bool,
}

impl Queue {
    /// Appends a message. Waits for room while there is a connection, which makes some; else the oldest is dropped.
    pub(super) async fn push(&self, mut message: Outgoing, dropped: &Counter) {
        loop {
            // Before the look, so that no room made after it is missed.
            let room = self.room.notified();
            match self.try_push(message, dropped) {
                Ok(()) => return,
                Err(refused) => message = refused,
            }
            room.await;
        }
    }

    fn try_push(&self, message: Outgoing, dropped: &Counter) -> Result<(), Outgoing> {
        let mut inner = self.lock();
        if inner.waiting.len() >= WAITING_MAX {
            if inner.is_connected {
                return Err(message);
            }
            inner.waiting.pop_front();
            dropped.count();
        }
        inner.waiting.push_back(message);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the oldest; waits until there is one. Cancel safe.
    pub(super) async fn pop(&self) -> Outgoing {
        loop {
            if let Some(message) = self.try_pop() {
                return message;
            }
            self.filled.notified().await;
        }
    }

    /// Takes the oldest, if there is one.
    pub(super) fn try_pop(&self) -> Option<Outgoing> {
        let message = self.lock().waiting.pop_front();
        if message.is_some() {
            self.room.notify_one();
        }
        message
    }

    /// Whether somebody takes messages out: if not, nobody waits for room.
    pub(super) fn set_connected(&self, is_connected: bool) {
        self.lock().is_connected = is_connected;
        if !is_connected {
            self.room.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
