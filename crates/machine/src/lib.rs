//! What this machine is, how it fares, and where secrets lie on it: shared by master and slave.
//!
//! [`Sampler`] gathers, [`identity`](default_slave_id) names. Everything that reads text from the kernel is split in two:
//! a pure function from text to value, and a thin one that reads the file. What a machine does not tell is left out.

mod clock;
mod identity;
mod memory;
mod parse;
mod private;
mod sampler;

pub use clock::boottime;
pub use identity::{boot_id, default_slave_id, host_name};
pub use memory::{give_back_free_pages, keep_no_large_blocks};
pub use private::{PrivateError, create_private_folder, ensure_private_folder, read_private, write_private};
pub use sampler::{Sampler, addresses};
