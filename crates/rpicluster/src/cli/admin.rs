//! The part of the command line that says who may do what in the cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use rpicluster_protocol::SlaveId;

use super::UrlArgs;

/// `rpicluster slaves …`
#[derive(Debug, Subcommand)]
pub(crate) enum SlavesCommand {
    /// Add slaves that are no rpicluster agents, and print a secret for each: their MQTT password
    Add {
        /// Their ids, which are their MQTT user names and client ids
        #[arg(required = true)]
        ids: Vec<SlaveId>,
        #[command(flatten)]
        enrolment: EnrolmentArgs,
    },
    /// Remove a slave for good: its sessions end at once, its secret opens nothing any more
    Remove {
        /// Which one
        id: SlaveId,
    },
    /// Let a slave begin no more tasks, as before work on it
    Drain {
        /// Which one
        id: SlaveId,
        /// For people: shown in the list
        #[arg(long)]
        reason: Option<String>,
        /// Cancel what still runs after this time, as in 10m; without it, it may run to its end
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        deadline: Option<Duration>,
    },
    /// Let a drained slave take tasks again
    Undrain {
        /// Which one
        id: SlaveId,
    },
    /// Set labels of a slave, or take them away, for targets as in --on role=worker
    Label {
        /// Which one
        id: SlaveId,
        /// NAME=VALUE sets a label, NAME= takes it away
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = label_change)]
        labels: Vec<(String, Option<String>)>,
    },
}

/// What a slave gets when it joins.
#[derive(Debug, Args)]
pub(crate) struct EnrolmentArgs {
    /// Give the slave this label; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// Take the place of a slave with the same id, whose secret is worthless then
    #[arg(long)]
    pub(crate) replace: bool,
}

/// `rpicluster token`
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster token …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print the command that joins a slave with it
    Create {
        /// How long it can be used, as in 30m or 7days
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// How many slaves it lets join
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Only for a slave with this id
        #[arg(long)]
        id: Option<SlaveId>,
        #[command(flatten)]
        enrolment: EnrolmentArgs,
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
        /// Write the token to this file, for its owner alone, instead of printing how to use it
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        output: Option<PathBuf>,
    },
    /// List the tokens that can still be used
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
    },
    /// Make a token useless; slaves that have joined with it stay
    Revoke {
        /// Its id, from the list
        id: String,
    },
}

/// `rpicluster account`
#[derive(Debug, Args)]
pub(crate) struct AccountArgs {
    #[command(subcommand)]
    pub(crate) command: AccountCommand,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster account …`
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Add an account; without --password-file a password is made and printed
    Add {
        /// Its name, the MQTT user name
        name: String,
        /// What it may do: an observer reads everything
        #[arg(long, value_enum, default_value_t = AccountRole::Observer)]
        role: AccountRole,
        /// Let a custom account publish on topics that match this filter; may be repeated
        #[arg(long, value_name = "FILTER")]
        publish: Vec<String>,
        /// Let a custom account subscribe with filters within this one; may be repeated
        #[arg(long, value_name = "FILTER")]
        subscribe: Vec<String>,
        /// Read the password from this file, - for standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List the accounts
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
    },
    /// Remove an account: its sessions end at once
    Remove {
        /// Its name
        name: String,
    },
}

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccountRole {
    /// Reads everything and publishes nothing
    Observer,
    /// What Home Assistant needs
    HomeAssistant,
    /// What --publish and --subscribe say
    Custom,
}

/// `rpicluster api-token`
#[derive(Debug, Args)]
pub(crate) struct ApiTokenArgs {
    #[command(subcommand)]
    pub(crate) command: ApiTokenCommand,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster api-token …`
#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenCommand {
    /// Make a token and print it
    Create {
        /// What it is for, a name to find it by
        name: String,
    },
    /// List the names of the tokens
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
    },
    /// Make a token useless
    Revoke {
        /// Its name
        name: String,
    },
}

/// `rpicluster backup` and `rpicluster restore`
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The backup, a tar file
    pub(crate) file: PathBuf,
    /// Overwrite FILE (backup), or set aside the state that is there (restore)
    #[arg(long)]
    pub(crate) force: bool,
    /// The master's state folder; by default the configured one
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Use this rpicluster.toml to find that folder
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `rpicluster acl`
#[derive(Debug, Args)]
pub(crate) struct AclArgs {
    /// In whose language
    #[arg(long, value_enum)]
    pub(crate) format: AclFormat,
    /// Slaves whose accounts to spell out; the rules hold for all
    #[arg(value_name = "SLAVE")]
    pub(crate) slaves: Vec<SlaveId>,
    /// Take topic root and user name (the master's) from this rpicluster.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AclFormat {
    /// mosquitto 2: an acl_file
    Mosquitto,
    /// EMQX 5: an acl.conf
    Emqx,
}

/// `NAME=VALUE`
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `NAME=VALUE`, or `NAME=` for one that goes.
fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = pair(text)?;
    Ok((name, Some(value).filter(|value| !value.is_empty())))
}
