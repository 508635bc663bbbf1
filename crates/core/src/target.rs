//! TARGET: which slaves are meant, as in `role=worker and ram>=2G and not pi[1-3,12]`.
//!
//! A target is read once and then asked of each slave. Its words: an id, a pattern of ids (`*`, `?`, `[1-9,12]`), `all`, or a
//! label or fact, an operator and a value; `not`, `and`, `or` (a comma says the same) in this order of strength, and `( )`.

use rpicluster_protocol::limits::{TARGET_BYTES_MAX, TARGET_DEPTH_MAX};
use rpicluster_protocol::{Details, SlaveId};

mod fact;
mod pattern;
mod word;

use fact::Condition;
use pattern::Pattern;
use word::{Operator, Word, Words};

/// A target that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Target(Node);

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target {text:?} is not valid at character {}: {problem}", .at + 1)]
pub struct TargetError {
    /// The whole text.
    pub text: String,
    /// How many characters come before the place that is meant; all of them if something is missing at the end.
    pub at: usize,
    /// What is wrong, and what to do.
    pub problem: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    All,
    Id(Pattern),
    Condition(Condition),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

/// A problem and the byte at which it is.
type Problem = (usize, String);

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        parse(text).map(Target).map_err(|(byte, problem)| TargetError {
            text: text.get(..TARGET_BYTES_MAX).unwrap_or(text).to_owned(),
            at: text.char_indices().take_while(|(start, _)| *start < byte).count(),
            problem,
        })
    }

    /// Whether it means this slave. What a slave has not told of itself fulfils no condition but `!=`.
    pub fn matches(&self, slave: &SlaveId, details: &Details) -> bool {
        self.0.matches(slave, details)
    }

    /// Ids that it names in full outside of `not`: somebody expects that they exist.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.0.names(&mut names);
        names
    }
}

impl Node {
    fn matches(&self, slave: &SlaveId, details: &Details) -> bool {
        match self {
            Node::All => true,
            Node::Id(pattern) => pattern.matches(slave.as_str()),
            Node::Condition(condition) => condition.holds(details),
            Node::Not(node) => !node.matches(slave, details),
            Node::And(nodes) => nodes.iter().all(|node| node.matches(slave, details)),
            Node::Or(nodes) => nodes.iter().any(|node| node.matches(slave, details)),
        }
    }

    fn names<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Node::Id(pattern) => names.extend(pattern.as_literal()),
            Node::And(nodes) | Node::Or(nodes) => nodes.iter().for_each(|node| node.names(names)),
            Node::All | Node::Condition(_) | Node::Not(_) => {}
        }
    }
}

fn parse(text: &str) -> Result<Node, Problem> {
    if text.len() > TARGET_BYTES_MAX {
        return Err((TARGET_BYTES_MAX, format!("it is longer than {TARGET_BYTES_MAX} bytes")));
    }
    let mut parser = Parser { words: Words::new(text), depth: 0 };
    let node = parser.either()?;
    match parser.words.next()? {
        (_, Word::End) => Ok(node),
        (at, Word::Close) => Err((at, "this ')' closes nothing".to_owned())),
        (at, word) => Err((at, format!("\"and\", \"or\" or the end is expected before {word}"))),
    }
}

struct Parser<'a> {
    words: Words<'a>,
    depth: usize,
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Node, Problem> {
        let mut nodes = vec![self.both()?];
        while let (_, Word::Or | Word::Comma) = self.words.peek()? {
            self.words.next()?;
            nodes.push(self.both()?);
        }
        Ok(one_or(nodes, Node::Or))
    }

    fn both(&mut self) -> Result<Node, Problem> {
        let mut nodes = vec![self.single()?];
        while let (_, Word::And) = self.words.peek()? {
            self.words.next()?;
            nodes.push(self.single()?);
        }
        Ok(one_or(nodes, Node::And))
    }

    fn single(&mut self) -> Result<Node, Problem> {
        let (at, word) = self.words.next()?;
        match word {
            Word::Not | Word::Open => {
                self.depth += 1;
                if self.depth > TARGET_DEPTH_MAX {
                    return Err((at, format!("\"not\" and '(' are nested more than {TARGET_DEPTH_MAX} deep")));
                }
                let node = if word == Word::Not { Node::Not(Box::new(self.single()?)) } else { self.group(at)? };
                self.depth -= 1;
                Ok(node)
            }
            Word::All => Ok(Node::All),
            Word::Text(text) => match self.words.peek()? {
                (operator_at, Word::Operator(operator)) => {
                    self.words.next()?;
                    self.condition((at, text), (operator_at, operator))
                }
                _ => Pattern::of_ids(text, at).map(Node::Id),
            },
            Word::Quoted(_) => Err((at, "quotes are for values: an id needs none".to_owned())),
            Word::End => Err((at, "an id, \"all\" or a condition is missing".to_owned())),
            other => Err((at, format!("an id, \"all\" or a condition is expected before {other}"))),
        }
    }

    /// What stands in parentheses; the opening one, at `open`, was read.
    fn group(&mut self, open: usize) -> Result<Node, Problem> {
        let node = self.either()?;
        match self.words.next()? {
            (_, Word::Close) => Ok(node),
            (_, Word::End) => Err((open, "this '(' is never closed".to_owned())),
            (at, word) => Err((at, format!("\"and\", \"or\" or ')' is expected before {word}"))),
        }
    }

    fn condition(&mut self, key: (usize, &str), operator: (usize, Operator)) -> Result<Node, Problem> {
        let (at, value) = match self.words.next_value()? {
            (at, Word::Text(text)) => (at, Pattern::of_values(text)),
            (at, Word::Quoted(text)) => (at, Pattern::exactly(text)),
            (at, _) => return Err((at, format!("a value is missing after \"{}\"", operator.1.as_str()))),
        };
        Condition::new(key, operator.1, (at, value)).map(Node::Condition)
    }
}

fn one_or(mut nodes: Vec<Node>, several: impl FnOnce(Vec<Node>) -> Node) -> Node {
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        last => {
            nodes.extend(last);
            several(nodes)
        }
    }
}

#[cfg(test)]
mod tests;
