//! `rpicluster backup` and `rpicluster restore`: the master's state as one file. They work on the state folder, so that
//! they need no running master.

use std::path::PathBuf;

use rpicluster_master::BackupError;

use crate::cli::BackupArgs;
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::output::print_line;
use crate::text::counted;

/// Writes the backup.
///
/// # Errors
/// If there is no state, it cannot be read, or the file exists or cannot be written.
pub(crate) fn backup(args: BackupArgs) -> Result<(), Failure> {
    let (state_dir, own_certificate) = folder(&args)?;
    let backup = rpicluster_master::backup(&state_dir, &args.file, args.force).map_err(failure)?;
    let (file, folder) = (args.file.display(), state_dir.display());
    print_line(&format!(
        "{file} holds the state of {folder} ({} bytes). Keep it like a key: who has it is the master.",
        backup.bytes
    ))?;
    if let Some(certificate) = own_certificate {
        let certificate = certificate.display();
        print_line(&format!("Your own certificate ({certificate}) and its key are not in it: keep them as well."))?;
    } else if !backup.has_authority {
        print_line("There is no certificate authority in it: the master has not made one yet.")?;
    }
    Ok(())
}

/// Restores it.
///
/// # Errors
/// If the file is no whole backup, a master runs, or a state is there already.
pub(crate) fn restore(args: BackupArgs) -> Result<(), Failure> {
    let (state_dir, own_certificate) = folder(&args)?;
    let restored = rpicluster_master::restore(&state_dir, &args.file, args.force).map_err(failure)?;
    let (slaves, accounts) = (counted(restored.slaves, "slave"), counted(restored.accounts, "account"));
    let api_tokens = counted(restored.api_tokens, "API token");
    let (folder, created) = (state_dir.display(), restored.created);
    print_line(&format!("{folder} holds the state of {created}: {slaves}, {accounts}, {api_tokens}."))?;
    print_line("Whoever was removed after that is back, and tokens for joining have to be made anew.")?;
    if let Some(certificate) = own_certificate {
        print_line(&format!("Your own certificate ({}) is not part of a backup.", certificate.display()))?;
    }
    match restored.set_aside {
        Some(aside) => print_line(&format!("What was there before lies in {}.", aside.display())),
        None => Ok(()),
    }
}

/// The state folder, and one's own certificate if the configuration names one.
fn folder(args: &BackupArgs) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let master = load(args.config.as_deref(), None)?.file.master;
    Ok((args.state_dir.clone().unwrap_or(master.state_dir), master.tls_certificate))
}

fn failure(error: BackupError) -> Failure {
    Failure::new(Exit::Failed, error.to_string())
}
