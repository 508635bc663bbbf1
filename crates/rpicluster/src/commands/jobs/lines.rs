//! Output as whole lines: a part of one is held until the rest comes.

/// A line longer than this is shown in parts.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The end of a stream that is no whole line yet.
#[derive(Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and gives every line that is whole, without its end.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if let Some(whole) = self.rest.strip_suffix(b"\n") {
                line(whole);
                self.rest.clear();
            } else if self.rest.len() >= LINE_BYTES_MAX {
                line(&self.rest);
                self.rest.clear();
            }
        }
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.rest)).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(lines: &mut Lines, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        lines.push(bytes, |line| whole.push(String::from_utf8_lossy(line).into_owned()));
        whole
    }

    #[test]
    fn a_part_of_a_line_waits_for_the_rest() {
        let mut lines = Lines::default();
        assert_eq!(pushed(&mut lines, b"a\nb"), ["a"]);
        assert_eq!(pushed(&mut lines, b"c\n\nd"), ["bc", ""]);
        assert_eq!(lines.finish().as_deref(), Some(&b"d"[..]));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn an_endless_line_is_shown_in_parts() {
        let mut lines = Lines::default();
        for _ in 0..10 {
            pushed(&mut lines, &[b'x'; 24 * 1024]);
            assert!(lines.rest.len() < LINE_BYTES_MAX);
        }
    }
}
