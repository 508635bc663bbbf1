//! What tests stand on. Everything listens on port 0, lives in temporary folders and ends with its test.

mod cluster;
pub(crate) mod docker;
pub(crate) mod external;
pub(crate) mod fake_master;
pub(crate) mod faults;
pub(crate) mod fleet;
pub(crate) mod mosquitto;
pub(crate) mod mqtt;
mod process;
pub(crate) mod tls;
mod wait;

pub(crate) use cluster::{Cluster, INSIDER, free_address, rpicluster};
pub(crate) use faults::Place;
pub(crate) use process::{Finished, Process, descendants, interruptible, is_running, raise_open_files, run};
pub(crate) use wait::{PATIENCE, figure, heavy, poll, soak, timed, wait_for, wait_until, within};
