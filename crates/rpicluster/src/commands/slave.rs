//! `rpicluster slave`: the agent, until it is told to stop.

use anyhow::Context;
use rpicluster_slave::{Agent, Slave, SlaveConfig, SlaveError};

use crate::cli::SlaveArgs;
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::output::announce_line;
use crate::{log, signals};

/// Runs the agent.
///
/// # Errors
/// If the configuration is wrong, or something of this machine fails. Never because of the network.
pub(crate) fn run(args: SlaveArgs) -> Result<(), Failure> {
    let file = load(args.config.as_deref(), None)?.file;
    let stop_on_stdin_close = args.stop.stop_on_stdin_close;
    let config = with_flags(file.slave, args);
    let _log = log::start(&file.log, "slave")?;

    let master = config.master.to_string();
    let status_socket = config.status_socket();
    let slave = Slave::new(config, file.cluster.topic_root, Agent::new())
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?
        .with_status_socket(status_socket);
    announce_line(&format!("slave: id {}, master {master}", slave.id()));

    // One thread: an agent waits nearly always, and should be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let shutdown = signals::shutdown(stop_on_stdin_close).context("cannot watch for signals")?;
        slave.run(shutdown).await.map_err(run_failure)
    })
}

fn run_failure(error: SlaveError) -> Failure {
    let advice = match error {
        SlaveError::StatusSocket { .. } => "; name another folder with --state-dir",
        SlaveError::Random(_) => "",
    };
    Failure::new(Exit::Failed, format!("slave: {error}{advice}"))
}

/// Flags win over files and environment.
fn with_flags(config: SlaveConfig, args: SlaveArgs) -> SlaveConfig {
    SlaveConfig {
        master: args.master.unwrap_or(config.master),
        id: args.id.or(config.id),
        state_dir: args.state_dir.unwrap_or(config.state_dir),
        ..config
    }
}
