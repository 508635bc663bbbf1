//! `rpicluster slave`: the agent, until it is told to stop.

mod way_in;

use std::ffi::OsString;

use anyhow::Context;
use rpicluster_slave::{Agent, Slave, SlaveConfig, SlaveError, SuperviseError, SupervisorCommand};

use self::way_in::WayIn;
use crate::cli::SlaveArgs;
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::output::announce_line;
use crate::{log, service, signals};

/// Runs the agent.
///
/// # Errors
/// If the configuration is wrong, the slave has no way in, the master refuses to let it join, or something of this machine
/// fails. Never because of the network.
pub(crate) fn run(args: SlaveArgs) -> Result<(), Failure> {
    let file = load(args.config.as_deref(), None)?.file;
    let _log = log::start(&file.log, "slave")?;
    let way_in = WayIn::find(&file.cluster, file.slave.master.clone(), &args, |name| std::env::var(name).ok())?;
    let stop_on_stdin_close = args.stop.stop_on_stdin_close;
    let config = SlaveConfig {
        master: way_in.master,
        id: args.id.or(file.slave.id),
        state_dir: args.state_dir.unwrap_or(file.slave.state_dir),
        ..file.slave
    };

    let status_socket = config.status_socket();
    let slave = match (Slave::new(config, file.cluster.topic_root, way_in.access, Agent::new()), way_in.bad_token) {
        // Only to a slave that has not joined does its token matter.
        (Err(SlaveError::NotJoined), Some(failure)) => return Err(failure),
        (slave, bad_token) => {
            if let Some(failure) = bad_token {
                tracing::warn!("the token cannot be used, and is not needed: {failure}");
            }
            slave.map_err(slave_failure)?.with_status_socket(status_socket).with_tasks(supervisor())
        }
    };
    announce_line(&format!("slave: id {}, master {}", slave.id(), slave.status().borrow().master));

    // One thread: an agent waits nearly always, and should be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let shutdown = signals::shutdown(stop_on_stdin_close).context("cannot watch for signals")?;
        let pulse = slave.pulse();
        let run = slave.run(service::stopping_after(shutdown));
        service::supervised(run, || pulse.is_beating()).await.map_err(slave_failure)
    })
}

/// This program itself, also when its file has been replaced meanwhile.
fn supervisor() -> SupervisorCommand {
    SupervisorCommand { program: "/proc/self/exe".into(), arguments: vec!["__supervise".into()] }
}

/// Runs the supervisor that an agent has started.
///
/// # Errors
/// If nobody has, or the system refuses.
pub(crate) fn supervise(arguments: &[OsString]) -> Result<(), Failure> {
    rpicluster_slave::supervise(arguments).map_err(|error| {
        let exit = if matches!(error, SuperviseError::NotForPeople(_)) { Exit::Usage } else { Exit::Failed };
        Failure::new(exit, error.to_string())
    })
}

fn slave_failure(error: SlaveError) -> Failure {
    let (exit, advice) = match error {
        SlaveError::Config(_) | SlaveError::Identity(_) | SlaveError::NotJoined | SlaveError::Plain(_) => {
            (Exit::Configuration, "")
        }
        SlaveError::StatusSocket { .. } | SlaveError::Tasks(_) => {
            (Exit::Failed, "; name another folder with --state-dir")
        }
        SlaveError::Refused { .. } | SlaveError::Untrusted(_) | SlaveError::Random(_) => (Exit::Failed, ""),
    };
    Failure::new(exit, format!("slave: {error}{advice}"))
}
