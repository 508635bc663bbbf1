//! Measures rpicluster beside its floor and its peer, in the same run.
//!
//! One JSON line a figure on standard output, a table on standard error at the end. A timing is never a test: nothing here
//! fails because a machine is slow, but a run that lost messages is no measurement and ends with an error.

mod broker;
mod client;
mod figure;
mod latency;
mod others;
mod peers;
mod scale;
mod simulated;
mod tasks;
mod throughput;
mod tls;

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use figure::Figures;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Everything
    All,
    /// `info` request to reply
    Latency,
    /// Messages through bus and handlers
    Throughput,
    /// 1,000 slaves, one agent, writes of an idle cluster
    Scale,
    /// Tasks over 8 slaves and on 1,000, and the same by GNU parallel, Dask, Celery and Ray where they are installed
    Tasks,
    /// What TLS costs
    Tls,
    /// The broker alone: fan-in, fan-out, connects, idle connections
    Broker,
}

/// Measure rpicluster beside its floor and its peers. Build it with --release.
///
/// What of the peers is installed is found: mosquitto, strace, xargs, parallel and redis-server as programs, Dask (distributed),
/// Celery and Ray as modules of python3, or of the Python that BENCH_PYTHON names.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure
    #[arg(default_value = "all")]
    what: What,
    /// Of the broker's figures, only those whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Be the stock server of rumqttd on this address
    #[arg(long, hide = true)]
    serve_stock_rumqttd: Option<SocketAddr>,
}

fn main() -> Result<()> {
    let Arguments { what, only, serve_stock_rumqttd } = Arguments::parse();
    peers::raise_open_files()?;
    if let Some(address) = serve_stock_rumqttd {
        return peers::serve_stock(address);
    }
    peers::build_product()?;
    let mut figures = Figures::default();
    if matches!(what, What::All | What::Latency) {
        latency::measure(&mut figures)?;
    }
    if matches!(what, What::All | What::Throughput) {
        throughput::measure(&mut figures)?;
    }
    if matches!(what, What::All | What::Scale) {
        scale::measure(&mut figures)?;
    }
    if matches!(what, What::All | What::Tasks) {
        tasks::measure(&mut figures)?;
    }
    if matches!(what, What::All | What::Tls) {
        tls::measure(&mut figures)?;
    }
    if matches!(what, What::All | What::Broker) {
        broker::measure(&mut figures, &only)?;
    }
    figures.table();
    Ok(())
}
