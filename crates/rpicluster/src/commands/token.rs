//! `rpicluster token`: with what slaves join.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rpicluster_client::BrokerAddress;
use rpicluster_machine::write_private;
use rpicluster_protocol::{SlaveId, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::{EnrolmentArgs, TokenArgs, TokenCommand};
use crate::commands::slaves::labels_text;
use crate::exit::{Exit, Failure};
use crate::http::{MasterClient, STATUS_PATH};
use crate::output::print_line;
use crate::table::plain;

/// Where the master keeps them.
const TOKENS_PATH: &str = "/api/v1/tokens";
/// The listener that slaves on other machines use.
const CLUSTER_LISTENER: &str = "cluster";

/// A token as the master's API shows it.
#[derive(Deserialize)]
struct TokenPage {
    id: String,
    expires: Timestamp,
    uses_left: u32,
    slave: Option<SlaveId>,
    labels: BTreeMap<String, String>,
    replace: bool,
    token: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// If no master answers, or it refuses.
pub(crate) fn run(args: TokenArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    match args.command {
        TokenCommand::Create { ttl, uses, id, enrolment, json, output } => {
            let answer = client.change("POST", TOKENS_PATH, Some(&wish(ttl, uses, id, enrolment)))?;
            match output {
                _ if json => print_line(&answer),
                Some(path) => keep(&client.parse(&answer)?, &path),
                None => print_line(&invitation(&client, &client.parse(&answer)?, ttl)?),
            }
        }
        TokenCommand::List { json } => {
            let answer = client.change("GET", TOKENS_PATH, None)?;
            if json { print_line(&answer) } else { print_line(&list(&client.parse::<Vec<TokenPage>>(&answer)?)) }
        }
        TokenCommand::Revoke { id } => {
            client.change("DELETE", &format!("{TOKENS_PATH}/{id}"), None)?;
            print_line(&format!("token {id} opens nothing any more"))
        }
    }
}

/// A token for `uses` slaves that start soon.
///
/// # Errors
/// If the master does not answer or refuses.
pub(crate) fn create(client: &MasterClient, uses: u32) -> Result<String, Failure> {
    const SOON: Duration = Duration::from_secs(3600);
    let enrolment = EnrolmentArgs { labels: Vec::new(), replace: false };
    let answer = client.change("POST", TOKENS_PATH, Some(&wish(SOON, uses, None, enrolment)))?;
    Ok(client.parse::<TokenPage>(&answer)?.token.unwrap_or_default())
}

fn wish(ttl: Duration, uses: u32, id: Option<SlaveId>, enrolment: EnrolmentArgs) -> Value {
    let EnrolmentArgs { labels, replace } = enrolment;
    let labels: BTreeMap<String, String> = labels.into_iter().collect();
    json!({
        "ttl": humantime::format_duration(ttl).to_string(),
        "uses": uses,
        "id": id,
        "labels": labels,
        "replace": replace,
    })
}

/// Puts the token where a slave reads it.
fn keep(page: &TokenPage, path: &Path) -> Result<(), Failure> {
    let token = page.token.as_deref().unwrap_or_default();
    write_private(path, &format!("{token}\n")).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    print_line(&format!("token {} is in {}", page.id, path.display()))
}

/// The command that a person takes to the new machine.
fn invitation(client: &MasterClient, page: &TokenPage, ttl: Duration) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Status {
        mqtt: BTreeMap<String, SocketAddr>,
    }
    let status: Status = client.parse(&client.change("GET", STATUS_PATH, None)?)?;
    let master = status.mqtt.get(CLUSTER_LISTENER).map_or_else(|| "MASTER".to_owned(), |address| reached_by(*address));
    let token = page.token.as_deref().unwrap_or_default();
    let id = page.slave.as_ref().map(|id| format!(" --id {id}")).unwrap_or_default();
    let machines = match page.uses_left {
        1 => "the new machine".to_owned(),
        many => format!("up to {many} new machines"),
    };
    Ok(format!(
        "Run this on {machines}, within {}:\n\n  rpicluster slave --master {master}{id} --token {token}\n",
        humantime::format_duration(ttl),
    ))
}

/// How another machine reaches a listener of this one.
fn reached_by(address: SocketAddr) -> String {
    let host = if address.ip().is_unspecified() {
        let host = rpicluster_machine::host_name().unwrap_or_else(|| "localhost".to_owned());
        format!("{}.local", host.split('.').next().unwrap_or(&host))
    } else {
        match address {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        }
    };
    if address.port() == BrokerAddress::TLS_PORT { host } else { format!("{host}:{}", address.port()) }
}

fn list(tokens: &[TokenPage]) -> String {
    let row = |token: &TokenPage| {
        let slave = token.slave.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
        let replace = if token.replace { "yes" } else { "no" };
        let uses = token.uses_left.to_string();
        [token.id.clone(), uses, token.expires.to_string(), slave, replace.to_owned(), labels_text(&token.labels)]
    };
    if tokens.is_empty() {
        return "There is no token: \"rpicluster token create\" makes one.".to_owned();
    }
    plain(["ID", "USES LEFT", "EXPIRES", "SLAVE", "REPLACES", "LABELS"], &tokens.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_that_another_machine_understands() {
        assert_eq!(reached_by("10.0.0.1:8883".parse().unwrap()), "10.0.0.1");
        assert_eq!(reached_by("[fd00::1]:4711".parse().unwrap()), "[fd00::1]:4711");
        let any = reached_by("0.0.0.0:4711".parse().unwrap());
        assert!(any.ends_with(".local:4711") && any.parse::<BrokerAddress>().is_ok(), "{any}");
    }

    #[test]
    fn a_wish_says_everything() {
        let enrolment = EnrolmentArgs { labels: vec![("room".into(), "lab".into())], replace: true };
        let wish = wish(Duration::from_secs(90), 2, Some("pi-1".parse().unwrap()), enrolment);
        assert_eq!(wish.to_string(), r#"{"id":"pi-1","labels":{"room":"lab"},"replace":true,"ttl":"1m 30s","uses":2}"#);
    }
}
