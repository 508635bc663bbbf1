//! Patterns of ids and values: `*` any text, `?` any character, `[1-9,12]` any of these numbers.

use rpicluster_protocol::limits::SLAVE_ID_BYTES_MAX;

use super::Problem;

/// Decides in one pass over the text, whatever the pattern: nothing is tried twice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pattern {
    /// As it was written, without quotes.
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    /// A character; letters of ASCII stand for both their cases.
    One(char),
    Any,
    Many,
    Numbers(Vec<Range>),
}

#[derive(Debug, Clone, PartialEq)]
struct Range {
    from: u64,
    to: u64,
    /// How many digits a number has, if that was said with zeros before it, as in `[01-12]`.
    width: Option<usize>,
}

impl Pattern {
    /// A pattern of ids; it begins at the byte `at` of the target.
    pub(super) fn of_ids(text: &str, at: usize) -> Result<Pattern, Problem> {
        let mut parts = Vec::new();
        let mut chars = text.char_indices();
        while let Some((offset, c)) = chars.next() {
            parts.push(match c {
                '*' => Part::Many,
                '?' => Part::Any,
                '[' => {
                    let inner = chars.as_str();
                    // A word whose bracket is open was refused before.
                    let inner = &inner[..inner.find(']').unwrap_or(inner.len())];
                    chars.by_ref().find(|(_, c)| *c == ']');
                    Part::Numbers(ranges(inner, at + offset + 1)?)
                }
                'a'..='z' | '0'..='9' | '-' => Part::One(c),
                'A'..='Z' => return Err((at + offset, "ids are in lower case".to_owned())),
                _ => {
                    let problem = format!("{c:?} is in no id: use a-z, 0-9, '-', the patterns *, ? and [1-9,12]");
                    return Err((at + offset, problem));
                }
            });
        }
        if parts.iter().filter(|part| **part != Part::Many).count() > SLAVE_ID_BYTES_MAX {
            return Err((at, format!("an id has at most {SLAVE_ID_BYTES_MAX} characters")));
        }
        Ok(Pattern { text: text.to_owned(), parts })
    }

    /// A pattern of values: brackets mean themselves.
    pub(super) fn of_values(text: &str) -> Pattern {
        let part = |c| match c {
            '*' => Part::Many,
            '?' => Part::Any,
            c => Part::One(c),
        };
        Pattern { text: text.to_owned(), parts: text.chars().map(part).collect() }
    }

    /// No pattern at all.
    pub(super) fn exactly(text: &str) -> Pattern {
        Pattern { text: text.to_owned(), parts: text.chars().map(Part::One).collect() }
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The only text that it means, if there is only one.
    pub(super) fn as_literal(&self) -> Option<&str> {
        self.parts.iter().all(|part| matches!(part, Part::One(_))).then_some(self.text.as_str())
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        // Up to where the parts so far can reach: all their ways at once.
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for part in &self.parts {
            let mut next = vec![false; text.len() + 1];
            for start in (0..=text.len()).filter(|start| reached[*start]) {
                match part {
                    Part::Many => {
                        next[start..].fill(true);
                        break;
                    }
                    Part::Any if start < text.len() => next[start + 1] = true,
                    Part::One(c) if text.get(start).is_some_and(|other| other.eq_ignore_ascii_case(c)) => {
                        next[start + 1] = true;
                    }
                    Part::Numbers(ranges) => {
                        let digits = text[start..].iter().take_while(|c| c.is_ascii_digit()).count();
                        for end in start + 1..=start + digits {
                            let number: String = text[start..end].iter().collect();
                            next[end] |= ranges.iter().any(|range| range.holds(&number));
                        }
                    }
                    Part::Any | Part::One(_) => {}
                }
            }
            reached = next;
        }
        reached[text.len()]
    }
}

impl Range {
    fn holds(&self, digits: &str) -> bool {
        let width_fits = match self.width {
            Some(width) => digits.len() == width,
            None => digits.len() == 1 || !digits.starts_with('0'),
        };
        width_fits && digits.parse().is_ok_and(|number| (self.from..=self.to).contains(&number))
    }
}

/// What stands in brackets, at the byte `at` of the target.
fn ranges(text: &str, at: usize) -> Result<Vec<Range>, Problem> {
    let mut ranges = Vec::new();
    let mut at = at;
    for piece in text.split(',') {
        let (from, to) = piece.split_once('-').unwrap_or((piece, piece));
        let number = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| digits.parse().ok()).flatten();
            number.ok_or_else(|| (at, format!("{piece:?} is no number and no range as in 1-9")))
        };
        let (first, last) = (number(from)?, number(to)?);
        if first > last {
            return Err((at, format!("the range {piece:?} is empty: {first} is more than {last}")));
        }
        let width = (from.len() > 1 && from.starts_with('0')).then_some(from.len());
        if width.is_some_and(|width| width != to.len()) {
            return Err((at, format!("both ends of {piece:?} must have as many digits")));
        }
        ranges.push(Range { from: first, to: last, width });
        at += piece.len() + 1;
    }
    Ok(ranges)
}
