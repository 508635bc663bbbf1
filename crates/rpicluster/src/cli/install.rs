//! The part of the command line that makes services of master and slave.

use clap::{Args, Subcommand};
use rpicluster_client::BrokerAddress;

use crate::text::Hidden;

/// `rpicluster install`
#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(subcommand)]
    pub(crate) service: Service,
}

/// What `install` installs.
#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// The master: a systemd unit and its user
    Master {
        #[command(flatten)]
        how: HowArgs,
    },
    /// The agent of a slave: a systemd unit, its users, and the right to restart this machine and turn it off
    Slave {
        /// Connect to this master; else slave.master in /etc/rpicluster/rpicluster.toml says
        #[arg(long, value_name = "HOST[:PORT]")]
        master: Option<BrokerAddress>,
        /// Keep this token in /etc/rpicluster/token, for the slave to join with
        #[arg(long, value_name = "TOKEN", conflicts_with = "print")]
        token: Option<Hidden>,
        #[command(flatten)]
        how: HowArgs,
    },
}

/// How it is installed.
#[derive(Debug, Args)]
pub(crate) struct HowArgs {
    /// Print the files instead of writing them
    #[arg(long)]
    pub(crate) print: bool,
}
