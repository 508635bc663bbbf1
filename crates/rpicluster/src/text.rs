//! Text for people: from elsewhere (slaves, files, the environment) made safe for a terminal and a log file, and counts in words.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::str::FromStr;

/// So many of something, as in `3 tasks`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Prints what the inner value prints, with every character that could start a new line, move the cursor or reorder the
/// text replaced by its escape.
pub(crate) struct Escaped<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(EscapingWriter(f), "{}", self.0)
    }
}

impl<T: fmt::Debug> fmt::Debug for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(EscapingWriter(f), "{:?}", self.0)
    }
}

struct EscapingWriter<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for EscapingWriter<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(forges) {
            let last = piece.chars().next_back().filter(|c| forges(*c));
            let harmless = &piece[..piece.len() - last.map_or(0, char::len_utf8)];
            self.0.write_str(harmless)?;
            if let Some(last) = last {
                write!(self.0, "{}", last.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Control characters, line and paragraph separators, and the marks that change the direction of writing.
fn forges(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text that is nobody's business: `Debug` hides it, and no parser repeats it in an error.
#[derive(Clone)]
pub(crate) struct Hidden(pub(crate) String);

impl FromStr for Hidden {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Hidden, Infallible> {
        Ok(Hidden(text.to_owned()))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forging_characters_are_escaped_and_others_kept() {
        assert_eq!(Escaped("a\nb\u{1b}[31m").to_string(), "a\\nb\\u{1b}[31m");
        assert_eq!(Escaped("\u{202e}x\u{85}\u{2028}").to_string(), "\\u{202e}x\\u{85}\\u{2028}");
        assert_eq!(Escaped("Grüße, 51 °C").to_string(), "Grüße, 51 °C");
        assert_eq!(format!("{:?}", Escaped(format_args!("a\r\n"))), "a\\r\\n");
    }
}
