//! `rpicluster install`: systemd units for master and slave, with what belongs to them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow, bail};
use rpicluster_client::BrokerAddress;
use rpicluster_machine::write_private;
use rpicluster_protocol::JoinToken;

use crate::cli::{InstallArgs, Service};
use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// Where the slave's unit reads the token from.
const TOKEN_FILE: &str = "/etc/rpicluster/token";
/// Services see nothing of these folders.
const HIDDEN_FOLDERS: [&str; 4] = ["/home", "/root", "/run/user", "/tmp"];
/// It exists where systemd runs (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// A file to install.
struct Installed {
    path: &'static str,
    /// What begins a comment in it.
    comment: &'static str,
    text: String,
}

/// Writes or prints the files.
///
/// # Errors
/// If this is not run as root, the program lies where a service cannot see it, the token is none, or the system refuses.
pub(crate) fn run(args: InstallArgs) -> Result<(), Failure> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let (unit, files, token, how) = match args.service {
        Service::Master { how } => ("rpicluster-master", master(&program), None, how),
        Service::Slave { master, token, how } => ("rpicluster-slave", slave(&program, master.as_ref()), token, how),
    };
    if how.print {
        let titled = files.iter().map(|file| format!("{} {}\n{}", file.comment, file.path, file.text));
        return print_line(titled.collect::<Vec<_>>().join("\n").trim_end());
    }
    let token = token.map(|token| token.0.trim().parse::<JoinToken>()).transpose();
    let token = token.map_err(|error| Failure::new(Exit::Usage, format!("--token: {error}")))?;
    check(&program)?;
    for file in &files {
        write(file)?;
    }
    if let Some(token) = token {
        keep(&token)?;
    }
    if Path::new(SYSTEMD_RUNS).is_dir() {
        call("systemd-sysusers", &[])?;
        call("systemctl", &["daemon-reload"])?;
    }
    print_line(&format!("{unit} is installed. To start it now and at every boot:\n\n  systemctl enable --now {unit}\n"))
}

fn master(program: &Path) -> Vec<Installed> {
    vec![
        Installed {
            path: "/etc/systemd/system/rpicluster-master.service",
            comment: "#",
            text: include_str!("install/master.service").replace("{program}", &program.to_string_lossy()),
        },
        Installed {
            path: "/etc/sysusers.d/rpicluster-master.conf",
            comment: "#",
            text: include_str!("install/master.sysusers").to_owned(),
        },
    ]
}

fn slave(program: &Path, master: Option<&BrokerAddress>) -> Vec<Installed> {
    let environment = master.map(|master| format!("Environment=RPICLUSTER_MASTER={master}\n")).unwrap_or_default();
    let unit = include_str!("install/slave.service").replace("{program}", &program.to_string_lossy());
    vec![
        Installed {
            path: "/etc/systemd/system/rpicluster-slave.service",
            comment: "#",
            text: unit.replace("{environment}\n", &environment),
        },
        Installed {
            path: "/etc/sysusers.d/rpicluster-slave.conf",
            comment: "#",
            text: include_str!("install/slave.sysusers").to_owned(),
        },
        Installed {
            path: "/etc/polkit-1/rules.d/50-rpicluster-slave.rules",
            comment: "//",
            text: include_str!("install/slave.rules").to_owned(),
        },
    ]
}

fn check(program: &Path) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        let problem = "install writes below /etc: run it with sudo, or see with --print what it would write";
        return Err(Failure::new(Exit::Failed, problem));
    }
    let odd = |character: char| character.is_whitespace() || "%$\\\"'".contains(character);
    if HIDDEN_FOLDERS.iter().any(|folder| program.starts_with(folder)) || program.to_string_lossy().contains(odd) {
        let program = program.display();
        let problem =
            format!("a service cannot run {program}: copy it first, as in \"install {program} /usr/local/bin/\"");
        return Err(Failure::new(Exit::Failed, problem));
    }
    Ok(())
}

fn keep(token: &JoinToken) -> anyhow::Result<()> {
    let path = Path::new(TOKEN_FILE);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(write_private(path, &format!("{token}\n"))?)
}

fn write(file: &Installed) -> anyhow::Result<()> {
    let path = PathBuf::from(file.path);
    let cannot = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(cannot)?;
    }
    // Whatever the umask: systemd and polkit read these as other users.
    let beside = path.with_extension("new");
    fs::write(&beside, &file.text).with_context(cannot)?;
    fs::set_permissions(&beside, Permissions::from_mode(0o644)).with_context(cannot)?;
    fs::rename(&beside, &path).with_context(cannot)
}

fn call(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status =
        Command::new(program).args(arguments).status().map_err(|error| anyhow!("cannot run {program}: {error}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_the_files_is_filled() {
        let master_address = "head.local".parse().unwrap();
        let program = Path::new("/usr/local/bin/rpicluster");
        for file in master(program).into_iter().chain(slave(program, Some(&master_address))).chain(slave(program, None))
        {
            let is_unit = file.path.ends_with(".service");
            assert!(!is_unit || !file.text.contains(['{', '}']), "{}", file.text);
            assert_eq!(is_unit, file.text.contains("ExecStart=/usr/local/bin/rpicluster "));
        }
        let unit = |master| slave(program, master).remove(0).text;
        assert!(unit(Some(&master_address)).contains("\nEnvironment=RPICLUSTER_MASTER=mqtts://head.local"));
        assert!(!unit(None).contains("RPICLUSTER_MASTER="));
    }
}
