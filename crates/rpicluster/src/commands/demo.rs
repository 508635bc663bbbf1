//! `rpicluster demo`: a whole cluster on this machine, to look at.

mod child;
mod cluster;
mod summary;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rpicluster_protocol::{Liveness, SlaveId};
use tokio::runtime::Runtime;

use self::cluster::{Addresses, Cluster};
use self::summary::{Summary, Traffic, rate};
use crate::cli::DemoArgs;
use crate::commands::slaves::{SLAVES_PATH, now};
use crate::commands::token;
use crate::exit::Failure;
use crate::http::{MasterClient, STATUS_PATH};
use crate::output::{output_failure, print_line};
use crate::screen::{Screen, colours_on_stdout};
use crate::signals;
use crate::table::{SlaveRow, table};

/// A master that is not ready by then never will be.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(20);
/// Of a hundred slaves that fail for one reason, a few logs tell it.
const SHOWN_TAILS_MAX: usize = 3;
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the demo until its time is over or it is told to stop.
///
/// # Errors
/// If the master does not start or ends; with `--for`, if not all slaves came online and were answered.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let mut cluster = Cluster::start()?;
    let Some(addresses) = wait_until_ready(&mut cluster, &mut stop)? else { return Ok(()) };
    let client = MasterClient::with(addresses.url.clone(), Some(cluster.api_token()?), None);
    let token = token::create(&client, u32::from(args.slaves))?;
    cluster.add_slaves(args.slaves, addresses.mqtts, &token)?;

    let mut demo = Demo::new(args, addresses, client, cluster);
    demo.greet()?;
    let deadline = args.duration.and_then(|duration| demo.started.checked_add(duration));
    loop {
        demo.look()?;
        let left = deadline.map_or(LOOK_INTERVAL, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() || stop.came_within(left.min(LOOK_INTERVAL)) {
            break;
        }
    }
    demo.conclude()
}

/// Where the master listens; `None` if the demo is told to stop before it is ready.
fn wait_until_ready(cluster: &mut Cluster, stop: &mut Stop) -> Result<Option<Addresses>, Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(addresses) = cluster.addresses() {
            return Ok(Some(addresses));
        }
        if let (obituaries, true) = cluster.obituaries() {
            return Err(anyhow!(obituaries.join("\n")).into());
        }
        if Instant::now() > deadline {
            return Err(anyhow!("the master is not ready after {START_TIMEOUT:?}:\n{}", cluster.master_tail()).into());
        }
        if stop.came_within(START_POLL) {
            return Ok(None);
        }
    }
}

/// Everything the demo knows and shows.
struct Demo<'a> {
    args: &'a DemoArgs,
    addresses: Addresses,
    client: MasterClient,
    cluster: Cluster,
    screen: Screen,
    started: Instant,
    rows: Vec<SlaveRow>,
    answered: usize,
    traffic: Traffic,
    traffic_at: Instant,
    per_second: f64,
    /// What happened that the table does not show.
    notes: Vec<String>,
    /// What was last said of each slave, where the picture is not redrawn in place.
    told: BTreeMap<SlaveId, Liveness>,
}

impl<'a> Demo<'a> {
    fn new(args: &'a DemoArgs, addresses: Addresses, client: MasterClient, cluster: Cluster) -> Demo<'a> {
        let now = Instant::now();
        Demo {
            args,
            client,
            addresses,
            cluster,
            screen: Screen::stdout(),
            started: now,
            rows: Vec::new(),
            answered: 0,
            traffic: Traffic::default(),
            traffic_at: now,
            per_second: 0.0,
            notes: Vec::new(),
            told: BTreeMap::new(),
        }
    }

    /// Whether the picture is redrawn; else changes are told line by line.
    fn draws(&self) -> bool {
        self.screen.in_place() && !self.args.json
    }

    fn greet(&self) -> Result<(), Failure> {
        if self.draws() { Ok(()) } else { self.tell(&self.heading()) }
    }

    fn heading(&self) -> String {
        let slaves = self.args.slaves;
        let Addresses { mqtt, url, .. } = &self.addresses;
        format!(
            "A master with its broker and {slaves} slaves on this machine. Ctrl-C ends the demo.\n\n  \
             messages  mosquitto_sub -h {} -p {} -t 'rpicluster/#' -v\n  \
             slaves    {url}{SLAVES_PATH}\n  \
             work      {}\n",
            mqtt.ip(),
            mqtt.port(),
            self.cluster.command(url, "uname -a"),
        )
    }

    /// Asks everybody once and shows what changed.
    fn look(&mut self) -> Result<(), Failure> {
        let (obituaries, master_ended) = self.cluster.obituaries();
        if master_ended {
            return Err(anyhow!(obituaries.join("\n")).into());
        }
        let slaves = self.client.get_json(SLAVES_PATH)?.context("the master has no list of slaves")?;
        self.rows = self.client.parse(&slaves)?;
        self.look_at_traffic()?;
        self.answered = self.cluster.answered();
        if self.draws() {
            self.notes.extend(obituaries);
            let picture = self.picture();
            return self.screen.draw(&picture).map_err(output_failure);
        }
        obituaries.iter().try_for_each(|obituary| self.tell(obituary))?;
        self.tell_changes()
    }

    fn look_at_traffic(&mut self) -> Result<(), Failure> {
        let status = self.client.get_json(STATUS_PATH)?.context("the master has no status")?;
        let traffic = self.client.parse(&status)?;
        let at = Instant::now();
        self.per_second = rate(self.traffic, traffic, at - self.traffic_at);
        (self.traffic, self.traffic_at) = (traffic, at);
        Ok(())
    }

    fn picture(&self) -> String {
        let Traffic { handled, dropped } = self.traffic;
        let mut picture = format!(
            "{}\n{}\n\n{handled} messages handled, {:.1} per second, {dropped} dropped; {} of {} slaves answered\n",
            self.heading(),
            table(&self.rows, now(), colours_on_stdout()),
            self.per_second,
            self.answered,
            self.args.slaves,
        );
        for note in &self.notes {
            picture.push_str(&format!("\n{note}\n"));
        }
        picture
    }

    fn tell_changes(&mut self) -> Result<(), Failure> {
        for row in &self.rows {
            if self.told.insert(row.id.clone(), row.slave.state) != Some(row.slave.state) {
                self.tell(&format!("{} is {}", row.id, row.slave.state))?;
            }
        }
        Ok(())
    }

    /// For people: with `--json` standard output is for the script.
    fn tell(&self, text: &str) -> Result<(), Failure> {
        if self.args.json { writeln!(io::stderr(), "{text}").map_err(output_failure) } else { print_line(text) }
    }

    /// The summary, and whether it was a success.
    fn conclude(mut self) -> Result<(), Failure> {
        // What came since the last look counts.
        self.look()?;
        let slaves = usize::from(self.args.slaves);
        let summary = Summary::new(slaves, &self.rows, self.answered, self.traffic, self.started.elapsed());
        if self.args.json {
            print_line(&serde_json::to_string(&summary).context("summary")?)?;
        } else {
            print_line(&summary.sentence())?;
        }
        match summary.shortfall().filter(|_| self.args.duration.is_some()) {
            None => Ok(()),
            Some(reason) => Err(anyhow!("{reason}\n{}", self.tails_of_the_missing()).into()),
        }
    }

    /// The last log lines of the slaves that are not online, else the master's.
    fn tails_of_the_missing(&self) -> String {
        let online =
            |id: &str| self.rows.iter().any(|row| row.id.as_str() == id && row.slave.state == Liveness::Online);
        let missing = self.cluster.slaves().filter(|(id, _)| !online(id)).take(SHOWN_TAILS_MAX);
        let tails = missing.map(|(id, tail)| format!("{id}'s last lines:\n{tail}"));
        let master = format!("the master's last lines:\n{}", self.cluster.master_tail());
        tails.chain([master]).collect::<Vec<_>>().join("\n")
    }
}

/// When the demo is told to stop.
struct Stop {
    runtime: Runtime,
    signal: Pin<Box<dyn Future<Output = ()>>>,
}

impl Stop {
    fn new() -> Result<Stop, Failure> {
        // A thread of its own: a second Ctrl-C must be heard also while the demo waits for its children.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().context("cannot start")?;
        let inside = runtime.enter();
        let signal = Box::pin(signals::shutdown(false).context("cannot watch for signals")?);
        drop(inside);
        Ok(Stop { runtime, signal })
    }

    /// Waits for at most that long; true if the demo is to stop.
    fn came_within(&mut self, time: Duration) -> bool {
        let Stop { runtime, signal } = self;
        runtime.block_on(async { tokio::time::timeout(time, signal).await.is_ok() })
    }
}
