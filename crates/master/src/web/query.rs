//! What is behind the `?` of an address.

use std::fmt::Display;
use std::str::FromStr;

use axum::http::{StatusCode, Uri};

use super::admin::Refused;

/// The parameters of a request.
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    /// Takes the parameters that are `known`; no value that is possible needs to be escaped.
    pub(super) fn of(uri: &'a Uri, known: &[&str]) -> Result<Query<'a>, Refused> {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
        match pairs.iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => {
                let problem = format!("the parameter {name:?} is not known: use {}", known.join(", "));
                Err(Refused(StatusCode::BAD_REQUEST, problem))
            }
            None => Ok(Query(pairs)),
        }
    }

    /// A parameter's value, if it is given.
    pub(super) fn get<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Refused> {
        let Some((_, text)) = self.0.iter().find(|(known, _)| *known == name) else { return Ok(None) };
        let parsed = text.parse().map(Some);
        parsed.map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the parameter {name}={text:?}: {error}")))
    }
}
