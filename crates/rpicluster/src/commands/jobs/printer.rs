//! Where the output of tasks goes: standard output and error, beside a line that tells how far the job is.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

use rpicluster_protocol::Stream;

use crate::exit::Failure;
use crate::output::output_failure;
use crate::screen::{is_dumb, no_colour_wanted};
use crate::text::Escaped;

/// The line is drawn anew at most so often.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);
/// Goes to the line's begin and clears it.
const CLEAR: &str = "\r\x1b[K";
/// Colours for names that come one after the other, as numbers of SGR.
const PALETTE: [u8; 6] = [36, 33, 35, 32, 34, 96];
/// The colour of what went wrong.
const RED: u8 = 31;

/// Standard output and standard error of this process.
pub(super) struct Printer {
    out: BufWriter<io::Stdout>,
    err: BufWriter<io::Stderr>,
    out_on_terminal: bool,
    err_on_terminal: bool,
    colours_wanted: bool,
    status_wanted: bool,
    last: Stream,
    status: Status,
    noted: bool,
}

#[derive(Default)]
struct Status {
    text: String,
    is_drawn: bool,
    drawn_at: Option<Instant>,
}

impl Printer {
    /// For this process. Colours and the line about progress are for terminals.
    pub(super) fn new() -> Printer {
        Printer {
            out: BufWriter::new(io::stdout()),
            err: BufWriter::new(io::stderr()),
            out_on_terminal: io::stdout().is_terminal(),
            err_on_terminal: io::stderr().is_terminal(),
            colours_wanted: !no_colour_wanted(),
            status_wanted: io::stderr().is_terminal() && !is_dumb(),
            last: Stream::Stdout,
            status: Status::default(),
            noted: false,
        }
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(super) fn bytes(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.clear_status();
        if self.last != stream {
            self.flush()?;
            self.last = stream;
        }
        match stream {
            Stream::Stdout => self.out.write_all(bytes).map_err(output_failure),
            Stream::Stderr => {
                // If standard error is closed there is nobody to tell.
                let _ = self.err.write_all(bytes);
                Ok(())
            }
        }
    }

    /// Prints a line after a name, in the colour of that number. A terminal gets it with what could disturb it escaped.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(super) fn line(&mut self, stream: Stream, name: &str, colour: usize, line: &[u8]) -> Result<(), Failure> {
        let mut text = self.paint(stream, PALETTE[colour % PALETTE.len()], &format!("{name}:")).into_bytes();
        text.push(b' ');
        if self.on_terminal(stream) {
            text.extend_from_slice(safe(line).as_bytes());
        } else {
            text.extend_from_slice(line);
        }
        text.push(b'\n');
        self.bytes(stream, &text)
    }

    /// Tells on standard error what is no output of a task.
    pub(super) fn plain(&mut self, text: &str) {
        // Standard error never fails here.
        let _ = self.bytes(Stream::Stderr, format!("{text}\n").as_bytes());
    }

    /// Tells on standard error what this program has to say.
    pub(super) fn note(&mut self, text: &str) {
        self.plain(&format!("rpicluster: {text}"));
    }

    /// Says so only the first time.
    pub(super) fn note_once(&mut self, text: &str) {
        if !std::mem::replace(&mut self.noted, true) {
            self.note(text);
        }
    }

    /// Tells what went wrong with whom.
    pub(super) fn trouble(&mut self, name: &str, what: &str) {
        let text = self.paint(Stream::Stderr, RED, &format!("{name}: {what}"));
        self.note(&text);
    }

    /// Begins a question.
    pub(super) fn ask(&mut self, question: &str) {
        let _ = self.bytes(Stream::Stderr, format!("\r\nrpicluster: {question}").as_bytes());
        let _ = self.err.flush();
    }

    /// Shows how far the job is, if people look on.
    pub(super) fn status(&mut self, text: impl FnOnce() -> String) {
        let is_due = self.status.drawn_at.is_none_or(|at| at.elapsed() >= STATUS_INTERVAL);
        if !self.status_wanted || !is_due {
            return;
        }
        let text = text();
        if !self.status.is_drawn || self.status.text != text {
            let _ = write!(self.err, "{CLEAR}\x1b[?7l{text}\x1b[?7h");
            let _ = self.err.flush();
            self.status = Status { text, is_drawn: true, drawn_at: Some(Instant::now()) };
        }
    }

    /// Takes that away.
    pub(super) fn clear_status(&mut self) {
        if std::mem::take(&mut self.status.is_drawn) {
            let _ = self.err.write_all(CLEAR.as_bytes());
            let _ = self.err.flush();
        }
    }

    /// Lets everything be seen.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let _ = self.err.flush();
        self.out.flush().map_err(output_failure)
    }

    fn on_terminal(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.out_on_terminal,
            Stream::Stderr => self.err_on_terminal,
        }
    }

    fn paint(&self, stream: Stream, colour: u8, text: &str) -> String {
        if self.colours_wanted && self.on_terminal(stream) {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.clear_status();
    }
}

/// A line that moves no cursor and changes no colour; tabs stay.
fn safe(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    text.split('\t').map(|part| Escaped(part).to_string()).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_disturb_a_terminal() {
        assert_eq!(safe(b"a\tb \x1b[2J\r"), "a\tb \\u{1b}[2J");
        assert_eq!(safe(b"\xff"), "\u{fffd}");
    }
}
