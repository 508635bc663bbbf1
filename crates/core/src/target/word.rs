//! The words of a target.

use std::fmt;

use super::Problem;

/// How a fact is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Is,
    IsNot,
    Below,
    AtMost,
    Above,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Word<'a> {
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
    All,
    Operator(Operator),
    Text(&'a str),
    /// Between quotes.
    Quoted(&'a str),
    End,
}

/// A target, word by word; each comes with the byte at which it begins.
pub(super) struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Words<'a> {
        Words { text, at: 0 }
    }

    pub(super) fn next(&mut self) -> Result<(usize, Word<'a>), Problem> {
        let (at, word, end) = self.read()?;
        self.at = end;
        Ok((at, word))
    }

    pub(super) fn peek(&self) -> Result<(usize, Word<'a>), Problem> {
        self.read().map(|(at, word, _)| (at, word))
    }

    /// The next word where a value is expected: `all` and its like mean nothing there.
    pub(super) fn next_value(&mut self) -> Result<(usize, Word<'a>), Problem> {
        let (at, word, end) = self.read()?;
        self.at = end;
        let is_text = matches!(word, Word::And | Word::Or | Word::Not | Word::All);
        Ok((at, if is_text { Word::Text(&self.text[at..end]) } else { word }))
    }

    fn read(&self) -> Result<(usize, Word<'a>, usize), Problem> {
        let rest = self.text[self.at..].trim_start();
        let at = self.text.len() - rest.len();
        let symbol = |word, bytes: usize| Ok((at, word, at + bytes));
        let Some(first) = rest.chars().next() else { return symbol(Word::End, 0) };
        match first {
            '(' => symbol(Word::Open, 1),
            ')' => symbol(Word::Close, 1),
            ',' => symbol(Word::Comma, 1),
            '=' => symbol(Word::Operator(Operator::Is), if rest.starts_with("==") { 2 } else { 1 }),
            '>' if rest.starts_with(">=") => symbol(Word::Operator(Operator::AtLeast), 2),
            '<' if rest.starts_with("<=") => symbol(Word::Operator(Operator::AtMost), 2),
            '!' if rest.starts_with("!=") => symbol(Word::Operator(Operator::IsNot), 2),
            '>' => symbol(Word::Operator(Operator::Above), 1),
            '<' => symbol(Word::Operator(Operator::Below), 1),
            '!' => Err((at, "\"!\" alone means nothing: use \"not\" or \"!=\"".to_owned())),
            '"' | '\'' => match rest[1..].find(first) {
                Some(length) => symbol(Word::Quoted(&rest[1..1 + length]), length + 2),
                None => Err((at, "this quote is never closed".to_owned())),
            },
            _ => {
                let text = &rest[..text_length(rest, at)?];
                let word = match text {
                    "and" => Word::And,
                    "or" => Word::Or,
                    "not" => Word::Not,
                    "all" => Word::All,
                    text => Word::Text(text),
                };
                symbol(word, text.len())
            }
        }
    }
}

/// Up to where a word goes that begins here: commas within brackets belong to it.
fn text_length(rest: &str, at: usize) -> Result<usize, Problem> {
    let mut open = None;
    for (offset, c) in rest.char_indices() {
        match c {
            '[' if open.is_none() => open = Some(offset),
            ']' => open = None,
            _ if open.is_some() && (c == ',' || c.is_ascii_digit() || c == '-') => {}
            _ if c.is_whitespace() || "(),=<>!\"'".contains(c) => {
                return open.map_or(Ok(offset), |open| Err(unclosed(at + open)));
            }
            _ => {}
        }
    }
    open.map_or(Ok(rest.len()), |open| Err(unclosed(at + open)))
}

fn unclosed(at: usize) -> Problem {
    (at, "this '[' is never closed: numbers as in [1-9,12] belong into it".to_owned())
}

impl Operator {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Operator::Is => "=",
            Operator::IsNot => "!=",
            Operator::Below => "<",
            Operator::AtMost => "<=",
            Operator::Above => ">",
            Operator::AtLeast => ">=",
        }
    }
}

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Open => f.write_str("'('"),
            Word::Close => f.write_str("')'"),
            Word::Comma => f.write_str("','"),
            Word::And => f.write_str("\"and\""),
            Word::Or => f.write_str("\"or\""),
            Word::Not => f.write_str("\"not\""),
            Word::All => f.write_str("\"all\""),
            Word::Operator(operator) => write!(f, "{:?}", operator.as_str()),
            Word::Text(text) | Word::Quoted(text) => write!(f, "{text:?}"),
            Word::End => f.write_str("the end"),
        }
    }
}
