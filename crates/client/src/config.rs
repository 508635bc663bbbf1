//! The `[cluster]` section of `rpicluster.toml`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rpicluster_protocol::TopicRoot;
use serde::{Deserialize, Serialize};

use crate::address::BrokerAddress;
use crate::connection::{Connection, Login};
use crate::tls::{ClientCertificate, TlsSetupError, Trust};

/// No certificate, key or password is larger; a named device or pipe must not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// MQTT's limit of a user name and of a password.
const MQTT_STRING_BYTES_MAX: usize = 65_535;
/// Reading or writing by everybody on the machine.
const OPEN_TO_OTHERS: u32 = 0o007;

/// What masters and slaves must agree on: `[cluster]` of `rpicluster.toml`. Every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The first levels of every topic: `rpicluster`.
    pub topic_root: TopicRoot,
    /// A broker that others run. By default the master runs one itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerAddress>,
    /// The user name there; with a password and no user name a slave uses its id, a master `master`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
    /// A file that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The CA of the broker's certificate as PEM; by default the CAs that the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A certificate to show there, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// Its private key as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
}

/// A password of a configuration. `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster.{key}: {problem}")]
pub struct ConfigError {
    /// The key below `[cluster]`.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl ClusterConfig {
    /// Checks what the types alone cannot, without reading the files that it names.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let set = [
            ("user", self.user.is_some()),
            ("password", self.password.is_some()),
            ("password_file", self.password_file.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("client_certificate", self.client_certificate.is_some()),
            ("client_key", self.client_key.is_some()),
        ];
        let first_set = |keys: &[&str]| set.iter().find(|(key, set)| *set && keys.contains(key)).map(|(key, _)| *key);
        let Some(broker) = &self.broker else {
            let all = set.map(|(key, _)| key);
            return first_set(&all)
                .map_or(Ok(()), |key| Err(refused(key, "is for a broker of your own: set cluster.broker")));
        };
        if !broker.is_tls()
            && let Some(key) = first_set(&["ca_file", "client_certificate", "client_key"])
        {
            return Err(refused(key, "is for TLS: write cluster.broker with mqtts://, or leave this out"));
        }
        if self.password.is_some() && self.password_file.is_some() {
            return Err(refused("password_file", "excludes cluster.password: leave one of them out"));
        }
        match (&self.client_certificate, &self.client_key) {
            (Some(_), None) => return Err(refused("client_certificate", "needs its key: set cluster.client_key")),
            (None, Some(_)) => {
                return Err(refused("client_key", "needs its certificate: set cluster.client_certificate"));
            }
            _ => {}
        }
        let lengths =
            [("user", self.user.as_deref()), ("password", self.password.as_ref().map(|password| &*password.0))];
        let fits = |text: &str| (1..=MQTT_STRING_BYTES_MAX).contains(&text.len());
        let odd = lengths.into_iter().find(|(_, text)| text.is_some_and(|text| !fits(text)));
        odd.map_or(Ok(()), |(key, _)| Err(refused(key, "must have 1 to 65535 bytes: leave the key out for none")))
    }

    /// How to connect to the broker that others run; `None` if there is none. Reads the files that it names.
    ///
    /// # Errors
    /// Names the key whose value or file cannot be used.
    pub fn connection(&self) -> Result<Option<Connection>, ConfigError> {
        self.validate()?;
        let Some(broker) = self.broker.clone() else { return Ok(None) };
        let trust = match &self.ca_file {
            Some(path) => Trust::Ca(read("ca_file", path, File::open(path))?),
            None => Trust::System,
        };
        let client = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate {
                certificates: read("client_certificate", certificate, File::open(certificate))?,
                key: read("client_key", key, open_secret(key))?,
            }),
            _ => None,
        };
        let connection = Connection::new(broker, &trust, client.as_ref()).map_err(|error| {
            let key = match error {
                TlsSetupError::Ca | TlsSetupError::System => "ca_file",
                TlsSetupError::ClientCertificate(_) => "client_certificate",
                TlsSetupError::Other(_) => "broker",
            };
            refused(key, &error.to_string())
        })?;
        let password = self.password()?;
        if self.user.is_none() && password.is_none() {
            return Ok(Some(connection));
        }
        let login = Login { user: self.user.clone().unwrap_or_default(), password: password.unwrap_or_default() };
        Ok(Some(connection.with_login(login)))
    }

    fn password(&self) -> Result<Option<String>, ConfigError> {
        let Some(path) = &self.password_file else { return Ok(self.password.clone().map(|password| password.0)) };
        let key = "password_file";
        let text = String::from_utf8(read(key, path, open_secret(path))?).map_err(|_| refused(key, "is not UTF-8"))?;
        // An editor ends the line; a password may end with a space.
        let password = text.trim_end_matches(['\r', '\n']);
        match password.len() {
            1..=MQTT_STRING_BYTES_MAX => Ok(Some(password.to_owned())),
            _ => Err(refused(key, "must hold 1 to 65535 bytes")),
        }
    }
}

fn read(key: &'static str, path: &Path, file: io::Result<File>) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(size) if size as u64 <= FILE_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(refused(key, &format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()))),
        Err(error) => Err(refused(key, &format!("cannot read {}: {error}", path.display()))),
    }
}

/// Opens a file that nobody else may read.
fn open_secret(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & OPEN_TO_OTHERS == 0 {
        return Ok(file);
    }
    Err(io::Error::other(format!("every user of this machine may read or change it: chmod 600 {}", path.display())))
}

fn refused(key: &'static str, problem: &str) -> ConfigError {
    ConfigError { key, problem: problem.to_owned() }
}

impl From<String> for Password {
    fn from(text: String) -> Password {
        Password(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests;
