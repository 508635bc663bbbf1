//! What slaves have to do with tasks: drained or not, and the labels by which jobs choose them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{post, put};
use axum::{Extension, Router};
use bytes::Bytes;
use rpicluster_protocol::{DrainRequest, SlaveId};

use super::{Ask, Site, ask, not_found, optional};
use crate::web::admin::{Answer, Body, Last, Refused, last, read};
use crate::web::guard::Requester;

/// The longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;

pub(super) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/slaves/{id}/drain", post(drain).delete(undrain))
        .route("/api/v1/slaves/{id}/labels", put(label))
}

async fn drain(
    State(site): State<Arc<Site>>,
    Extension(Requester(requester)): Extension<Requester>,
    id: Last,
    body: Bytes,
) -> Answer {
    let slave = slave(&site, id)?;
    let DrainRequest { reason, deadline_ms } = optional(&body)?;
    let reason: String = reason.unwrap_or_default().chars().take(REASON_CHARS_MAX).collect();
    let deadline = deadline_ms.map(Duration::from_millis);
    ask(&site, |done| Ask::Drain { slave, reason, deadline, requester, done }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn undrain(
    State(site): State<Arc<Site>>,
    Extension(Requester(requester)): Extension<Requester>,
    id: Last,
) -> Answer {
    let slave = slave(&site, id)?;
    ask(&site, |done| Ask::Undrain { slave, requester, done }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn label(State(site): State<Arc<Site>>, id: Last, body: Body<BTreeMap<String, Option<String>>>) -> Answer {
    let id = last(id)?;
    let slave: SlaveId = id.parse().map_err(|_| not_known(&id))?;
    site.access.set_labels(slave, read(body)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn slave(site: &Site, id: Last) -> Result<SlaveId, Refused> {
    let id = last(id)?;
    site.view.get(&id).map(|slave| slave.id.clone()).ok_or_else(|| not_known(&id))
}

fn not_known(id: &str) -> Refused {
    not_found(format!("slave {id:?} is not known"))
}
