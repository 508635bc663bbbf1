//! Working folders: each attempt has its own, empty when it begins.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::wire::User;

/// For its user alone.
const MODE: u32 = 0o700;
/// Folders that wait for their next attempt at most.
const SPARE_MAX: usize = 64;

/// Folders that were left as empty as they were found, to be given to the next: making and removing one for each attempt
/// would be most of what a short one costs, and wear the disk.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    spare: Vec<OwnFolder>,
}

/// A working folder, and whose it is.
#[derive(Debug)]
pub(crate) struct OwnFolder {
    pub(crate) path: PathBuf,
    user: Option<User>,
}

impl Folders {
    /// An empty folder below `base`, called `name` if it has to be made. What an earlier life left there is removed.
    pub(crate) fn take(&mut self, base: &Path, name: &str, user: Option<&User>) -> io::Result<OwnFolder> {
        if user.is_none()
            && let Some(index) = self.spare.iter().position(|folder| folder.path.parent() == Some(base))
        {
            return Ok(self.spare.swap_remove(index));
        }
        let path = base.join(name);
        let make = || DirBuilder::new().mode(MODE).create(&path);
        make().or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            fs::remove_dir_all(&path)?;
            make()
        })?;
        let folder = OwnFolder { path, user: user.cloned() };
        match folder.give(&folder.path, 0o777) {
            Ok(()) => Ok(folder),
            Err(error) => {
                folder.remove();
                Err(error)
            }
        }
    }

    /// Takes a folder back from an attempt of which nothing runs any more if `is_left`, and keeps it if nobody could tell
    /// it from a new one.
    pub(crate) fn take_back(&mut self, folder: OwnFolder, is_left: bool) {
        if is_left && self.spare.len() < SPARE_MAX && folder.is_as_new() {
            self.spare.push(folder);
        } else {
            folder.remove();
        }
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.spare.iter().for_each(OwnFolder::remove);
    }
}

impl OwnFolder {
    fn is_as_new(&self) -> bool {
        let is_plain = |metadata: fs::Metadata| metadata.is_dir() && metadata.mode() & 0o7777 == MODE;
        self.user.is_none()
            && fs::symlink_metadata(&self.path).is_ok_and(is_plain)
            && fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none())
    }

    /// Makes something in it its user's. An agent that is not root can only open it, to whoever sees the service's own
    /// `/tmp`.
    pub(crate) fn give(&self, path: &Path, else_mode: u32) -> io::Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        chown(path, Some(user.uid), Some(user.gid))
            .or_else(|_| fs::set_permissions(path, Permissions::from_mode(else_mode)))
    }

    /// What cannot be removed now is removed at the agent's next start.
    fn remove(&self) {
        if fs::remove_dir(&self.path).is_ok() || fs::remove_dir_all(&self.path).is_ok() {
            return;
        }
        // What another user has made within, only that user may remove.
        if let Some(user) = &self.user {
            let mut command = Command::new("/proc/self/exe");
            command.args(super::becoming(user)).args(["/bin/rm", "-rf", "--"]).arg(&self.path);
            let _ =
                super::enabling(|| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status());
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_folder_that_was_left_as_it_was_found_is_used_again_and_no_other() {
        let base = tempfile::tempdir().unwrap();
        let mut folders = Folders::default();
        let first = folders.take(base.path(), "first", None).unwrap();
        assert_eq!(mode(&first.path), MODE);
        folders.take_back(first, true);
        let mut number = 0;
        let mut again = |spoil: fn(&Path), is_left: bool| {
            let folder = folders.take(base.path(), "first", None).unwrap();
            assert_eq!((mode(&folder.path), fs::read_dir(&folder.path).unwrap().count()), (MODE, 0));
            number += 1;
            spoil(&folder.path);
            let path = folder.path.clone();
            folders.take_back(folder, is_left);
            path.exists()
        };
        assert!(again(|_| {}, true));
        assert!(!again(|path| fs::write(path.join("file"), "x").unwrap(), true));
        assert!(!again(|path| fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap(), true));
        assert!(!again(|path| fs::remove_dir(path).unwrap(), true));
        assert!(!again(|_| {}, false), "somebody may still be in it");
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(again(|_| {}, true));
        let other = folders.take(elsewhere.path(), "other", None).unwrap();
        assert!(other.path.starts_with(elsewhere.path()));
        folders.take_back(other, true);
        drop(folders);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
