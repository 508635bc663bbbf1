//! What is fuzzed: packets, sequences of one client, sequences of two. Each target takes bytes and panics if something is
//! wrong. `cargo test` runs them on the committed corpus and mutations of it (`corpus.rs`), cargo-fuzz for as long as
//! wanted (`tests/fuzz.sh`).

#![allow(dead_code, reason = "each fuzzer uses one target")]

mod arena;
mod line;
mod script;
#[path = "../common/wire.rs"]
mod wire;

use std::cell::RefCell;

use arbitrary::{Arbitrary as _, Unstructured};

use rpicluster_broker::SlowSubscriber;

use arena::Arena;
use script::Script;

/// Whatever the bytes decode as is the same when encoded and decoded again.
pub fn packet(bytes: &[u8]) {
    rpicluster_broker::fuzzing::packet(bytes);
}

/// One client does what the bytes say to a broker.
pub fn sequence(bytes: &[u8]) {
    play(bytes, 1, SlowSubscriber::Cut);
}

/// Two clients do, at times under the same client id.
pub fn two_clients(bytes: &[u8]) {
    play(bytes, 2, SlowSubscriber::Hold);
}

thread_local! {
    /// One broker serves all runs of a thread, so that what a run leaves behind is found by a later one.
    static ARENA: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

fn play(bytes: &[u8], clients: usize, slow_subscriber: SlowSubscriber) {
    let Ok(script) = Script::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    ARENA.with_borrow_mut(|arena| {
        let arena = arena.get_or_insert_with(|| Arena::new(slow_subscriber));
        arena.play(clients, &script).unwrap_or_else(|failure| panic!("{failure}\n{script:#?}"));
    });
}
