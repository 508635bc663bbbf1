//! The token of the API for commands on the master's own machine: a file that only the master's user may read, made anew
//! at each start.

use std::path::{Path, PathBuf};

use rpicluster_machine::{PrivateError, write_private};
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
    /// Makes a token of random bits and writes it down.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn make(state_dir: &Path, bits: [u8; 32]) -> Result<LocalToken, PrivateError> {
        let text = SlaveSecret::from_random(bits).to_string();
        write_private(&local_token_file(state_dir), &format!("{text}\n"))?;
        Ok(LocalToken(text))
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
