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
        #[command(flatten)]
        master: UrlArgs,
    },
    /// Remove a slave for good: its sessions end at once, its secret opens nothing any more
    Remove {
        /// Which one
        id: SlaveId,
        #[command(flatten)]
        master: UrlArgs,
    },
}

/// What a slave gets when it joins.
#[derive(Debug, Args)]
pub(crate) struct EnrolmentArgs {
    /// Give the slave this label; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
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
        #[command(flatten)]
        master: UrlArgs,
    },
    /// List the tokens that can still be used
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        master: UrlArgs,
    },
    /// Make a token useless; slaves that have joined with it stay
    Revoke {
        /// Its id, from the list
        id: String,
        #[command(flatten)]
        master: UrlArgs,
    },
}

/// `rpicluster account`
#[derive(Debug, Args)]
pub(crate) struct AccountArgs {
    #[command(subcommand)]
    pub(crate) command: AccountCommand,
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
        #[command(flatten)]
        master: UrlArgs,
    },
    /// List the accounts
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        master: UrlArgs,
    },
    /// Remove an account: its sessions end at once
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        master: UrlArgs,
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
}

/// `rpicluster api-token …`
#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenCommand {
    /// Make a token and print it
    Create {
        /// What it is for, a name to find it by
        name: String,
        #[command(flatten)]
        master: UrlArgs,
    },
    /// List the names of the tokens
    List {
        /// Print what the master's API answers
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        master: UrlArgs,
    },
    /// Make a token useless
    Revoke {
        /// Its name
        name: String,
        #[command(flatten)]
        master: UrlArgs,
    },
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

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
