//! The commands, one in each file.

mod account;
mod acl;
mod api_token;
mod check_config;
mod demo;
mod health;
mod install;
mod master;
mod slave;
mod slaves;
mod token;

use clap::CommandFactory;
use clap_complete::Shell;

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
        Command::Token(args) => token::run(args),
        Command::Account(args) => account::run(args),
        Command::ApiToken(args) => api_token::run(args),
        Command::Acl(args) => acl::run(&args),
        Command::Health(args) => health::run(args),
        Command::Install(args) => install::run(args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    // Into memory first: the generator panics if its output goes away.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rpicluster", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end())
}
