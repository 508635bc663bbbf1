//! `rpicluster api-token`: what opens the HTTP API to programs and to people elsewhere.

use rpicluster_protocol::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::cli::{ApiTokenArgs, ApiTokenCommand};
use crate::exit::Failure;
use crate::http::MasterClient;
use crate::output::print_line;
use crate::table::plain;

const API_TOKENS_PATH: &str = "/api/v1/api-tokens";

#[derive(Deserialize)]
struct ApiTokenPage {
    name: String,
    created: Option<Timestamp>,
    token: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// If no master answers, or it refuses.
pub(crate) fn run(args: ApiTokenArgs) -> Result<(), Failure> {
    let client = MasterClient::new(args.master)?;
    match args.command {
        ApiTokenCommand::Create { name } => {
            let answer = client.change("POST", API_TOKENS_PATH, Some(&json!({ "name": name })))?;
            print_line(&client.parse::<ApiTokenPage>(&answer)?.token.unwrap_or_default())
        }
        ApiTokenCommand::List { json } => {
            let answer = client.change("GET", API_TOKENS_PATH, None)?;
            if json { print_line(&answer) } else { print_line(&list(client.parse(&answer)?)) }
        }
        ApiTokenCommand::Revoke { name } => {
            client.change("DELETE", &format!("{API_TOKENS_PATH}/{name}"), None)?;
            print_line(&format!("API token {name} opens nothing any more"))
        }
    }
}

fn list(tokens: Vec<ApiTokenPage>) -> String {
    if tokens.is_empty() {
        return "There is no API token: \"rpicluster api-token create\" makes one.".to_owned();
    }
    let row = |token: ApiTokenPage| [token.name, token.created.map(|at| at.to_string()).unwrap_or_default()];
    plain(["NAME", "CREATED"], &tokens.into_iter().map(row).collect::<Vec<_>>())
}
