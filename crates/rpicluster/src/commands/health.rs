//! `rpicluster health`: for people, and for supervisors that look at the exit code.

use serde::Deserialize;

use crate::cli::{HealthArgs, Role, UrlArgs};
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;
use crate::text::Escaped;

/// What the master says of itself, as far as it is looked at.
#[derive(Deserialize)]
struct HealthPage {
    broker: Option<ExternalBroker>,
}

/// How the master's connection to a broker of others fares.
#[derive(Deserialize)]
struct ExternalBroker {
    address: String,
    connected: bool,
    since: String,
    problem: Option<String>,
}

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
    let broker = serde_json::from_str::<HealthPage>(&answer.body).ok().and_then(|page| page.broker);
    match (answer.status, broker) {
        (200, None) => print_line(&format!("master at {url} is well")),
        (200, Some(broker)) => {
            let problem = broker.problem.map(|problem| format!(", but {}", Escaped(problem))).unwrap_or_default();
            let (address, since) = (Escaped(broker.address), Escaped(broker.since));
            print_line(&format!("master at {url} is well: connected to {address} since {since}{problem}"))
        }
        (_, Some(broker)) if !broker.connected => {
            let problem = broker.problem.map(|problem| format!(": {}", Escaped(problem))).unwrap_or_default();
            let (address, since) = (Escaped(broker.address), Escaped(broker.since));
            let message = format!("master at {url}: not connected to {address} since {since}{problem}");
            Err(Failure::new(Exit::Failed, message))
        }
        (status, _) => {
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
