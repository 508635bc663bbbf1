//! What changes who may connect, or shows it: tokens, slaves, accounts, API tokens, the broker's clients.
//!
//! Every secret is answered once, when it is made, and cannot be read again.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use rpicluster_broker::Permissions;
use rpicluster_protocol::{SlaveId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Site, error};
use crate::access::{
    AccessError, Account, AccountWish, ApiToken, Denial, Labels, Name, Role, Token, TokenId, TokenWish,
};

/// The longest request body in bytes: two full lists of topic filters of reasonable length.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a token lives if nothing else is said.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Who asks for one of these has to prove who he is.
pub(super) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/tokens", get(tokens).post(create_token))
        .route("/api/v1/tokens/{id}", delete(revoke_token))
        .route("/api/v1/slaves", axum::routing::post(add_slave))
        .route("/api/v1/slaves/{id}", delete(remove_slave))
        .route("/api/v1/accounts", get(accounts).post(add_account))
        .route("/api/v1/accounts/{name}", delete(remove_account))
        .route("/api/v1/api-tokens", get(api_tokens).post(create_api_token))
        .route("/api/v1/api-tokens/{name}", delete(revoke_api_token))
        .route("/api/v1/broker/clients", get(clients))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// A request's body, or the answer to one that is not understood.
type Body<T> = Result<Json<T>, JsonRejection>;

/// The last part of a path, likewise.
type Last = Result<Path<String>, PathRejection>;

/// What a page answers; a refusal is an answer too.
type Answer = Result<Response, Refused>;

/// Why something is not done.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        error(self.0, self.1)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[serde(default = "default_ttl", with = "humantime_serde")]
    ttl: Duration,
    #[serde(default = "default_uses")]
    uses: u32,
    id: Option<SlaveId>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    replace: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSlave {
    id: SlaveId,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    replace: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAccount {
    name: Name,
    role: Role,
    password: String,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewApiToken {
    name: Name,
}

#[derive(Serialize)]
struct TokenPage {
    id: TokenId,
    created: Timestamp,
    expires: Timestamp,
    uses_left: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    slave: Option<SlaveId>,
    labels: Labels,
    replace: bool,
    /// Only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

#[derive(Serialize)]
struct SlaveSecretPage {
    id: SlaveId,
    secret: String,
}

/// What is left to be done by somebody else.
#[derive(Serialize)]
struct NotePage {
    note: String,
}

#[derive(Serialize)]
struct AccountPage {
    name: Name,
    role: Role,
    /// What its role or its lists allow.
    publish: Vec<String>,
    subscribe: Vec<String>,
}

#[derive(Serialize)]
struct ApiTokenPage {
    name: Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    /// Only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

async fn tokens(State(site): State<Arc<Site>>) -> Response {
    Json(site.access.tokens().into_iter().map(TokenPage::from).collect::<Vec<_>>()).into_response()
}

async fn create_token(State(site): State<Arc<Site>>, body: Body<NewToken>) -> Answer {
    let NewToken { ttl, uses, id, labels, replace } = read(body)?;
    let wish = TokenWish { ttl, uses, slave: id, labels, replace };
    let (token, made) = site.access.create_token(wish).await?;
    Ok(secret(TokenPage { token: Some(token.to_string()), ..made.into() }))
}

async fn revoke_token(State(site): State<Arc<Site>>, id: Last) -> Answer {
    let id = last(id)?;
    let parsed = TokenId::from_str(&id).map_err(|()| unknown("token", &id))?;
    done(site.access.revoke_token(parsed).await)
}

async fn add_slave(State(site): State<Arc<Site>>, body: Body<NewSlave>) -> Answer {
    let NewSlave { id, labels, replace } = read(body)?;
    let made = site.access.add_slave(id.clone(), labels, replace).await?;
    Ok(secret(SlaveSecretPage { id, secret: made.to_string() }))
}

async fn remove_slave(State(site): State<Arc<Site>>, id: Last) -> Answer {
    let id = last(id)?;
    let parsed = id.parse().map_err(|_| unknown("slave", &id))?;
    site.access.remove_slave(parsed).await?;
    if !site.access.is_external() {
        return done(Ok(()));
    }
    let note = format!(
        "{id} is forgotten here, but the broker of this cluster is not the master's own: remove its account there and end its \
         session, else it is listed anew as soon as it speaks"
    );
    Ok(Json(NotePage { note }).into_response())
}

async fn accounts(State(site): State<Arc<Site>>) -> Response {
    let page = |account: Account| {
        let Permissions { publish, subscribe, .. } = site.access.permissions(&account);
        AccountPage { name: account.name, role: account.role, publish, subscribe }
    };
    Json(site.access.accounts().into_iter().map(page).collect::<Vec<_>>()).into_response()
}

async fn add_account(State(site): State<Arc<Site>>, body: Body<NewAccount>) -> Answer {
    let NewAccount { name, role, password, publish, subscribe } = read(body)?;
    let wish = AccountWish { name: name.clone(), role, password, publish, subscribe };
    let account = site.access.add_account(wish).await?;
    let Permissions { publish, subscribe, .. } = site.access.permissions(&account);
    Ok((StatusCode::CREATED, Json(AccountPage { name, role, publish, subscribe })).into_response())
}

async fn remove_account(State(site): State<Arc<Site>>, name: Last) -> Answer {
    let name = last(name)?;
    let parsed = name.parse().map_err(|_| unknown("account", &name))?;
    done(site.access.remove_account(parsed).await)
}

async fn api_tokens(State(site): State<Arc<Site>>) -> Response {
    let page = |ApiToken { name, created, .. }| ApiTokenPage { name, created: Some(moment(created)), token: None };
    Json(site.access.api_tokens().into_iter().map(page).collect::<Vec<_>>()).into_response()
}

async fn create_api_token(State(site): State<Arc<Site>>, body: Body<NewApiToken>) -> Answer {
    let NewApiToken { name } = read(body)?;
    let token = site.access.create_api_token(name.clone()).await?;
    Ok(secret(ApiTokenPage { name, created: None, token: Some(token) }))
}

async fn revoke_api_token(State(site): State<Arc<Site>>, name: Last) -> Answer {
    let name = last(name)?;
    let parsed = name.parse().map_err(|_| unknown("API token", &name))?;
    done(site.access.revoke_api_token(parsed).await)
}

async fn clients(State(site): State<Arc<Site>>) -> Response {
    let mut clients = site.access.clients();
    clients.sort_by(|one, other| one.client_id.cmp(&other.client_id));
    Json(clients).into_response()
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Refused {
        AccessError::from(denial).into()
    }
}

impl From<AccessError> for Refused {
    fn from(problem: AccessError) -> Refused {
        let code = match &problem {
            AccessError::Denied(Denial::Invalid(_)) => StatusCode::BAD_REQUEST,
            AccessError::Denied(Denial::NotKnown { .. }) => StatusCode::NOT_FOUND,
            AccessError::Denied(_) | AccessError::NoCertificate | AccessError::External => StatusCode::CONFLICT,
            AccessError::Leaving(_) | AccessError::NotWritten(_) | AccessError::Stopping | AccessError::Random => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Refused(code, problem.to_string())
    }
}

impl From<Token> for TokenPage {
    fn from(token: Token) -> TokenPage {
        let Token { id, secret: _, created, expires, uses_left, slave, labels, replace } = token;
        let (created, expires) = (moment(created), moment(expires));
        TokenPage { id, created, expires, uses_left, slave, labels, replace, token: None }
    }
}

fn default_ttl() -> Duration {
    TOKEN_TTL
}

fn default_uses() -> u32 {
    1
}

fn moment(unix_seconds: u64) -> Timestamp {
    Timestamp::from_unix_ms(unix_seconds.saturating_mul(1_000))
}

/// What cannot be a name is the name of nothing.
fn unknown(what: &'static str, name: &str) -> Refused {
    Denial::NotKnown { what, name: format!("{name:?}") }.into()
}

fn last(path: Last) -> Result<String, Refused> {
    let not_text = |_| Refused(StatusCode::BAD_REQUEST, String::from("the name in the path is not UTF-8"));
    path.map(|Path(text)| text).map_err(not_text)
}

fn read<T>(body: Body<T>) -> Result<T, Refused> {
    body.map(|Json(body)| body).map_err(|rejection| {
        let code = match rejection.status() {
            // JSON of another shape is as bad a request as what is no JSON.
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            code => code,
        };
        Refused(code, rejection.body_text())
    })
}

/// Something was made whose secret is told now and never again: no cache may keep it.
fn secret(page: impl Serialize) -> Response {
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (StatusCode::CREATED, no_store, Json(page)).into_response()
}

fn done(result: Result<(), AccessError>) -> Answer {
    result?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
