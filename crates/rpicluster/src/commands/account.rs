//! `rpicluster account`: who may listen, and perhaps speak, without being a slave.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;

use crate::cli::{AccountArgs, AccountCommand, AccountRole};
use crate::exit::{Exit, Failure};
use crate::http::MasterClient;
use crate::output::print_line;
use crate::table::plain;

const ACCOUNTS_PATH: &str = "/api/v1/accounts";
/// No password is longer; a named device must not fill the memory.
const PASSWORD_BYTES_MAX: u64 = 1024;

#[derive(Deserialize)]
struct AccountPage {
    name: String,
    role: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If no master answers, or it refuses.
pub(crate) fn run(args: AccountArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    match args.command {
        AccountCommand::Add { name, role, publish, subscribe, password_file } => {
            let role = match role {
                AccountRole::Observer => "observer",
                AccountRole::HomeAssistant => "home-assistant",
                AccountRole::Custom => "custom",
            };
            let (password, made) = match password_file {
                Some(path) => (password_from(&path)?, false),
                None => (random_password()?, true),
            };
            let body = json!({
                "name": name, "role": role, "password": password, "publish": publish, "subscribe": subscribe,
            });
            client.change("POST", ACCOUNTS_PATH, Some(&body))?;
            // Only what is printed nowhere else goes to standard output.
            if made { print_line(&password) } else { Ok(()) }
        }
        AccountCommand::List { json } => {
            let answer = client.change("GET", ACCOUNTS_PATH, None)?;
            if json { print_line(&answer) } else { print_line(&list(client.parse(&answer)?)) }
        }
        AccountCommand::Remove { name } => {
            client.change("DELETE", &format!("{ACCOUNTS_PATH}/{name}"), None)?;
            print_line(&format!("account {name} is removed"))
        }
    }
}

fn list(accounts: Vec<AccountPage>) -> String {
    if accounts.is_empty() {
        return "There is no account: \"rpicluster account add\" adds one.".to_owned();
    }
    let row =
        |account: AccountPage| [account.name, account.role, account.publish.join(" "), account.subscribe.join(" ")];
    plain(["NAME", "ROLE", "PUBLISHES", "SUBSCRIBES"], &accounts.into_iter().map(row).collect::<Vec<_>>())
}

fn password_from(path: &Path) -> Result<String, Failure> {
    let failed = |problem: String| Failure::new(Exit::Failed, format!("{}: {problem}", path.display()));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut text))
    };
    let size = read.map_err(|error| failed(error.to_string()))?;
    if size as u64 > PASSWORD_BYTES_MAX {
        return Err(failed(format!("has more than {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// 24 letters and digits that are not mistaken for one another: about 118 bits.
fn random_password() -> Result<String, Failure> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bits = [0; 24];
    getrandom::fill(&mut bits).context("the system gives no random numbers")?;
    Ok(bits.iter().map(|bits| char::from(ALPHABET[usize::from(bits % 32)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_differ_and_are_easy_to_type() {
        let (one, other) = (random_password().unwrap(), random_password().unwrap());
        assert!(one != other && one.len() == 24 && one.bytes().all(|b| b.is_ascii_alphanumeric()));
    }

    #[test]
    fn a_password_is_read_to_the_end_of_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, " a b \r\n").unwrap();
        assert_eq!(password_from(&path).unwrap(), " a b ");
        std::fs::write(&path, "x".repeat(1025)).unwrap();
        assert!(password_from(&path).unwrap_err().message.contains("more than 1024 bytes"));
    }
}
