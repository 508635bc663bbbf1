//! `rpicluster check-config`: reads everything that a start would read.

use std::path::Path;

use crate::cli::CheckConfigArgs;
use crate::config::{BROKER_FILE, CLUSTER_FILE, load};
use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// Prints which files are used and that they are right.
///
/// # Errors
/// Names file or environment variable, key, and what would be valid.
pub(crate) fn run(args: &CheckConfigArgs) -> Result<(), Failure> {
    let configuration = load(args.config.as_deref(), args.broker_config.as_deref())?;
    configuration.file.cluster.connection().map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    let sources = configuration.sources;
    for (name, path) in [(CLUSTER_FILE, sources.cluster), (BROKER_FILE, sources.broker)] {
        print_line(&verdict(name, path.as_deref()))?;
    }
    Ok(())
}

fn verdict(name: &str, path: Option<&Path>) -> String {
    match path {
        Some(path) => format!("{name}: {} is valid", path.display()),
        None => format!("{name}: not found, every setting has its default"),
    }
}
