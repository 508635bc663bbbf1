//! What rpicluster decides, apart from all that it does.
//!
//! This crate does no I/O, reads no clock, spawns nothing and draws no random number: time is an argument, inputs go in,
//! effects come out. So every rule of presence, of tasks and of a slave's journal can be tested in microseconds, and a
//! failure replays.

pub mod journal;
mod moment;
mod presence;
mod target;
pub mod tasks;

pub use moment::Moment;
pub use presence::{Effect, Input, NO_STATE, Presence, RESTORED, Record, SILENT};
pub use target::{Target, TargetError};
