//! What the demo saw: counted, judged, and printed for people or scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use rpicluster_protocol::Liveness;
use serde::{Deserialize, Serialize};

use crate::table::SlaveRow;

/// The figures of the master that the demo shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "StatusPage")]
pub(super) struct Traffic {
    /// Messages dealt with.
    pub(super) handled: u64,
    /// Messages that were thrown away, whoever did it.
    pub(super) dropped: u64,
}

/// What of `/api/v1/status` is counted.
#[derive(Deserialize)]
struct StatusPage {
    counters: Counters,
    broker: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Counters {
    handled: u64,
    shed: u64,
    unroutable: u64,
    refused: u64,
    commands_dropped: u64,
}

impl From<StatusPage> for Traffic {
    fn from(StatusPage { counters, broker }: StatusPage) -> Self {
        let by_master = counters.shed + counters.unroutable + counters.refused + counters.commands_dropped;
        let lost = |name: &str| name.starts_with("dropped_") || name == "router_gaps";
        let by_broker: u64 = broker.iter().filter(|(name, _)| lost(name)).map(|(_, count)| count).sum();
        Traffic { handled: counters.handled, dropped: by_master + by_broker }
    }
}

/// The last line of `demo --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    /// Slaves started.
    pub(super) slaves: usize,
    /// Slaves that the master sees online.
    pub(super) online: usize,
    /// Slaves that have got their `master_info`.
    pub(super) answered: usize,
    /// Messages the master has dealt with.
    pub(super) handled: u64,
    /// Messages that were thrown away.
    pub(super) dropped: u64,
    /// How long the cluster was watched.
    pub(super) seconds: f64,
}

impl Summary {
    /// Counts `rows`; `answered` is what the slaves themselves say.
    pub(super) fn new(slaves: usize, rows: &[SlaveRow], answered: usize, traffic: Traffic, time: Duration) -> Summary {
        Summary {
            slaves,
            online: rows.iter().filter(|row| row.slave.state == Liveness::Online).count(),
            answered,
            handled: traffic.handled,
            dropped: traffic.dropped,
            seconds: (time.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// Why the demo has not shown a working cluster; `None` if it has.
    pub(super) fn shortfall(&self) -> Option<String> {
        let Summary { slaves, online, answered, .. } = self;
        let complete = online == slaves && answered == slaves;
        (!complete).then(|| format!("of {slaves} slaves {online} are online and {answered} have got their master_info"))
    }

    /// For people.
    pub(super) fn sentence(&self) -> String {
        let Summary { slaves, online, answered, handled, dropped, seconds } = self;
        format!(
            "{online} of {slaves} slaves online, {answered} answered by the master; \
             {handled} messages handled, {dropped} dropped in {seconds} s"
        )
    }
}

/// Messages handled per second between two moments.
pub(super) fn rate(before: Traffic, now: Traffic, between: Duration) -> f64 {
    let seconds = between.as_secs_f64();
    if seconds > 0.0 { now.handled.saturating_sub(before.handled) as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(online: usize, answered: usize) -> Summary {
        let row = |state: &str| format!(r#"{{"id":"a","state":"{state}","since":"2026-01-01T00:00:00Z"}}"#);
        let rows: Vec<SlaveRow> = (0..3)
            .map(|n| serde_json::from_str(&row(if n < online { "online" } else { "offline" })).unwrap())
            .collect();
        Summary::new(3, &rows, answered, Traffic { handled: 42, dropped: 1 }, Duration::from_millis(10_049))
    }

    #[test]
    fn only_all_online_and_all_answered_is_success() {
        assert_eq!(summary(3, 3).shortfall(), None);
        for (online, answered) in [(3, 2), (2, 3), (0, 0)] {
            let reason = summary(online, answered).shortfall().unwrap();
            assert!(reason.contains(&format!("{online} are online and {answered} have")), "{reason}");
        }
    }

    #[test]
    fn every_loss_is_counted() {
        let status = r#"{"counters":{"handled":9,"shed":1,"unroutable":2,"refused":4,"commands_dropped":8,"answered":5},
                         "broker":{"dropped_retained":16,"router_gaps":32,"connections":7},"version":"1"}"#;
        let traffic: Traffic = serde_json::from_str(status).unwrap();
        assert_eq!(traffic, Traffic { handled: 9, dropped: 63 });
    }

    #[test]
    fn the_json_line_begins_as_documented() {
        let line = serde_json::to_string(&summary(3, 3)).unwrap();
        assert_eq!(line, r#"{"slaves":3,"online":3,"answered":3,"handled":42,"dropped":1,"seconds":10.0}"#);
    }

    #[test]
    fn a_rate_needs_time() {
        let at = |handled| Traffic { handled, dropped: 0 };
        assert_eq!(rate(at(10), at(30), Duration::from_secs(4)), 5.0);
        assert_eq!(rate(at(10), at(30), Duration::ZERO), 0.0);
        assert_eq!(rate(at(30), at(10), Duration::from_secs(1)), 0.0);
    }
}
