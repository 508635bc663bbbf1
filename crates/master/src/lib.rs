//! The master: an MQTT broker, a handler task for each slave, one engine that decides, a store that remembers, and HTTP.
//!
//! A message goes from the broker's link through the bus to its slave's handler, which answers at once and tells the engine
//! what matters for presence. The engine's effects go to the store, to the view that HTTP reads, and back to the slaves.

mod access;
mod backup;
mod board;
mod bus;
mod certificates;
mod clock;
mod commands;
mod config;
mod counters;
mod engine;
mod front;
mod handler;
mod health;
mod letters;
mod local_token;
mod loglimit;
mod mailbox;
mod memory;
mod outbox;
mod own_state;
mod publish;
mod remote;
mod sampler;
mod shown;
mod slave_list;
mod source;
mod start;
mod store;
mod tasks;
mod view;
mod web;

/// What a fuzzer may do. Never in the product.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::access::fuzzing::{access, login};
}

pub use backup::{BackedUp, BackupError, Restored, backup, restore};
pub use certificates::ca_file;
pub use config::MasterConfig;
pub use health::Pulse;
pub use local_token::local_token_file;
pub use start::{Master, Settings, StartError};
pub use store::StoreError;
pub use tasks::RunError;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
