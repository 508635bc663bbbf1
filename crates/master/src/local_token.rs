//! The token of the API for commands on the master's own machine: a file that only the master's user may read, made anew
//! at each start for which the disk has room.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rpicluster_machine::{PrivateError, read_private, write_private};
use rpicluster_protocol::SlaveSecret;
use subtle::ConstantTimeEq as _;

/// The file's name in the state folder.
const FILE: &str = "api-token";

/// Where commands on this machine find the token of the master with this state folder.
pub fn local_token_file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// See the module.
pub(crate) struct LocalToken(String);

impl LocalToken {
    /// Makes a token of random bits and writes it down. On a full disk that of the last start is kept: a master without
    /// room still serves its slaves.
    ///
    /// # Errors
    /// If the file cannot be written, and holds no token.
    pub(crate) fn make(state_dir: &Path, bits: [u8; 32]) -> Result<LocalToken, PrivateError> {
        let text = SlaveSecret::from_random(bits).to_string();
        let file = local_token_file(state_dir);
        match write_private(&file, &format!("{text}\n")) {
            Ok(()) => Ok(LocalToken(text)),
            Err(PrivateError::Io { cause, .. }) if cause.kind() == ErrorKind::StorageFull => {
                let kept = read_private(&file)?.and_then(|text| text.trim().parse::<SlaveSecret>().ok());
                let kept = kept.ok_or(PrivateError::Io { action: "write", path: file, cause })?;
                tracing::error!("the disk is full: the master starts, and changes nothing until there is room");
                Ok(LocalToken(kept.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this is it, in the same time whatever the difference.
    pub(crate) fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_what_the_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let token = LocalToken::make(folder.path(), [7; 32]).unwrap();
        let text = std::fs::read_to_string(local_token_file(folder.path())).unwrap();
        assert!(token.is(text.trim()) && !token.is("") && !token.is(&text[1..]));
    }
}
