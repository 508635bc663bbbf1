//! A picture that is redrawn in place on a terminal, and printed when it changes elsewhere.

use std::io::{self, IsTerminal, Write};

/// Height assumed for a terminal that does not tell.
const ROWS_DEFAULT: usize = 24;

/// Standard output as people look at it.
pub(crate) struct Screen {
    in_place: bool,
    last: String,
}

impl Screen {
    /// Standard output, redrawn in place if it is a terminal that can.
    pub(crate) fn stdout() -> Screen {
        Screen { in_place: io::stdout().is_terminal() && !is_dumb(), last: String::new() }
    }

    /// Whether a new picture replaces the one before.
    pub(crate) fn in_place(&self) -> bool {
        self.in_place
    }

    /// Shows `picture`. In place, what does not fit into the window is cut; elsewhere an unchanged picture prints nothing.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(crate) fn draw(&mut self, picture: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.in_place {
            if picture != self.last {
                self.last = picture.to_owned();
                writeln!(out, "{picture}")?;
            }
            return out.flush();
        }
        if self.last.is_empty() {
            self.last = picture.to_owned();
            out.write_all(b"\x1b[2J")?;
        }
        out.write_all(frame(picture, rows()).as_bytes())?;
        out.flush()
    }
}

/// Whether the terminal, if there is one, cannot draw over what it shows.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether the user wants no colours (<https://no-color.org>).
pub(crate) fn no_colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Whether standard output should be coloured.
pub(crate) fn colours_on_stdout() -> bool {
    io::stdout().is_terminal() && !no_colour_wanted()
}

/// The bytes that draw `picture` from the top left corner: without line wrap, each line cleared to its end.
fn frame(picture: &str, rows: usize) -> String {
    let total = picture.lines().count();
    // The last row stays free for the cursor.
    let shown = if total < rows { total } else { rows.saturating_sub(2) };
    let mut frame = String::from("\x1b[?7l\x1b[H");
    for line in picture.lines().take(shown) {
        frame.push_str(line);
        frame.push_str("\x1b[K\r\n");
    }
    if shown < total {
        frame.push_str(&format!("… {} more lines\x1b[K\r\n", total - shown));
    }
    frame.push_str("\x1b[J\x1b[?7h");
    frame
}

fn rows() -> usize {
    rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_row))
        .filter(|rows| *rows > 0)
        .unwrap_or(ROWS_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_higher_than_the_window_is_cut() {
        let picture = (0..50).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n");
        let frame = frame(&picture, 10);
        assert_eq!(frame.matches("\r\n").count(), 9);
        assert!(frame.contains("line 7\x1b") && !frame.contains("line 8\x1b"));
        assert!(frame.contains("… 42 more lines"));
    }

    #[test]
    fn a_small_picture_is_whole() {
        let frame = frame("a\nb", 10);
        assert!(frame.contains("a\x1b[K\r\nb\x1b[K\r\n") && !frame.contains("more lines"));
    }
}
