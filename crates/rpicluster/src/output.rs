//! Standard output without panics: the reader may go at any time, as in `rpicluster slaves | head -1`.

use std::io::{self, Write};

use crate::exit::{Exit, Failure};

/// Prints `text` and a line end.
///
/// # Errors
/// If it cannot be written. A reader that has gone ends the command, but is no failure.
pub(crate) fn print_line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(output_failure)
}

/// Tells where a long-lived process listens. It goes on if nobody reads that.
pub(crate) fn announce_line(text: &str) {
    // A daemon whose standard output is closed has still its log.
    let _ = print_line(text);
}

/// What a failed write to standard output means.
pub(crate) fn output_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Exit::Done, ""),
        _ => Failure::new(Exit::Failed, format!("cannot write to standard output: {error}")),
    }
}
