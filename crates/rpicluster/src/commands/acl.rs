//! `rpicluster acl`: what a broker that others run must be told.

use rpicluster_protocol::Acl;

use crate::cli::{AclArgs, AclFormat};
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// The master's account, unless the configuration names another.
const MASTER: &str = "master";

/// Prints rules, and how to make the accounts.
///
/// # Errors
/// If the configuration is wrong, or holds a name that cannot be written in a rule.
pub(crate) fn run(args: &AclArgs) -> Result<(), Failure> {
    let cluster = load(args.config.as_deref(), None)?.file.cluster;
    let master = cluster.user.as_deref().unwrap_or(MASTER);
    let acl = Acl { root: &cluster.topic_root, master, slaves: &args.slaves };
    let rules = match args.format {
        AclFormat::Mosquitto => acl.mosquitto(),
        AclFormat::Emqx => acl.emqx(),
    };
    let rules = rules.map_err(|error| Failure::new(Exit::Configuration, format!("[cluster]: {error}")))?;
    print_line(rules.trim_end())
}
