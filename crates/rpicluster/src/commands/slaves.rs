//! `rpicluster slaves`: who is there, and how they fare.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rpicluster_protocol::{SlaveId, Timestamp};

use crate::cli::SlavesArgs;
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
    let client = MasterClient::new(args.master.url);
    let id = args.id.as_ref();
    if args.json {
        return print_line(json(&client, id)?.trim_end());
    }
    let first = picture(&client, id)?;
    if args.watch { watch(&client, id, first) } else { print_line(&first) }
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

/// The time of this machine, as the master would write it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
