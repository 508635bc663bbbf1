//! `rpicluster health`: for people, and for supervisors that look at the exit code.

use crate::cli::{HealthArgs, Role, UrlArgs};
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;
use crate::text::Escaped;

/// Asks the master or this machine's slave.
///
/// # Errors
/// [`Exit::Unreachable`] if no master answers; [`Exit::Failed`] if who answers is not well, or no slave runs here.
pub(crate) fn run(args: HealthArgs) -> Result<(), Failure> {
    match args.role {
        Role::Master => master(args.master),
        Role::Slave => slave(args),
    }
}

fn master(args: UrlArgs) -> Result<(), Failure> {
    let url = args.url.clone();
    let answer = MasterClient::new(args)?.get("/healthz")?;
    match answer.status {
        200 => print_line(&format!("master at {url} is well")),
        status => {
            let problem = answer.problem();
            Err(Failure::new(Exit::Failed, format!("master at {url} is not well (status {status}): {problem}")))
        }
    }
}

fn slave(args: HealthArgs) -> Result<(), Failure> {
    let mut config = load(args.master.config.as_deref(), None)?.file.slave;
    if let Some(state_dir) = args.master.state_dir {
        config.state_dir = state_dir;
    }
    let path = config.status_socket();
    let failed = |problem: String| Failure::new(Exit::Failed, problem);
    let status = rpicluster_slave::query_status(&path).map_err(|error| {
        let path = path.display();
        failed(format!("no slave answers at {path} ({error}): is it running? name its folder with --state-dir"))
    })?;
    let master = Escaped(&status.master);
    match (status.connected, status.master_info_received) {
        (true, true) => {
            print_line(&format!("slave {} is well: connected to {master} since {}", status.id, status.since))
        }
        (true, false) => Err(failed(format!("slave {}: connected to {master}, but no master has answered", status.id))),
        (false, _) => {
            let problem = status.problem.map(|problem| format!(": {}", Escaped(problem))).unwrap_or_default();
            Err(failed(format!("slave {}: not connected to {master} since {}{problem}", status.id, status.since)))
        }
    }
}
