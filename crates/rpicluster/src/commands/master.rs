//! `rpicluster master`: the master, with its broker unless others run it, until it is told to stop.

use anyhow::Context;
use rpicluster_broker::{BrokerConfig, Listener};
use rpicluster_machine::keep_no_large_blocks;
use rpicluster_master::{Master, MasterConfig, Settings, StartError};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::cli::MasterArgs;
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::output::announce_line;
use crate::{log, service, signals};

/// The listener that `--mqtt` moves.
const LOCAL_LISTENER: &str = "local";
/// The listener that `--mqtts` moves.
const CLUSTER_LISTENER: &str = "cluster";

/// Runs the master.
///
/// # Errors
/// If the configuration is wrong, an address or the store cannot be used, or a part of the master fails.
pub(crate) fn run(args: MasterArgs) -> Result<(), Failure> {
    // Before there are threads, which have heaps of their own.
    keep_no_large_blocks();
    let configuration = load(args.config.as_deref(), None)?;
    let file = configuration.file;
    let external = file.cluster.connection().map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    if external.is_some() && (args.mqtt.is_some() || args.mqtts.is_some()) {
        let problem = "cluster.broker is set, so this master runs no broker of its own: leave out --mqtt and --mqtts";
        return Err(Failure::new(Exit::Usage, problem));
    }
    let _log = log::start(&file.log, "master")?;
    if let Some(path) = configuration.sources.broker.as_ref().filter(|_| external.is_some()) {
        let path = path.display();
        tracing::warn!("{path} is not used: cluster.broker is set, so this master runs no broker of its own");
    }
    let settings = Settings {
        root: file.cluster.topic_root,
        broker: broker_with_flags(configuration.broker, &args),
        external,
        master: MasterConfig {
            http: args.http.unwrap_or(file.master.http),
            state_dir: args.state_dir.unwrap_or(file.master.state_dir),
            ..file.master
        },
    };
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(serve(settings, args.stop.stop_on_stdin_close))
}

async fn serve(settings: Settings, stop_on_stdin_close: bool) -> Result<(), Failure> {
    let shutdown = signals::shutdown(stop_on_stdin_close).context("cannot watch for signals")?;
    let master = Master::bind(settings).await.map_err(start_failure)?;
    for (name, address) in master.mqtt_addresses() {
        announce_line(&format!("master: mqtt {address} ({name})"));
    }
    if let Some(broker) = master.external_broker() {
        announce_line(&format!("master: broker {broker}"));
    }
    announce_line(&format!("master: http {}", master.http_url()));
    announce_line("master: ready");
    let pulse = master.pulse();
    service::supervised(master.run(service::stopping_after(shutdown)), || pulse.is_beating())
        .await
        .context("master")?;
    Ok(())
}

/// One core is left to the broker's router thread: with a worker on each core, a request wakes more threads than there are
/// cores, and its reply takes half as long again.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

/// Lets the master hold as many sockets as the system allows: the usual 1,024 are too few for 1,000 slaves.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays: it bounds the number of slaves");
    }
}

fn start_failure(error: StartError) -> Failure {
    let exit = if matches!(error, StartError::Setting(_)) { Exit::Configuration } else { Exit::Failed };
    Failure::new(exit, format!("master: {error}"))
}

/// Flags win over files and environment.
fn broker_with_flags(mut broker: BrokerConfig, args: &MasterArgs) -> BrokerConfig {
    for (name, tls, address) in [(LOCAL_LISTENER, false, args.mqtt), (CLUSTER_LISTENER, true, args.mqtts)] {
        if let Some(address) = address {
            let listener = Listener { address, tls, anonymous: !tls };
            broker.listeners.entry(name.to_owned()).and_modify(|known| known.address = address).or_insert(listener);
        }
    }
    broker
}
