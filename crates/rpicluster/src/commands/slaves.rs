//! `rpicluster slaves`: who is there, and how they fare.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rpicluster_protocol::{SlaveId, Timestamp};
use serde::Deserialize;
use serde_json::json;

use crate::cli::{EnrolmentArgs, SlavesArgs, SlavesCommand, UrlArgs};
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
    match args.command {
        Some(SlavesCommand::Add { ids, enrolment, master }) => return add(&ids, enrolment, master),
        Some(SlavesCommand::Remove { id, master }) => {
            #[derive(Deserialize)]
            struct Removed {
                note: String,
            }
            let client = MasterClient::new(master)?;
            let answer = client.change("DELETE", &format!("{SLAVES_PATH}/{id}"), None)?;
            if !answer.is_empty() {
                // Where others run the broker, something is left to do there.
                return print_line(&client.parse::<Removed>(&answer)?.note);
            }
            return print_line(&format!("slave {id} is removed: its secret opens nothing any more"));
        }
        None => {}
    }
    let client = MasterClient::new(args.master)?;
    let id = args.id.as_ref();
    if args.json {
        return print_line(json(&client, id)?.trim_end());
    }
    let first = picture(&client, id)?;
    if args.watch { watch(&client, id, first) } else { print_line(&first) }
}

/// Prints id and secret of each, a line each.
fn add(ids: &[SlaveId], enrolment: EnrolmentArgs, master: UrlArgs) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Added {
        secret: String,
    }
    let EnrolmentArgs { labels, replace } = enrolment;
    let labels: BTreeMap<String, String> = labels.into_iter().collect();
    let client = MasterClient::new(master)?;
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

/// The time of this machine, as the master would write it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
