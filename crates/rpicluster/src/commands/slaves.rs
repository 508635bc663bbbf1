//! `rpicluster slaves`: who is there, and how they fare.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rpicluster_protocol::{DrainRequest, SlaveId, Timestamp};
use serde::Deserialize;
use serde_json::json;

use crate::cli::{EnrolmentArgs, SlavesArgs, SlavesCommand};
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::{output_failure, print_line};
use crate::screen::{Screen, colours_on_stdout};
use crate::table::{SlaveRow, details, table};

/// Where the master lists its slaves.
pub(crate) const SLAVES_PATH: &str = "/api/v1/slaves";
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Prints the slaves once, or again and again.
///
/// # Errors
/// [`Exit::Unreachable`] if no master answers, [`Exit::Failed`] if it knows no such slave.
pub(crate) fn run(args: SlavesArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    if let Some(command) = args.command {
        return change(&client, command);
    }
    let id = args.id.as_ref();
    if args.json {
        return print_line(json(&client, id)?.trim_end());
    }
    let first = picture(&client, id)?;
    if args.watch { watch(&client, id, first) } else { print_line(&first) }
}

fn change(client: &MasterClient, command: SlavesCommand) -> Result<(), Failure> {
    match command {
        SlavesCommand::Add { ids, enrolment } => add(client, &ids, enrolment),
        SlavesCommand::Remove { id } => remove(client, &id),
        SlavesCommand::Drain { id, reason, deadline } => {
            let request = DrainRequest { reason, deadline_ms: deadline.map(milliseconds) };
            client.change("POST", &format!("{SLAVES_PATH}/{id}/drain"), Some(&json!(request)))?;
            print_line(&format!("slave {id} drains: it begins nothing more until \"rpicluster slaves undrain {id}\""))
        }
        SlavesCommand::Undrain { id } => {
            client.change("DELETE", &format!("{SLAVES_PATH}/{id}/drain"), None)?;
            print_line(&format!("slave {id} takes tasks again"))
        }
        SlavesCommand::Label { id, labels } => {
            let labels: BTreeMap<String, Option<String>> = labels.into_iter().collect();
            client.change("PUT", &format!("{SLAVES_PATH}/{id}/labels"), Some(&json!(labels)))?;
            print_line(&format!("slave {id} is labelled"))
        }
    }
}

fn remove(client: &MasterClient, id: &SlaveId) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Removed {
        note: String,
    }
    let answer = client.change("DELETE", &format!("{SLAVES_PATH}/{id}"), None)?;
    if answer.is_empty() {
        return print_line(&format!("slave {id} is removed: its secret opens nothing any more"));
    }
    // Where others run the broker, something is left to do there.
    print_line(&client.parse::<Removed>(&answer)?.note)
}

/// Prints id and secret of each, a line each.
fn add(client: &MasterClient, ids: &[SlaveId], enrolment: EnrolmentArgs) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Added {
        secret: String,
    }
    let EnrolmentArgs { labels, replace } = enrolment;
    let labels: BTreeMap<String, String> = labels.into_iter().collect();
    for id in ids {
        let body = json!({ "id": id, "labels": labels, "replace": replace });
        let answer = client.change("POST", SLAVES_PATH, Some(&body))?;
        print_line(&format!("{id} {}", client.parse::<Added>(&answer)?.secret))?;
    }
    Ok(())
}

/// Goes on when the master goes: it may come back.
fn watch(client: &MasterClient, id: Option<&SlaveId>, first: String) -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    let mut shown = first;
    loop {
        screen.draw(&shown).map_err(output_failure)?;
        thread::sleep(WATCH_INTERVAL);
        shown = picture(client, id).unwrap_or_else(|failure| failure.message);
    }
}

fn picture(client: &MasterClient, id: Option<&SlaveId>) -> Result<String, Failure> {
    let json = json(client, id)?;
    match id {
        None => Ok(table(&client.parse::<Vec<SlaveRow>>(&json)?, now(), colours_on_stdout())),
        Some(_) => Ok(details(&client.parse::<SlaveRow>(&json)?, now())),
    }
}

fn json(client: &MasterClient, id: Option<&SlaveId>) -> Result<String, Failure> {
    let path = id.map_or_else(|| SLAVES_PATH.to_owned(), |id| format!("{SLAVES_PATH}/{id}"));
    client.get_json(&path)?.ok_or_else(|| {
        let unknown = id.map_or_else(|| "list of slaves".to_owned(), |id| format!("slave {id}"));
        Failure::new(Exit::Failed, format!("the master knows no {unknown}: \"rpicluster slaves\" lists all"))
    })
}

/// Labels in one cell.
pub(crate) fn labels_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// As the HTTP API counts durations.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time of this machine, as the master would write it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
