//! Folders and files for their owner alone: where secrets lie.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Longer than any key, chain or identity: a named device must not fill the memory.
const BYTES_MAX: u64 = 1024 * 1024;

/// Why a private folder or file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The system refuses.
    #[error("cannot {action} {}: {cause}", .path.display())]
    Io {
        /// What was tried, as in `read`.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Others may look into it.
    #[error("{path} is too open to other users (mode {mode:04o}), and secrets lie there: chmod {wanted:o} {path}", path = .path.display())]
    TooOpen {
        /// The folder or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
}

/// Makes a folder for its owner alone; one that exists must be that already.
///
/// # Errors
/// If it cannot be made or others may look into it.
pub fn ensure_private_folder(path: &Path) -> Result<(), PrivateError> {
    make_folder(path)?;
    check(path, 0o077, 0o700)
}

/// Makes a folder for its owner alone; in one that exists others must not be able to replace files.
///
/// # Errors
/// If it cannot be made or others may write to it.
pub fn create_private_folder(path: &Path) -> Result<(), PrivateError> {
    make_folder(path)?;
    check(path, 0o002, 0o755)
}

fn make_folder(path: &Path) -> Result<(), PrivateError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| PrivateError::Io { action: "make the folder", path: path.to_owned(), cause })
}

/// Reads a file that only its owner may read, in a folder where only he may replace it; `None` if there is none.
///
/// # Errors
/// If it cannot be read, or others may read or replace it too.
pub fn read_private(path: &Path) -> Result<Option<String>, PrivateError> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => {
            check(path, 0o077, 0o600)?;
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                check(folder, 0o002, 0o755)?;
            }
            Ok(Some(text))
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(PrivateError::Io { action: "read", path: path.to_owned(), cause }),
    }
}

/// Writes a file that only its owner may read, in the place of what was there: after a crash it holds the old text or the
/// new one, and once this returns the new one.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), PrivateError> {
    let beside = path.with_extension("new");
    let written = (|| {
        // What a crash left there may have another mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    })();
    written.map_err(|cause| PrivateError::Io { action: "write", path: path.to_owned(), cause })
}

/// Refuses what has any of the `forbidden` bits in its mode.
fn check(path: &Path, forbidden: u32, wanted: u32) -> Result<(), PrivateError> {
    let metadata =
        fs::metadata(path).map_err(|cause| PrivateError::Io { action: "read", path: path.to_owned(), cause })?;
    let mode = metadata.permissions().mode() & 0o7777;
    // In a folder like /tmp everybody may write, and nobody replace what is another's.
    let forbidden = if mode & 0o1000 != 0 && metadata.is_dir() { forbidden & !0o002 } else { forbidden };
    if mode & forbidden != 0 {
        return Err(PrivateError::TooOpen { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("a/b");
        ensure_private_folder(&private).unwrap();
        assert_eq!(mode(&private), 0o700);
        let file = private.join("secret");
        assert_eq!(read_private(&file).unwrap(), None);
        fs::write(private.join("secret.new"), "left by a crash").unwrap();
        write_private(&file, "1").unwrap();
        write_private(&file, "2").unwrap();
        assert_eq!((read_private(&file).unwrap().as_deref(), mode(&file)), (Some("2"), 0o600));
        assert_eq!(fs::read_dir(&private).unwrap().count(), 1);
    }

    #[test]
    fn what_others_may_read_is_refused_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        write_private(&file, "1").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_private(&file).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.ends_with(&format!("chmod 600 {}", file.display())), "{error}");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = ensure_private_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("mode 0755") && error.contains("chmod 700 "), "{error}");
    }
}
