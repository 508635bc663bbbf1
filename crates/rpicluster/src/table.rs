//! Slaves as people read them: a table, or one slave in full.

use rpicluster_protocol::{Liveness, SlaveDetails, SlaveId, Timestamp, Vitals};
use serde::Deserialize;

use crate::text::Escaped;

/// One slave as the master's API shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct SlaveRow {
    /// Its id.
    pub(crate) id: SlaveId,
    /// Why it gets no tasks.
    pub(crate) drain: Option<String>,
    /// What the master knows of it.
    #[serde(flatten)]
    pub(crate) slave: SlaveDetails,
}

const HEADER: [&str; 8] = ["ID", "STATE", "SINCE", "CPU", "TEMP", "RAM FREE", "LOAD", "REASON"];
/// Place of the column that is coloured.
const STATE: usize = 1;
const ABSENT: &str = "-";

/// A table of slaves at the time `now`, a line each, in the order given.
pub(crate) fn table(slaves: &[SlaveRow], now: Timestamp, colours: bool) -> String {
    if slaves.is_empty() {
        return "No slave has come yet.".to_owned();
    }
    let rows: Vec<[String; HEADER.len()]> = slaves.iter().map(|slave| cells(slave, now)).collect();
    // Colours are added after padding, so that they do not count as width.
    grid(HEADER, &rows, |row, column, padded| match slaves.get(row).map(|slave| slave.slave.state) {
        Some(Liveness::Online) if colours && column == STATE => format!("\x1b[32m{padded}\x1b[0m"),
        Some(Liveness::Offline) if colours && column == STATE => format!("\x1b[31m{padded}\x1b[0m"),
        _ => padded,
    })
}

/// A table of whatever kind, without colours. Text from elsewhere is made safe.
pub(crate) fn plain<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let safe: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| Escaped(cell).to_string())).collect();
    grid(header, &safe, |_, _, padded| padded)
}

/// Columns as wide as their widest cell; `paint` gets the row, the column and the padded cell.
fn grid<const N: usize>(
    header: [&str; N],
    rows: &[[String; N]],
    paint: impl Fn(usize, usize, String) -> String,
) -> String {
    let mut widths = header.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N], paint: &dyn Fn(usize, String) -> String| {
        let padded = cells.iter().zip(widths).enumerate();
        let padded = padded.map(|(column, (cell, width))| paint(column, format!("{cell:<width$}")));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(header, &|_, padded| padded)];
    for (number, row) in rows.iter().enumerate() {
        lines.push(line(row.each_ref().map(String::as_str), &|column, padded| paint(number, column, padded)));
    }
    lines.join("\n")
}

fn cells(row: &SlaveRow, now: Timestamp) -> [String; HEADER.len()] {
    let nothing = Vitals::default();
    let vitals = row.slave.vitals.as_deref().unwrap_or(&nothing);
    let or_absent = |text: Option<String>| text.unwrap_or_else(|| ABSENT.to_owned());
    [
        row.id.to_string(),
        row.slave.state.to_string(),
        elapsed(row.slave.since, now),
        or_absent(vitals.cpu_percentage.map(percent)),
        or_absent(vitals.cpu_temperature.map(degrees)),
        or_absent(vitals.ram_free.map(bytes)),
        or_absent(vitals.load.map(|load| format!("{:.2}", load[0]))),
        reasons(row).map(|reason| Escaped(reason).to_string()).unwrap_or_default(),
    ]
}

/// Why it is offline, why it gets no tasks, or both.
fn reasons(row: &SlaveRow) -> Option<String> {
    match (&row.slave.reason, drained(row)) {
        (Some(reason), Some(drained)) => Some(format!("{reason}, {drained}")),
        (reason, drained) => reason.clone().or(drained),
    }
}

fn drained(row: &SlaveRow) -> Option<String> {
    let reason = row.drain.as_ref()?;
    Some(if reason.is_empty() { "drained".to_owned() } else { format!("drained: {reason}") })
}

/// All that is known of one slave, a line each; what is unknown is left out.
pub(crate) fn details(row: &SlaveRow, now: Timestamp) -> String {
    let details = row.slave.details.as_deref().cloned().unwrap_or_default();
    let vitals = row.slave.vitals.as_deref().cloned().unwrap_or_default();
    let frequency = |mhz: u32| format!("{mhz} MHz");
    let labels = details.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    let mut lines = vec![
        ("id", Some(row.id.to_string())),
        ("state", Some(row.slave.state.to_string())),
        ("since", Some(format!("{} ({})", row.slave.since, elapsed(row.slave.since, now)))),
        ("reason", reasons(row)),
        ("host name", details.hostname),
        ("model", details.model),
        ("serial number", details.serial),
        ("processor", details.cpu),
        ("cores", details.cpu_cores.map(|cores| cores.to_string())),
        ("clock, lowest", details.cpu_frequency_min.map(frequency)),
        ("clock, highest", details.cpu_frequency_max.map(frequency)),
        ("clock, now", vitals.cpu_frequency.map(frequency)),
        ("memory", details.ram.map(bytes)),
        ("memory free", vitals.ram_free.map(bytes)),
        ("swap", details.swap.map(bytes)),
        ("swap free", vitals.swap_free.map(bytes)),
        ("cpu used", vitals.cpu_percentage.or(details.cpu_percent_used).map(percent)),
        ("temperature", vitals.cpu_temperature.map(degrees)),
        ("load", vitals.load.map(|[one, five, fifteen]| format!("{one:.2} {five:.2} {fifteen:.2}"))),
        ("throttled now", vitals.throttled.as_ref().map(|throttled| words(&throttled.now))),
        ("throttled since boot", vitals.throttled.as_ref().map(|throttled| words(&throttled.since_boot))),
        ("uptime", vitals.uptime.map(seconds)),
        ("system", details.os),
        ("kernel", details.kernel),
        ("architecture", details.arch),
        ("addresses", Some(details.addresses.join(" ")).filter(|text| !text.is_empty())),
        ("labels", Some(labels).filter(|text| !text.is_empty())),
        ("agent", details.agent_version),
    ];
    let disk = |mount: &str, free, total| format!("{mount}: {} free of {}", bytes(free), bytes(total));
    lines.extend(vitals.disks.iter().map(|d| ("disk", Some(disk(&d.mount, d.free, d.total)))));
    let traffic = |name: &str, received, sent| format!("{name}: {} received, {} sent", bytes(received), bytes(sent));
    lines.extend(vitals.networks.iter().map(|n| ("network", Some(traffic(&n.name, n.received, n.transmitted)))));
    let shown = lines.into_iter().filter_map(|(name, value)| Some(format!("{name:<20}  {}", Escaped(value?))));
    shown.collect::<Vec<_>>().join("\n")
}

fn words(words: &[String]) -> String {
    if words.is_empty() { "no".to_owned() } else { words.join(", ") }
}

fn percent(value: f32) -> String {
    format!("{value:.0} %")
}

fn degrees(value: f32) -> String {
    format!("{value:.0} °C")
}

/// Bytes in the largest decimal unit that leaves at least 1.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", count as f64 / *size as f64),
        None => format!("{count} B"),
    }
}

/// The time from `since` to `now`; a clock that runs behind the master's shows 0.
pub(crate) fn elapsed(since: Timestamp, now: Timestamp) -> String {
    seconds(now.unix_ms().saturating_sub(since.unix_ms()) / 1000)
}

fn seconds(count: u64) -> String {
    match count {
        0..60 => format!("{count} s"),
        60..3600 => format!("{} min", count / 60),
        3600..86_400 => format!("{} h", count / 3600),
        _ => format!("{} d", count / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLAVES: &str = r#"[
        {"id":"pi-7","state":"online","since":"2026-01-01T00:00:00Z","details":{"hostname":"pi\u001b[2J","ram":4000000000},
         "vitals":{"cpu_percentage":3.4,"cpu_temperature":51.2,"ram_free":1234567890,"load":[0.1,0.2,0.3],
                   "disks":[{"mount":"/","total":2000,"free":1000}]}},
        {"id":"a","state":"offline","since":"2026-01-01T00:01:00Z","reason":"gone\nforged","drain":"new fan","unknown":1}]"#;

    fn slaves() -> Vec<SlaveRow> {
        serde_json::from_str(SLAVES).unwrap()
    }

    fn two_minutes_later() -> Timestamp {
        serde_json::from_str("\"2026-01-01T00:02:00Z\"").unwrap()
    }

    #[test]
    fn the_table_is_aligned_and_names_what_is_absent() {
        let expected = "\
ID    STATE    SINCE  CPU  TEMP   RAM FREE  LOAD  REASON
pi-7  online   2 min  3 %  51 °C  1.2 GB    0.10
a     offline  1 min  -    -      -         -     gone\\nforged, drained: new fan";
        assert_eq!(table(&slaves(), two_minutes_later(), false), expected);
        assert_eq!(table(&[], two_minutes_later(), false), "No slave has come yet.");
    }

    #[test]
    fn colours_change_nothing_but_the_colour() {
        let coloured = table(&slaves(), two_minutes_later(), true);
        assert!(coloured.contains("\x1b[32monline \x1b[0m") && coloured.contains("\x1b[31moffline\x1b[0m"));
        let plain = coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table(&slaves(), two_minutes_later(), false));
    }

    #[test]
    fn details_show_what_is_known_and_cannot_draw_on_the_terminal() {
        let text = details(&slaves()[0], two_minutes_later());
        assert!(text.contains("host name             pi\\u{1b}[2J\n"), "{text}");
        assert!(text.contains("memory                4.0 GB\n"), "{text}");
        assert!(text.contains("disk                  /: 1.0 kB free of 2.0 kB"), "{text}");
        assert!(!text.contains("swap") && !text.contains("reason"), "{text}");
    }

    #[test]
    fn numbers_have_their_unit() {
        assert_eq!(
            [0, 999, 1000, 1_500_000, 2_000_000_000_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "1.5 MB", "2.0 TB"]
        );
        assert_eq!([59, 60, 3599, 3600, 86_400].map(seconds), ["59 s", "1 min", "59 min", "1 h", "1 d"]);
    }

    #[test]
    fn a_clock_that_runs_behind_shows_zero() {
        assert_eq!(elapsed(two_minutes_later(), Timestamp::from_unix_ms(0)), "0 s");
    }
}
