//! Where log lines go: the console on stderr, and a bounded file when a folder is set.

mod file;

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::field::Field;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Invalid;
use crate::exit::{Exit, Failure};
use crate::service;
use crate::text::Escaped;
use file::{Limits, RotatingFile};

/// The environment variable that overrides `[log] level`, as in `debug` or `rpicluster_master=debug,info`.
pub(crate) const LOG_VARIABLE: &str = "RPICLUSTER_LOG";

/// Lines that wait for a slow disk; beyond them lines are lost, the program never waits.
const BUFFERED_LINES_MAX: usize = 4096;

/// Nobody keeps the logs of more than some years.
const FILES_MAX: u32 = 1000;
/// A smaller file would be closed after a few lines.
const FILE_BYTES_LEAST: u64 = 64 * 1024;

/// `[log]` of `rpicluster.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// The least important level that is logged.
    pub(crate) level: Level,
    /// Where `master.log` and `slave.log` are written; without it only the console shows the log.
    pub(crate) folder: Option<PathBuf>,
    /// How lines look in the file and on the console.
    pub(crate) format: Format,
    /// Number of log files kept, the current one included.
    pub(crate) files_max: u32,
    /// A file that would grow beyond this many bytes within its day is closed early.
    pub(crate) file_bytes_max: u64,
}

/// How important a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Something failed.
    Error,
    /// Something is wrong and was dealt with.
    Warn,
    /// What an administrator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: Level::Info,
            folder: None,
            format: Format::Text,
            files_max: 7,
            file_bytes_max: 16 * 1024 * 1024,
        }
    }
}

impl LogConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// Names the first key whose value cannot be used.
    pub(crate) fn validate(&self) -> Result<(), Invalid> {
        let invalid = |key: &str, problem: String| Err(Invalid { key: key.to_owned(), problem });
        if !(1..=FILES_MAX).contains(&self.files_max) {
            return invalid("log.files_max", format!("use 1 to {FILES_MAX}"));
        }
        if self.file_bytes_max < FILE_BYTES_LEAST {
            return invalid("log.file_bytes_max", format!("use at least {FILE_BYTES_LEAST}"));
        }
        Ok(())
    }
}

/// Starts the log of this process; lines are written until the guard is dropped. `name` is that of the file.
///
/// # Errors
/// If the log file cannot be written, or [`LOG_VARIABLE`] is not a filter.
pub(crate) fn start(config: &LogConfig, name: &str) -> Result<Option<WorkerGuard>, Failure> {
    let wrong = |problem: String| Failure::new(Exit::Configuration, problem);
    let directives = std::env::var(LOG_VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = filter(config.level, directives.as_deref())
        .map_err(|error| wrong(format!("environment variable {LOG_VARIABLE}: {error}; use for example \"debug\"")))?;

    let (file, guard) = match &config.folder {
        None => (None, None),
        Some(folder) => {
            let file = open_file(folder, name, config).map_err(|error| {
                wrong(format!("log.folder: cannot write {name}.log in {}: {error}", folder.display()))
            })?;
            let (writer, guard) = in_background(file);
            (Some(layer(config.format, Look::PLAIN, writer)), Some(guard))
        }
    };
    let console = layer(config.format, Look::of_stderr(), io::stderr);
    tracing_subscriber::registry()
        .with(filter)
        .with(file)
        .with(console)
        .try_init()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start the log: {error}")))?;
    Ok(guard)
}

fn open_file(folder: &std::path::Path, name: &str, config: &LogConfig) -> io::Result<RotatingFile> {
    let limits = Limits { files_max: config.files_max, file_bytes_max: config.file_bytes_max };
    RotatingFile::open(folder, name, limits)
}

/// A slow disk must not slow the cluster: a thread of its own writes, and what it cannot take is dropped.
fn in_background(file: RotatingFile) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES_MAX).thread_name("log").finish(file)
}

/// The router's own log is always off: it floods (thousands of lines for ordinary disconnects), and the front says what
/// matters.
fn filter(level: Level, directives: Option<&str>) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    EnvFilter::builder().parse(format!("{},rumqttd=off", directives.unwrap_or(level)))
}

/// One destination of log lines. Text fields are escaped here: a slave's words must not forge lines.
fn layer<S, W>(format: Format, look: Look, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A line that cannot be written is lost; reporting that on a broken stderr would panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(look.colours).log_internal_errors(false);
    let text = || debug_fn(write_field).delimited(" ");
    match format {
        Format::Text if look.times => lines.fmt_fields(text()).boxed(),
        Format::Text => lines.fmt_fields(text()).without_time().boxed(),
        Format::Json => lines.json().boxed(),
    }
}

/// What lines show beside their words.
#[derive(Debug, Clone, Copy)]
struct Look {
    colours: bool,
    /// Whether lines for people begin with the time.
    times: bool,
}

impl Look {
    /// As in a file.
    const PLAIN: Look = Look { colours: false, times: true };

    /// Colours are for people who look: a terminal, and no wish against them. The journal notes the time itself.
    fn of_stderr() -> Look {
        Look {
            colours: io::stderr().is_terminal() && !crate::screen::no_colour_wanted(),
            times: !service::journal_reads_stderr(),
        }
    }
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    match field.name() {
        "message" => write!(writer, "{:?}", Escaped(value)),
        name => write!(writer, "{name}={:?}", Escaped(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Arc;

    fn config(folder: &std::path::Path, format: Format) -> LogConfig {
        LogConfig { folder: Some(folder.to_owned()), format, ..LogConfig::default() }
    }

    /// What the file holds after `events` ran with the log of `config`.
    fn logged(format: Format, directives: Option<&str>, events: impl FnOnce()) -> String {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), format);
        let (writer, guard) = in_background(open_file(folder.path(), "master", &config).unwrap());
        let subscriber = tracing_subscriber::registry().with(filter(config.level, directives).unwrap()).with(layer(
            format,
            Look::PLAIN,
            writer,
        ));
        tracing::subscriber::with_default(subscriber, events);
        drop(guard);
        fs::read_to_string(folder.path().join("master.log")).unwrap()
    }

    fn hostile() {
        let evil = "x\n2026-01-01T00:00:00Z INFO forged \u{1b}[31m\r\u{2028}";
        tracing::info!(reason = %evil, text = evil, "Received message: {evil}");
        tracing::info_span!("span", id = %evil).in_scope(|| tracing::warn!(error = ?evil, "again"));
    }

    #[test]
    fn text_from_a_slave_cannot_forge_lines() {
        for format in [Format::Text, Format::Json] {
            let log = logged(format, None, hostile);
            assert_eq!(log.lines().count(), 2, "{log}");
            assert!(log.contains("Received message: x\\n2026"), "{log}");
            assert!(!log.contains(['\u{1b}', '\r']), "{log:?}");
        }
    }

    #[test]
    fn the_journal_gets_no_time_of_ours() {
        let kept = tempfile::NamedTempFile::new().unwrap();
        let look = Look { times: false, ..Look::PLAIN };
        let writer = Arc::new(kept.reopen().unwrap());
        let subscriber = tracing_subscriber::registry().with(layer(Format::Text, look, writer));
        tracing::subscriber::with_default(subscriber, || tracing::info!("client came"));
        let log = fs::read_to_string(kept.path()).unwrap();
        assert!(log.starts_with(" INFO rpicluster::log::tests: client came"), "{log}");
    }

    #[test]
    fn fields_are_readable() {
        let log = logged(Format::Text, None, || tracing::info!(slave = %"pi-7", count = 3, "client came"));
        assert!(log.trim_end().ends_with("client came slave=pi-7 count=3"), "{log}");
        let log = logged(Format::Json, None, || tracing::info!(slave = %"pi-7", "client came"));
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(line["fields"]["slave"], "pi-7");
    }

    #[test]
    fn the_router_is_never_heard_and_the_variable_sets_the_level() {
        let events = || {
            tracing::error!(target: "rumqttd::router", "flood");
            tracing::debug!("detail");
        };
        assert_eq!(logged(Format::Text, None, events), "");
        let log = logged(Format::Text, Some("debug"), events);
        assert!(log.contains("detail") && !log.contains("flood"), "{log}");
        assert!(filter(Level::Info, Some("a=b=c")).is_err());
    }
}
