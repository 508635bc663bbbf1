//! The events of a job as they come over HTTP, asked for again whenever the stream breaks.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use rpicluster_protocol::{JobEvent, JobId, JobState};

use super::JOBS_PATH;
use super::watch::Input;
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;

/// A line is longer only if it is no master that writes it.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a master may be away before it is given up.
const ABSENCE_MAX: Duration = Duration::from_secs(300);
/// How long to wait before the stream is asked for again; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest such wait.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Reads the events of a job in a thread of its own until the job has ended, `inputs` is closed, or there is no hope.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn follow(client: MasterClient, job: JobId, inputs: SyncSender<Input>) -> io::Result<()> {
    let path = format!("{JOBS_PATH}/{job}/events?output=true");
    thread::Builder::new().name("events".to_owned()).spawn(move || {
        let ended = read_to_the_end(&client, &path, &inputs);
        // Nobody listens any more if the user has left.
        let _ = inputs.send(Input::Ended(ended));
    })?;
    Ok(())
}

fn read_to_the_end(client: &MasterClient, path: &str, inputs: &SyncSender<Input>) -> Result<(), Failure> {
    let mut absent_since = None;
    let mut pause = PAUSE_MIN;
    loop {
        let broken = match client.open(path) {
            Ok(stream) => {
                let heard = || {
                    absent_since = None;
                    pause = PAUSE_MIN;
                };
                match read(BufReader::new(stream), inputs, heard) {
                    Ok(()) => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        let what = format!("what answers there is no master, or a newer one: {error}");
                        return Err(Failure::new(Exit::Unreachable, what));
                    }
                    Err(error) => Failure::new(Exit::Unreachable, format!("the stream of events has broken: {error}")),
                }
            }
            Err(failure) => failure,
        };
        let since = *absent_since.get_or_insert_with(Instant::now);
        if broken.exit != Exit::Unreachable || since.elapsed() > ABSENCE_MAX {
            return Err(broken);
        }
        // The first attempt to come back is nobody's business.
        if pause > PAUSE_MIN && inputs.send(Input::Waiting(broken.message)).is_err() {
            return Ok(());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Passes events on until the job has ended, or nobody listens.
fn read(mut stream: impl BufRead, inputs: &SyncSender<Input>, mut heard: impl FnMut()) -> io::Result<()> {
    while let Some(data) = next(&mut stream)? {
        let event: JobEvent =
            serde_json::from_slice(&data).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        heard();
        let is_last = matches!(&event, JobEvent::Job(job) if job.state != JobState::Active);
        if inputs.send(Input::Event(Box::new(event))).is_err() || is_last {
            return Ok(());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The data of the next event of a `text/event-stream`; `None` at its end. An event without its empty line never came.
fn next(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        let Some(text) = line.strip_suffix(b"\n") else { return Ok(None) };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() && !data.is_empty() {
            return Ok(Some(data));
        }
        if let Some(more) = text.strip_prefix(b"data:") {
            if !data.is_empty() {
                data.push(b'\n');
            }
            data.extend_from_slice(more.strip_prefix(b" ").unwrap_or(more));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut stream: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(data) = next(&mut stream).unwrap() {
            events.push(String::from_utf8(data).unwrap());
        }
        events
    }

    #[test]
    fn events_end_with_an_empty_line_and_comments_are_skipped() {
        assert_eq!(all(b": hello\n\ndata: a\n\n:\n\nevent: x\ndata:b\r\ndata: c\r\n\r\n"), ["a", "b\nc"]);
        assert_eq!(all(b"data: a\n\ndata: torn\n"), ["a"]);
        assert_eq!(all(b"data: a\n\ndata: torn"), ["a"]);
        assert!(all(b"").is_empty());
    }
}
