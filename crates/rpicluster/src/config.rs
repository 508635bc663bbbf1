//! The configuration: `rpicluster.toml`, `broker.toml`, then the environment. Every setting has a default.

mod layers;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rpicluster_broker::BrokerConfig;
use rpicluster_client::ClusterConfig;
use rpicluster_master::MasterConfig;
use rpicluster_slave::SlaveConfig;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::log::LogConfig;
pub(crate) use layers::Invalid;
#[cfg(feature = "fuzzing")]
pub(crate) use layers::known_keys;
use layers::{Variable, load_layers, variables};

/// Where files are looked for, the first wins: the working directory, then the system's.
const FOLDERS: [&str; 2] = ["", "/etc/rpicluster"];
/// The settings of master, slave and log.
pub(crate) const CLUSTER_FILE: &str = "rpicluster.toml";
/// The settings of the broker.
pub(crate) const BROKER_FILE: &str = "broker.toml";

/// `rpicluster.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterFile {
    /// What masters and slaves must agree on.
    pub(crate) cluster: ClusterConfig,
    /// The master's settings.
    pub(crate) master: MasterConfig,
    /// The slave's settings.
    pub(crate) slave: SlaveConfig,
    /// Both logs.
    pub(crate) log: LogConfig,
}

/// The whole configuration and where it came from.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// `rpicluster.toml` with the environment on top.
    pub(crate) file: ClusterFile,
    /// `broker.toml` with the environment on top.
    pub(crate) broker: BrokerConfig,
    /// The files that were read.
    pub(crate) sources: Sources,
}

/// The files of a configuration; `None` where there is none.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sources {
    /// `rpicluster.toml`
    pub(crate) cluster: Option<PathBuf>,
    /// `broker.toml`
    pub(crate) broker: Option<PathBuf>,
}

/// Reads the configuration. `config` and `broker_config` name files instead of the usual places; beside a named
/// `rpicluster.toml`, `broker.toml` is looked for.
///
/// # Errors
/// Names file or environment variable, key, and what would be valid.
pub(crate) fn load(config: Option<&Path>, broker_config: Option<&Path>) -> Result<Configuration, Failure> {
    let sources = Sources::find(&FOLDERS.map(Path::new), config, broker_config);
    read(sources, std::env::vars_os())
}

/// Reads what these sources say, with `environment` on top.
///
/// # Errors
/// As [`load`].
pub(crate) fn read(
    sources: Sources,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Configuration, Failure> {
    let (broker, cluster): (Vec<Variable>, Vec<Variable>) =
        variables(environment)?.into_iter().partition(Variable::is_of_broker);
    let broker = broker.into_iter().map(Variable::without_section).collect();
    Ok(Configuration {
        file: load_layers(sources.cluster.as_deref(), cluster, ClusterFile::validate)?,
        broker: load_layers(sources.broker.as_deref(), broker, validate_broker)?,
        sources,
    })
}

impl ClusterFile {
    fn validate(&self) -> Result<(), Invalid> {
        let cluster = |error: rpicluster_client::ConfigError| Invalid {
            key: format!("cluster.{}", error.key),
            problem: error.problem,
        };
        self.cluster.validate().map_err(cluster)?;
        if self.cluster.broker.is_some() && self.slave.master != SlaveConfig::default().master {
            let problem = "excludes cluster.broker, which is for slaves too: leave one of them out".to_owned();
            return Err(Invalid { key: "slave.master".to_owned(), problem });
        }
        self.master.check().map_err(|sentence| {
            // The master's sentence begins with the key.
            let (key, problem) = sentence.split_once(' ').unwrap_or(("master", &sentence));
            Invalid { key: key.to_owned(), problem: problem.to_owned() }
        })?;
        let slave = |error: rpicluster_slave::ConfigError| Invalid {
            key: format!("slave.{}", error.key),
            problem: error.problem,
        };
        self.slave.validate().map_err(slave)?;
        self.log.validate()
    }
}

fn validate_broker(broker: &BrokerConfig) -> Result<(), Invalid> {
    broker.validate().map_err(|error| Invalid {
        problem: format!("{} cannot be used: must be {}", error.value, error.must_be),
        key: error.key,
    })
}

impl Sources {
    fn find(folders: &[&Path], config: Option<&Path>, broker_config: Option<&Path>) -> Sources {
        let in_folders = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let broker = match (broker_config, config) {
            (Some(named), _) => Some(named.to_owned()),
            (None, Some(config)) => Some(config.with_file_name(BROKER_FILE)).filter(|path| path.is_file()),
            (None, None) => in_folders(BROKER_FILE),
        };
        Sources { cluster: config.map(Path::to_owned).or_else(|| in_folders(CLUSTER_FILE)), broker }
    }
}

#[cfg(test)]
mod tests;
