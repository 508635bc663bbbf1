//! The section `[master]` of `rpicluster.toml`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rpicluster_protocol::limits::PRESENCE_TIMEOUT;
use serde::{Deserialize, Serialize};

use crate::certificates;

/// `[master]`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasterConfig {
    /// Where HTTP is served: `127.0.0.1:8080`. Port 0 takes a free one.
    pub http: SocketAddr,
    /// Whether this machine may read over HTTP without a token: `true`. Changes, and others, always need one.
    pub http_open: bool,
    /// The folder of the master's store: `/var/lib/rpicluster`. Two masters cannot share it.
    pub state_dir: PathBuf,
    /// A slave of which nothing came for this long is offline: `15s`, at least one second.
    #[serde(with = "humantime_serde")]
    pub presence_timeout: Duration,
    /// How many slaves may be known, offline ones included: 10,000. Further client ids are refused and counted.
    pub slaves_max: usize,
    /// How many ended jobs are kept, with their tasks and output: 10,000. The oldest ended go first.
    pub jobs_max: usize,
    /// How many bytes of tasks' output are kept in all: 1 GiB. That of the jobs that ended first goes first, never that of
    /// jobs that have not ended.
    pub output_bytes_max: u64,
    /// Further names and addresses under which slaves and browsers reach the master, for its certificate. The machine's own
    /// are in it anyway.
    pub tls_names: Vec<String>,
    /// One's own certificate, a PEM file whose last certificate is the one to trust; with `tls_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// The key to `tls_certificate`, a PEM file that only its owner may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Default for MasterConfig {
    fn default() -> Self {
        MasterConfig {
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            http_open: true,
            state_dir: PathBuf::from("/var/lib/rpicluster"),
            presence_timeout: PRESENCE_TIMEOUT,
            slaves_max: 10_000,
            jobs_max: 10_000,
            output_bytes_max: 1024 * 1024 * 1024,
            tls_names: Vec::new(),
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl MasterConfig {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The sentence names the key and the values that are possible.
    pub fn check(&self) -> Result<(), String> {
        if self.presence_timeout < Duration::from_secs(1) {
            return Err(String::from(
                "master.presence_timeout is less than one second: slaves speak every few seconds",
            ));
        }
        if self.slaves_max == 0 {
            return Err(String::from("master.slaves_max is 0: at least one slave must be possible"));
        }
        if self.jobs_max == 0 {
            return Err(String::from("master.jobs_max is 0: a job that has ended would be gone before anybody looks"));
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            return Err(String::from("master.tls_certificate and master.tls_key: name both, or neither"));
        }
        if let Some(name) = self.tls_names.iter().find(|name| !certificates::is_name(name)) {
            return Err(format!("master.tls_names: {name:?} is neither a host name nor an IP address"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        assert_eq!(MasterConfig::default().check(), Ok(()));
        let hasty = MasterConfig { presence_timeout: Duration::from_millis(999), ..MasterConfig::default() };
        assert!(hasty.check().unwrap_err().contains("master.presence_timeout"));
        let lonely = MasterConfig { slaves_max: 0, ..MasterConfig::default() };
        assert!(lonely.check().unwrap_err().contains("master.slaves_max"));
        let forgetful = MasterConfig { jobs_max: 0, ..MasterConfig::default() };
        assert!(forgetful.check().unwrap_err().contains("master.jobs_max"));
        let half = MasterConfig { tls_key: Some("key.pem".into()), ..MasterConfig::default() };
        assert!(half.check().unwrap_err().contains("master.tls_certificate"));
        for (name, good) in [("pi.local", true), ("10.0.0.1", true), ("fd00::1", true), ("a b", false), ("", false)] {
            let config = MasterConfig { tls_names: vec![name.into()], ..MasterConfig::default() };
            assert_eq!(config.check().is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn durations_are_written_for_people_and_unknown_keys_are_errors() {
        let written = serde_json::to_value(MasterConfig::default()).unwrap();
        assert_eq!(written["presence_timeout"], "15s");
        assert_eq!(serde_json::from_value::<MasterConfig>(written).unwrap(), MasterConfig::default());
        assert!(serde_json::from_str::<MasterConfig>(r#"{"presence_timeuot": "15s"}"#).is_err());
    }
}
