//! Who a slave is to its master: the file that holds its secret.

use std::path::{Path, PathBuf};

use rpicluster_client::{BrokerAddress, Connection, Login, PinnedCa, Trust};
use rpicluster_machine::{PrivateError, create_private_folder, read_private, write_private};
use rpicluster_protocol::{JoinToken, SlaveId, SlaveSecret};
use serde::{Deserialize, Serialize};

/// Its name in the slave's state folder.
const FILE: &str = "identity.json";

/// A slave's id with the secret that proves it, as kept in its file. Without `Debug`: it holds the secret.
pub(crate) struct Identity {
    pub(crate) id: SlaveId,
    secret: SlaveSecret,
    /// Whether the master has said yes to it. Before that it is kept so that a repeated try bears the same secret.
    pub(crate) joined: bool,
    /// The master's CA as PEM; unknown if it was joined without TLS.
    ca: Option<String>,
    path: PathBuf,
}

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system says no, or others may read the secret or replace the file.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// What is in the file is no identity.
    #[error("{0} is damaged ({problem}): restore it, or remove it and join with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, without repeating it.
        problem: String,
    },
    /// The configuration names another id.
    #[error(
        "{0} is the identity of slave {stored}, but this slave is to be {wanted}: leave out slave.id and --id to stay \
         {stored}; to become {wanted}, remove the file and join with a new token",
        path.display()
    )]
    OtherId {
        /// The file.
        path: PathBuf,
        /// The id in it.
        stored: SlaveId,
        /// The id in the configuration.
        wanted: SlaveId,
    },
    /// It was joined without TLS, so it does not know the master's CA.
    #[error("{0} knows no CA, because the slave joined without TLS: remove it and join with a new token", path.display())]
    NoCa {
        /// The file.
        path: PathBuf,
    },
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: SlaveId,
    secret: String,
    joined: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

impl Identity {
    /// A new one, with a secret made now; not yet kept.
    pub(crate) fn new(id: SlaveId, state_dir: &Path) -> Result<Identity, getrandom::Error> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits)?;
        let secret = SlaveSecret::from_random(bits);
        Ok(Identity { id, secret, joined: false, ca: None, path: state_dir.join(FILE) })
    }

    /// The one in the state folder, if there is one.
    pub(crate) fn load(state_dir: &Path) -> Result<Option<Identity>, IdentityError> {
        let path = state_dir.join(FILE);
        let Some(text) = read_private(&path)? else { return Ok(None) };
        let damaged = |problem| IdentityError::Damaged { path: path.clone(), problem };
        // The parser's own words could repeat the secret.
        let stored: Stored = serde_json::from_str(&text)
            .map_err(|error| damaged(format!("line {}, column {}", error.line(), error.column())))?;
        let secret = stored.secret.parse().map_err(|_| damaged("its secret".to_owned()))?;
        Ok(Some(Identity { id: stored.id, secret, joined: stored.joined, ca: stored.ca, path }))
    }

    /// Keeps it: afterwards the file holds the old or the new one, whatever happens.
    pub(crate) fn store(&self) -> Result<(), IdentityError> {
        if let Some(folder) = self.path.parent() {
            create_private_folder(folder)?;
        }
        let stored =
            Stored { id: self.id.clone(), secret: self.secret.to_string(), joined: self.joined, ca: self.ca.clone() };
        // Strings and a flag: nothing of it can fail to be JSON.
        let text = serde_json::to_string_pretty(&stored).unwrap_or_default();
        Ok(write_private(&self.path, &format!("{text}\n"))?)
    }

    /// Notes that the master has said yes, and its CA.
    pub(crate) fn set_joined(&mut self, ca: Option<String>) {
        self.joined = true;
        self.ca = ca;
    }

    /// Where it is kept.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it belongs to the master that `token` is from, as far as that is known.
    pub(crate) fn is_of_master(&self, token: &JoinToken) -> bool {
        self.ca.as_ref().is_none_or(|ca| PinnedCa::new(token.ca_fingerprint).is_in(ca.as_bytes()))
    }

    /// How it connects to `address`, once it has joined.
    pub(crate) fn connection(&self, address: &BrokerAddress) -> Result<Connection, IdentityError> {
        let path = || self.path.clone();
        let trust = match &self.ca {
            Some(ca) => Trust::Ca(ca.clone().into_bytes()),
            None if address.is_tls() => return Err(IdentityError::NoCa { path: path() }),
            None => Trust::System,
        };
        let connection = Connection::new(address.clone(), &trust, None)
            .map_err(|error| IdentityError::Damaged { path: path(), problem: format!("its CA {error}") })?;
        Ok(connection.with_login(Login { user: self.id.to_string(), password: self.secret.to_string() }))
    }

    /// The password of the CONNECT that joins.
    pub(crate) fn enrolment_password(&self, token: &JoinToken) -> String {
        format!("{token}:{}", self.secret)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn stored(folder: &Path) -> Identity {
        let identity = Identity::new("pi-7".parse().unwrap(), folder).unwrap();
        identity.store().unwrap();
        identity
    }

    #[test]
    fn it_is_kept_for_its_owner_only_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("a/state");
        assert!(Identity::load(&state_dir).unwrap().is_none());
        let mut identity = stored(&state_dir);
        assert_eq!((mode(&state_dir), mode(identity.path())), (0o700, 0o600));
        identity.set_joined(Some("CA".to_owned()));
        // What a crash left behind is no obstacle.
        fs::write(identity.path().with_extension("new"), "half").unwrap();
        identity.store().unwrap();
        let found = Identity::load(&state_dir).unwrap().unwrap();
        assert!(found.secret == identity.secret && found.id == identity.id && found.joined);
        assert_eq!(found.ca.as_deref(), Some("CA"));
        assert_eq!(fs::read_dir(&state_dir).unwrap().count(), 1);
        let other = Identity::new("pi-7".parse().unwrap(), &state_dir).unwrap();
        assert!(other.secret != found.secret);
    }

    #[test]
    fn one_that_others_can_reach_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = stored(folder.path()).path().to_owned();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let refusal = || Identity::load(folder.path()).err().unwrap().to_string();
        for mode in [0o640, 0o604, 0o620, 0o777] {
            set(&path, mode);
            assert!(refusal().ends_with(&format!("chmod 600 {}", path.display())), "{}", refusal());
        }
        set(&path, 0o600);
        set(folder.path(), 0o757);
        assert!(refusal().ends_with(&format!("chmod 755 {}", folder.path().display())), "{}", refusal());
        set(folder.path(), 0o755);
        assert!(Identity::load(folder.path()).unwrap().is_some());
    }

    #[test]
    fn a_damaged_one_is_named_and_nothing_of_it_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let identity = stored(folder.path());
        for text in ["", "\"hunter2\"", "{\"id\":\"hunter2", r#"{"id":"pi-7","joined":true,"secret":"hunter2"}"#] {
            fs::write(identity.path(), text).unwrap();
            let error = Identity::load(folder.path()).err().unwrap().to_string();
            assert!(error.contains("is damaged") && !error.contains("hunter2"), "{error}");
        }
    }
}
