//! `rpicluster`: a cluster of Raspberry Pis over MQTT, as one program. It holds no logic of the cluster: arguments,
//! configuration, output and exit codes only.

mod cli;
mod commands;
mod config;
mod exit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod log;
mod output;
mod screen;
mod service;
mod signals;
mod table;
mod text;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::Cli;
use exit::Exit;

/// Does what the arguments of this process say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; if they cannot be printed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    match commands::run(cli.command) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                // If standard error is closed too, the exit code still tells.
                let _ = writeln!(io::stderr(), "rpicluster: {failure}");
            }
            failure.exit.into()
        }
    }
}
