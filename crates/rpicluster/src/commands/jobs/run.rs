//! `rpicluster run` and its short forms: the same on every slave that matches.

use rpicluster_protocol::{Action, Work};

use super::fold::Fold;
use super::live::{Json, Live};
use super::submission::{perform, step};
use super::watch::Presenter;
use crate::cli::{ActionArgs, RunArgs};
use crate::exit::Failure;
use crate::http::MasterClient;

/// Runs a command on every slave that matches.
///
/// # Errors
/// As the tasks end; if no master answers or it refuses.
pub(in crate::commands) fn run(args: RunArgs) -> Result<(), Failure> {
    let RunArgs { work, process, fold, command } = args;
    let step = step(Work::Exec { argv: command }, &work, Some(process), None);
    let client = MasterClient::new(work.master.clone())?;
    let presenter: Box<dyn Presenter> = if fold { Box::new(Fold::new(client.clone())) } else { live(work.json) };
    perform(&client, &work, step, vec![presenter])
}

/// Lets every slave that matches do what every slave can.
///
/// # Errors
/// As the tasks end; if no master answers or it refuses.
pub(in crate::commands) fn action(action: Action, args: ActionArgs) -> Result<(), Failure> {
    let ActionArgs { work } = args;
    let step = step(Work::Action { action }, &work, None, None);
    perform(&MasterClient::new(work.master.clone())?, &work, step, vec![live(work.json)])
}

/// Everything as it comes.
pub(super) fn live(json: bool) -> Box<dyn Presenter> {
    if json { Box::new(Json) } else { Box::new(Live::default()) }
}
