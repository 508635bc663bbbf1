//! What this machine is and how it fares: shared by master and slave.
//!
//! [`Sampler`] gathers, [`identity`](default_slave_id) names. Everything that reads text from the kernel is split in two:
//! a pure function from text to value, and a thin one that reads the file. What a machine does not tell is left out.

mod clock;
mod identity;
mod parse;
mod sampler;

pub use clock::boottime;
pub use identity::{boot_id, default_slave_id, host_name};
pub use sampler::Sampler;
