//! A thousand slaves, one agent, and what an idle cluster writes to the SD card.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::figure::Figures;
use crate::peers::{Master, start_mosquitto, start_slave, wait_until};
use crate::simulated::Slaves;

const ROUNDS: usize = 3;
const SLAVES: usize = 1_000;
/// How long a cluster is left alone before its memory is read.
pub(crate) const IDLE: Duration = Duration::from_secs(20);
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// Measures all of it.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    thousand_slaves(figures)?;
    one_agent(figures)?;
    idle_writes(figures)
}

fn thousand_slaves(figures: &mut Figures) -> Result<()> {
    let [mut online, mut connected, mut resident, mut floor] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let master = Master::start(&[])?;
        let start = Instant::now();
        let slaves = Slaves::start(master.mqtt, SLAVES)?;
        wait_until("1,000 slaves are online", || Ok(master.status()?["online"].as_u64() == Some(SLAVES as u64)))?;
        online.push(start.elapsed().as_secs_f64());
        std::thread::sleep(IDLE);
        resident.push(master.process.resident_bytes()? as f64 / MEBIBYTE);
        drop(slaves);
        if let Some((mosquitto, address)) = start_mosquitto()? {
            let start = Instant::now();
            let slaves = Slaves::start(address, SLAVES)?;
            wait_until("1,000 slaves are connected", || Ok(slaves.connected() == SLAVES))?;
            connected.push(start.elapsed().as_secs_f64());
            floor.push(mosquitto.resident_bytes()? as f64 / MEBIBYTE);
        }
    }
    figures.add("1,000 slaves online", "s", &online, Some(("connected to mosquitto", &connected)));
    figures.add("master with 1,000 idle slaves", "MiB", &resident, Some(("mosquitto", &floor)));
    Ok(())
}

fn one_agent(figures: &mut Figures) -> Result<()> {
    let master = Master::start(&[])?;
    let [mut resident, mut cpu] = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let slave = start_slave(&master, "bench-agent", &[])?;
        wait_until("the agent is online", || Ok(master.status()?["online"].as_u64() == Some(1)))?;
        let before = slave.cpu_time()?;
        std::thread::sleep(IDLE);
        cpu.push(100.0 * (slave.cpu_time()? - before).as_secs_f64() / IDLE.as_secs_f64());
        resident.push(slave.resident_bytes()? as f64 / MEBIBYTE);
        drop(slave);
        wait_until("the agent is gone", || Ok(master.status()?["online"].as_u64() == Some(0)))?;
    }
    figures.add("one agent, memory", "MiB", &resident, None);
    figures.add("one agent, share of a core", "%", &cpu, None);
    Ok(())
}

/// Counts fsyncs from outside, by strace.
fn idle_writes(figures: &mut Figures) -> Result<()> {
    const SETTLE: Duration = Duration::from_secs(15);
    const WATCH: Duration = Duration::from_secs(60);
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        eprintln!("strace is not installed: the fsyncs of an idle cluster are left out");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("fsyncs");
    let path = log.to_str().context("temporary folder is not UTF-8")?;
    // `-I 2`: with `-o` it would block the signal that ends it.
    let master = Master::start(&["strace", "-I", "2", "-f", "-q", "-e", "trace=fsync,fdatasync", "-o", path])?;
    let slaves = Slaves::start(master.mqtt, 100)?;
    wait_until("100 slaves are online", || Ok(master.status()?["online"].as_u64() == Some(100)))?;
    let count = || -> Result<usize> {
        let text = std::fs::read_to_string(&log)?;
        Ok(text.lines().filter(|line| line.contains("sync(")).count())
    };
    std::thread::sleep(SETTLE);
    let before = count()?;
    std::thread::sleep(WATCH);
    let after = count()?;
    drop(slaves);
    figures.add("fsyncs of the head, 100 idle slaves", "1/min", &[(after - before) as f64], None);
    Ok(())
}
