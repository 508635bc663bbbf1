//! From a TOML file and environment variables to a typed value, or to an error that says what to change.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use config::{Config, ConfigError, FileFormat, Format, Map, Source, Value, ValueKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::exit::{Exit, Failure};
use crate::text::Escaped;

/// All variables of the configuration start so; `RPICLUSTER_URL` and the like do not.
const PREFIX: &str = "RPICLUSTER__";
/// Separates the levels of a key in a variable's name.
const SEPARATOR: &str = "__";
/// How the origin of a value from the environment starts.
const VARIABLE_ORIGIN: &str = "environment variable ";
/// No configuration is larger; a named device or pipe must not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// No key has more levels; a hostile variable must not nest without end.
const LEVELS_MAX: usize = 8;

/// One setting from the environment.
#[derive(Debug)]
pub(crate) struct Variable {
    name: String,
    /// The key's levels, lower case.
    levels: Vec<String>,
    value: String,
}

/// The settings among `environment`, sorted by name. An empty value counts as not set.
pub(crate) fn variables(environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<Variable>, Failure> {
    let mut variables = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        if value.is_empty() {
            continue;
        }
        let origin = format!("{VARIABLE_ORIGIN}{name}");
        let value = value.into_string().map_err(|_| wrong(&origin, "the value is not UTF-8"))?;
        let levels: Vec<String> = name[PREFIX.len()..].split(SEPARATOR).map(str::to_lowercase).collect();
        if levels.len() > LEVELS_MAX {
            return Err(wrong(&origin, "unknown key: it has too many levels"));
        }
        variables.push(Variable { name: name.to_owned(), levels, value });
    }
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(variables)
}

impl Variable {
    /// Whether it belongs to `broker.toml`.
    pub(crate) fn is_of_broker(&self) -> bool {
        self.levels[0] == "broker"
    }

    /// The same with the first level of its key taken off.
    pub(crate) fn without_section(mut self) -> Variable {
        self.levels.remove(0);
        self
    }

    fn into_layer(self) -> Result<Layer, Failure> {
        let origin = format!("{VARIABLE_ORIGIN}{}", self.name);
        if self.levels.is_empty() {
            return Err(wrong(&origin, "a key is missing after the section, as in RPICLUSTER__BROKER__SECTION__KEY"));
        }
        let leaf = Value::new(Some(&origin), self.value);
        let nested = self
            .levels
            .into_iter()
            .rev()
            .fold(leaf, |inner, level| Value::new(Some(&origin), Map::from_iter([(level, inner)])));
        let ValueKind::Table(table) = nested.kind else { return Err(wrong(&origin, "a key is missing")) };
        Layer::new(table, &origin)
    }
}

/// A value of the right type that still cannot be used.
pub(crate) struct Invalid {
    /// The dotted key.
    pub(crate) key: String,
    /// What is wrong with its value.
    pub(crate) problem: String,
}

/// Reads `T` from `file`, if there is one, with `variables` on top; `validate` checks what types cannot.
pub(crate) fn load_layers<T>(
    file: Option<&Path>,
    variables: Vec<Variable>,
    validate: impl FnOnce(&T) -> Result<(), Invalid>,
) -> Result<T, Failure>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut builder = Config::builder();
    if let Some(path) = file {
        builder = builder.add_source(read_file(path)?);
    }
    for variable in variables {
        builder = builder.add_source(variable.into_layer()?);
    }
    let fallback = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
    let merged = builder.build().map_err(|error| wrong(&fallback, error))?.cache;
    let typed: T = merged.clone().try_deserialize().map_err(|error| explain::<T>(&merged, &fallback, error))?;
    let back = serde_json::to_value(&typed).map_err(|error| wrong(&fallback, error))?;
    require_same_kinds(&merged, &back, "")?;
    validate(&typed).map_err(|Invalid { key, problem }| {
        wrong(origin_of(&merged, &key).unwrap_or(&fallback), format_args!("key {key}: {problem}"))
    })?;
    Ok(typed)
}

fn read_file(path: &Path) -> Result<Layer, Failure> {
    let origin = path.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let size = read.map_err(|error| wrong(&origin, format_args!("cannot read the file: {error}")))?;
    if size as u64 > FILE_BYTES_MAX {
        return Err(wrong(&origin, format_args!("the file has more than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        wrong(&origin, format_args!("line {line} is not UTF-8"))
    })?;
    // The parser's message shows the faulty line below its text, so it is not escaped like the others.
    let table = FileFormat::Toml.parse(Some(&origin), &text).map_err(|error| {
        let lines: Vec<String> = error.to_string().trim_end().lines().map(without_password).collect();
        Failure::new(Exit::Configuration, format!("{origin}: {}", lines.join("\n")))
    })?;
    Layer::new(table, &origin)
}

/// A line that the parser repeats, unless it sets a password.
fn without_password(line: &str) -> String {
    match line.split_once("password") {
        Some((before, after)) if after.contains('=') => format!("{before}password = …"),
        _ => line.to_owned(),
    }
}

/// One source for the `config` crate.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Layer {
    /// The `config` crate reads first-level keys as expressions (`a.b`, `a[9]`), so only plain ones may reach it.
    fn new(table: Map<String, Value>, origin: &str) -> Result<Layer, Failure> {
        let plain = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match table.keys().find(|key| !plain(key)) {
            Some(key) => Err(wrong(origin, format_args!("unknown key {key:?}"))),
            None => Ok(Layer(table)),
        }
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn wrong(origin: &str, problem: impl fmt::Display) -> Failure {
    Failure::new(Exit::Configuration, Escaped(format_args!("{origin}: {problem}")).to_string())
}

/// Says where the error is, and what would be valid there.
fn explain<T: Serialize + DeserializeOwned + Default>(merged: &Value, fallback: &str, error: ConfigError) -> Failure {
    let (key, problem) = located(error);
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    if let Some((unknown, siblings)) = unknown_field(&problem) {
        let key = joined(&key, unknown);
        let origin = origin_of(merged, &key).unwrap_or(fallback);
        return wrong(origin, format_args!("unknown key {key}; {}", suggestion::<T>(&key, &siblings)));
    }
    let origin = origin_of(merged, &key).unwrap_or(fallback);
    let problem = unknown_word::<T>(merged, &key).unwrap_or(problem);
    match value_at(&defaults, &key) {
        Some(default) if !default.is_object() && !default.is_null() => {
            wrong(origin, format_args!("key {key}: {problem}; the default is {default}"))
        }
        Some(Json::Object(_)) => wrong(origin, format_args!("key {key}: this is a section with keys of its own")),
        _ => wrong(origin, format_args!("key {key}: {problem}")),
    }
}

/// Takes an error apart into the dotted key and the bare problem.
fn located(error: ConfigError) -> (String, String) {
    match error {
        ConfigError::At { error, key, .. } => {
            let (inner, problem) = located(*error);
            (joined(&key.unwrap_or_default(), &inner), problem)
        }
        ConfigError::Type { unexpected, expected, key, .. } => {
            (key.unwrap_or_default(), format!("found {unexpected}, expected {expected}"))
        }
        ConfigError::NotFound(key) => (key, "the key is missing".to_owned()),
        other => (String::new(), other.to_string()),
    }
}

fn joined(key: &str, next: &str) -> String {
    if key.is_empty() || next.is_empty() { format!("{key}{next}") } else { format!("{key}.{next}") }
}

/// The unknown name and its possible siblings, out of serde's own words: "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(problem: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = problem.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// The `config` crate does not say which words an enum knows; serde_json does.
fn unknown_word<T: DeserializeOwned>(merged: &Value, key: &str) -> Option<String> {
    let word = key.split('.').try_fold(merged, child)?.clone().into_string().ok()?;
    let problem = problem_with::<T>(key, Json::String(word))?;
    problem.starts_with("unknown variant").then_some(problem)
}

/// What serde says of a configuration that holds nothing but `value` at `key`.
fn problem_with<T: DeserializeOwned>(key: &str, value: Json) -> Option<String> {
    let nested = key
        .split('.')
        .rev()
        .fold(value, |inner, level| Json::Object(serde_json::Map::from_iter([(level.to_owned(), inner)])));
    serde_json::from_value::<T>(nested).err().map(|error| error.to_string())
}

/// What the user may have meant: a neighbour with a similar name, else the same name in another section, else a choice.
fn suggestion<T: Serialize + DeserializeOwned + Default>(key: &str, siblings: &[&str]) -> String {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let distance = |sibling: &&str| strsim::damerau_levenshtein(name, sibling);
    let nearest = siblings.iter().copied().min_by_key(distance);
    if let Some(nearest) = nearest.filter(|nearest| distance(nearest) <= (name.len() / 3).max(1)) {
        return format!("did you mean {}?", joined(section, nearest));
    }
    let keys = known_keys::<T>();
    if let Some(elsewhere) = keys.iter().find(|known| known.rsplit('.').next() == Some(name)) {
        return format!("did you mean {elsewhere}?");
    }
    let place = if section.is_empty() { "the top level".to_owned() } else { format!("[{section}]") };
    format!("{place} knows: {}", siblings.join(", "))
}

/// The dotted keys of all sections and settings, also of those that are not set by default.
///
/// Each section is asked with a key that it cannot know: the answer lists those it knows, whatever is serialised.
pub(crate) fn known_keys<T: Serialize + DeserializeOwned + Default>() -> Vec<String> {
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    let mut keys = Vec::new();
    let mut sections = vec![String::new()];
    while let Some(section) = sections.pop() {
        let answer = problem_with::<T>(&joined(&section, "?"), Json::Null).unwrap_or_default();
        let named = unknown_field(&answer).map(|(_, names)| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
        // A map takes any name: those of its default entries are shown.
        let entries = || value_at(&defaults, &section)?.as_object().map(|map| map.keys().cloned().collect());
        for name in named.or_else(entries).unwrap_or_default() {
            let key = joined(&section, &name);
            if value_at(&defaults, &key).is_some_and(Json::is_object) {
                sections.push(key.clone());
            }
            keys.push(key);
        }
    }
    keys
}

fn value_at<'a>(value: &'a Json, key: &str) -> Option<&'a Json> {
    key.split('.').try_fold(value, |value, level| value.get(level))
}

fn child<'a>(value: &'a Value, level: &str) -> Option<&'a Value> {
    match &value.kind {
        ValueKind::Table(table) => table.get(level),
        _ => None,
    }
}

/// Where the value of `key`, or the first below it, was written.
fn origin_of<'a>(merged: &'a Value, key: &str) -> Option<&'a str> {
    fn first(value: &Value) -> Option<&str> {
        match &value.kind {
            ValueKind::Table(table) => table.values().find_map(first),
            _ => value.origin(),
        }
    }
    key.split('.').try_fold(merged, child).and_then(first)
}

/// The `config` crate takes `5` for `"5"` and `"true"` for `true`. That is right for the environment, where everything is
/// text; in a file it hides mistakes, so each value must have the kind that the setting has when it is written again.
fn require_same_kinds(written: &Value, typed: &Json, key: &str) -> Result<(), Failure> {
    let from_environment = written.origin().is_some_and(|origin| origin.starts_with(VARIABLE_ORIGIN));
    let expected = match (&written.kind, typed) {
        (ValueKind::Table(table), Json::Object(object)) => {
            return table.iter().try_for_each(|(name, inner)| {
                object.get(name).map_or(Ok(()), |typed| require_same_kinds(inner, typed, &joined(key, name)))
            });
        }
        (ValueKind::Array(items), Json::Array(typed)) => {
            let mut pairs = items.iter().zip(typed).enumerate();
            return pairs.try_for_each(|(n, (item, typed))| require_same_kinds(item, typed, &format!("{key}[{n}]")));
        }
        _ if from_environment => return Ok(()),
        (ValueKind::String(_), Json::String(_)) | (ValueKind::Boolean(_), Json::Bool(_)) => return Ok(()),
        (ValueKind::Float(_), Json::Number(number)) if number.is_f64() => return Ok(()),
        (ValueKind::Float(_), Json::Number(_)) => "a whole number",
        (ValueKind::I64(_), Json::Number(_)) | (_, Json::Null) => return Ok(()),
        (_, Json::String(_)) => "a text in quotes",
        (_, Json::Bool(_)) => "true or false",
        (_, Json::Number(_)) => "a number without quotes",
        (_, Json::Array(_)) => "a list",
        (_, Json::Object(_)) => "a section",
    };
    let origin = written.origin().unwrap_or("configuration");
    let found = if key.ends_with("password") { "something else".to_owned() } else { written.kind.to_string() };
    Err(wrong(origin, format_args!("key {key}: found {found}, expected {expected}")))
}

#[cfg(test)]
mod tests;
