//! The command line.

mod admin;
mod install;
mod jobs;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use rpicluster_client::BrokerAddress;
use rpicluster_protocol::SlaveId;

use crate::exit::Exit;
use crate::http::MasterUrl;
use crate::text::Hidden;

pub(crate) use admin::{
    AccountArgs, AccountCommand, AccountRole, AclArgs, AclFormat, ApiTokenArgs, ApiTokenCommand, BackupArgs,
    EnrolmentArgs, SlavesCommand, TokenArgs, TokenCommand,
};
pub(crate) use install::{InstallArgs, Service};
pub(crate) use jobs::{
    ActionArgs, CancelArgs, JobsArgs, LogsArgs, MapArgs, ProcessArgs, RetryArgs, RunArgs, SubmitArgs, Wait, WorkArgs,
};

/// Most slaves of a demo: each is a process of its own on this machine.
const DEMO_SLAVES_MAX: i64 = 200;

const EXAMPLES: &str = "\
Examples:
  rpicluster demo                             see a whole cluster on this machine
  rpicluster master                           on the head: MQTT with TLS on port 8883 for slaves, without on
                                              127.0.0.1:1883 to look at the messages, HTTP on 127.0.0.1:8080
  rpicluster token create                     on the head: prints the command that joins a slave
  rpicluster slave --master head.local --token rpi1.…
                                              on every worker, the first time
  rpicluster slave --master head.local        and from then on
  rpicluster slaves --watch                   who is there, and how they fare
  rpicluster slaves pi-7 --json               one slave, for scripts
  rpicluster run --on all -- uname -a         a command on every slave
  rpicluster map --on all -- factor ::: 7 8 9 a queue that the slaves share
  rpicluster submit job.toml                  a job of several steps; jobs, logs and cancel look after it
  rpicluster backup head.tar                  on the head: all that a new head needs, while the master runs
  rpicluster restore head.tar                 on the new head, before its master starts
  rpicluster acl --format mosquitto           the rules for a broker of your own ([cluster] broker)
  RPICLUSTER__LOG__LEVEL=debug rpicluster master
                                              any setting from the environment

Configuration: rpicluster.toml and broker.toml in the working directory, else in /etc/rpicluster.
The environment (RPICLUSTER__SECTION__KEY, RPICLUSTER__BROKER__SECTION__KEY) wins over files, flags over both.
RPICLUSTER_LOG=debug changes what is logged; NO_COLOR=1 turns colours off.";

/// A cluster of Raspberry Pis over MQTT.
#[derive(Debug, Parser)]
#[command(name = "rpicluster", version, about, after_help = help_end(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the master, with the MQTT broker inside it (unless [cluster] broker names another)
    Master(MasterArgs),
    /// Run the agent of a slave
    Slave(SlaveArgs),
    /// Show a whole cluster on this machine: a master and some slaves
    Demo(DemoArgs),
    /// List the slaves, or show one; add, label, drain and remove them
    Slaves(SlavesArgs),
    /// Run a command on every slave that matches, and see what it says
    Run(RunArgs),
    /// Run a command once for each input, shared out among the slaves that match
    Map(MapArgs),
    /// Submit a job of several steps from a file
    Submit(SubmitArgs),
    /// List the jobs, or show one
    Jobs(JobsArgs),
    /// Show what the tasks of a job have written
    Logs(LogsArgs),
    /// Cancel a job
    Cancel(CancelArgs),
    /// Try again what has not succeeded in a job
    Retry(RetryArgs),
    /// Let slaves answer
    Ping(ActionArgs),
    /// Boot slaves anew, and wait until they are back
    Reboot(ActionArgs),
    /// Power slaves off
    Shutdown(ActionArgs),
    /// Update and upgrade the packages of slaves
    OsUpgrade(ActionArgs),
    /// Make, list and revoke the tokens with which slaves join
    Token(TokenArgs),
    /// Add, list and remove accounts for programs and people that are no slaves
    Account(AccountArgs),
    /// Make, list and revoke tokens for the HTTP API
    ApiToken(ApiTokenArgs),
    /// Write the state of the master on this machine into a file, also while it runs: keys, who has joined, accounts, API
    /// tokens. Run it as the master's user; who has the file is the master
    Backup(BackupArgs),
    /// Make a backup the state of the master on this machine, which must not run
    Restore(BackupArgs),
    /// Print the rules and accounts that a broker of your own needs ([cluster] broker)
    Acl(AclArgs),
    /// Ask the running master, or this machine's slave, whether it is well
    Health(HealthArgs),
    /// Make a systemd service of master or slave
    Install(InstallArgs),
    /// Check the configuration without starting anything
    CheckConfig(CheckConfigArgs),
    /// Watch the tasks of the slave that has started this
    #[command(name = "__supervise", hide = true)]
    Supervise {
        /// How to become a task
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// `rpicluster master`
#[derive(Debug, Args)]
pub(crate) struct MasterArgs {
    /// Use this rpicluster.toml, and the broker.toml beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Listen for MQTT without TLS here (the listener "local"); port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) mqtt: Option<SocketAddr>,
    /// Listen for MQTT with TLS here (the listener "cluster"); port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) mqtts: Option<SocketAddr>,
    /// Listen for HTTP here; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Keep the store here
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
}

/// `rpicluster slave`
#[derive(Debug, Args)]
pub(crate) struct SlaveArgs {
    /// Use this rpicluster.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Connect to this master, with TLS; the port is 8883 unless given [env: RPICLUSTER_MASTER, RPICLUSTER_MASTER_FILE]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) master: Option<BrokerAddress>,
    /// Join with this token, as `rpicluster token create` printed it on the master; needed once [env: RPICLUSTER_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<Hidden>,
    /// Read the token from this file, which keeps it out of the list of processes [env: RPICLUSTER_TOKEN_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Be this slave, instead of host name and board number
    #[arg(long)]
    pub(crate) id: Option<SlaveId>,
    /// Keep identity and status socket here
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
}

/// How a child of the demo is told to stop.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Stop when standard input closes
    #[arg(long, hide = true)]
    pub(crate) stop_on_stdin_close: bool,
}

/// `rpicluster demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many slaves
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=DEMO_SLAVES_MAX))]
    pub(crate) slaves: u16,
    /// End after this time, as in 10s, with a summary and an exit code
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Print the summary as one line of JSON, and nothing else on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `rpicluster slaves`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SlavesArgs {
    /// What to do; without it, show
    #[command(subcommand)]
    pub(crate) command: Option<SlavesCommand>,
    /// Show only this slave, with all that is known of it
    pub(crate) id: Option<SlaveId>,
    /// Print what the master's API answers
    #[arg(long)]
    pub(crate) json: bool,
    /// Go on, and show it anew every second
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// `rpicluster health`
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Whom to ask
    #[arg(value_enum, default_value_t = Role::Master)]
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) master: UrlArgs,
}

/// Whom `health` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// The master, over HTTP
    Master,
    /// The slave on this machine, over its status socket
    Slave,
}

/// `rpicluster check-config`
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// Check this rpicluster.toml, and the broker.toml beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Check this broker.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) broker_config: Option<PathBuf>,
}

/// Under what help shows [`UrlArgs`].
const WHERE: &str = "Where the master is";

/// Where the master is and what opens it, for the commands that ask it.
#[derive(Debug, Clone, Args)]
pub(crate) struct UrlArgs {
    /// The master's HTTP address
    #[arg(long, global = true, help_heading = WHERE, env = "RPICLUSTER_URL", default_value_t)]
    pub(crate) url: MasterUrl,
    /// Read the API's token from this file, instead of the master's own on this machine (or set RPICLUSTER_API_TOKEN)
    #[arg(long, global = true, help_heading = WHERE, env = "RPICLUSTER_API_TOKEN_FILE", value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
    /// Trust the certificates in this file for https, instead of the master's on this machine
    #[arg(long, global = true, help_heading = WHERE, env = "RPICLUSTER_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The state folder of whom is asked, if it runs on this machine; by default the configured one
    #[arg(long, global = true, help_heading = WHERE, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Use this rpicluster.toml to find that folder
    #[arg(long, global = true, help_heading = WHERE, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

fn help_end() -> String {
    format!("{EXAMPLES}\n\n{}", Exit::table())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn help_shows_what_a_command_does_apart_from_where_the_master_is() {
        let mut run = Cli::command().find_subcommand("run").cloned().unwrap();
        let help = run.render_long_help().to_string();
        let (what, place) = help.split_once(WHERE).unwrap();
        assert!(["fold", "env", "cwd", "on"].iter().all(|flag| what.contains(&format!("      --{flag}"))), "{help}");
        assert!(place.contains("--url") && !place.contains("      --fold\n"), "{help}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_exit_code() {
        let help = Cli::command().render_help().to_string();
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{help}");
        }
    }

    #[test]
    fn the_master_is_named_before_or_after_what_is_to_be_done() {
        for line in ["rpicluster token --url http://pi:1 list", "rpicluster token list --url http://pi:1"] {
            let Command::Token(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line}") };
            assert_eq!(args.master.url.to_string(), "http://pi:1", "{line}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "rpicluster",
            "rpicluster nonsense",
            "rpicluster slave --id Ä",
            "rpicluster slave --master http://head",
            "rpicluster slave --token a --token-file b",
            "rpicluster master --http 8080",
            "rpicluster demo --slaves 0",
            "rpicluster demo --for ever",
            "rpicluster slaves --url ftp://x",
            "rpicluster slaves --json --watch",
            "rpicluster slaves add",
            "rpicluster slaves add pi --label room",
            "rpicluster token create --uses 0",
            "rpicluster token create --json --output f",
            "rpicluster install",
            "rpicluster install slave --print --token x",
            "rpicluster token create --ttl soon",
            "rpicluster account add x --role king",
            "rpicluster run --on all uname",
            "rpicluster run -- uname",
            "rpicluster run --on all --wait long -- uname",
            "rpicluster run --on all --batch 0 -- uname",
            "rpicluster run --on all --fold --json -- uname",
            "rpicluster map --on all --continue x -- uname",
            "rpicluster jobs -1",
            "rpicluster slaves label pi-1",
            "rpicluster backup",
            "rpicluster restore a b",
            "rpicluster acl",
            "rpicluster acl --format nginx",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{line}");
        }
    }
}
