//! The commands, one in each file.

mod account;
mod acl;
mod api_token;
mod backup;
mod check_config;
mod demo;
mod health;
mod install;
mod jobs;
mod master;
mod slave;
mod slaves;
mod token;

use clap::CommandFactory;
use clap_complete::Shell;
use rpicluster_protocol::Action;

use crate::cli::{Cli, Command};
use crate::exit::Failure;
use crate::output::print_line;

/// Runs one command to its end.
///
/// # Errors
/// Says what is wrong, with the exit code.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Master(args) => master::run(args),
        Command::Slave(args) => slave::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Slaves(args) => slaves::run(args),
        Command::Run(args) => jobs::run(args),
        Command::Map(args) => jobs::map(args),
        Command::Submit(args) => jobs::submit(args),
        Command::Jobs(args) => jobs::jobs(args),
        Command::Logs(args) => jobs::logs(args),
        Command::Cancel(args) => jobs::cancel(args),
        Command::Retry(args) => jobs::retry(args),
        Command::Ping(args) => jobs::action(Action::Ping, args),
        Command::Reboot(args) => jobs::action(Action::Reboot, args),
        Command::Shutdown(args) => jobs::action(Action::Shutdown, args),
        Command::OsUpgrade(args) => jobs::action(Action::OsUpgrade, args),
        Command::Token(args) => token::run(args),
        Command::Account(args) => account::run(args),
        Command::ApiToken(args) => api_token::run(args),
        Command::Acl(args) => acl::run(&args),
        Command::Backup(args) => backup::backup(args),
        Command::Restore(args) => backup::restore(args),
        Command::Health(args) => health::run(args),
        Command::Install(args) => install::run(args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Supervise { arguments } => slave::supervise(&arguments),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    // Into memory first: the generator panics if its output goes away.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rpicluster", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end())
}
