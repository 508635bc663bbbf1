//! HTTP for people and scripts: JSON. What anybody may read who reaches it is here; what changes something, or shows who
//! may connect, is in `admin.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use rpicluster_core::Moment;
use rpicluster_protocol::{Details, Liveness, SessionId, SlaveId, Timestamp, Vitals};
use serde::Serialize;

use crate::access::{Access, Labels};
use crate::clock;
use crate::counters::{MasterCounters, MasterFigures, SlaveFigures};
use crate::front::FrontView;
use crate::health::Health;
use crate::remote::RemotePage;
use crate::view::{Latest, Slave, View};

mod admin;
mod guard;
mod server;

pub(crate) use guard::{Guard, Needs};
pub(crate) use server::serve;

/// What HTTP reads.
pub(crate) struct Site {
    pub(crate) access: Access,
    pub(crate) view: Arc<View>,
    pub(crate) health: Arc<Health>,
    pub(crate) counters: Arc<MasterCounters>,
    pub(crate) front: FrontView,
    pub(crate) started: Moment,
}

/// One slave as HTTP shows it.
#[derive(Serialize)]
struct SlavePage<'a> {
    id: &'a SlaveId,
    state: Liveness,
    since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// What it says of itself, and what it was given when it enrolled, which wins.
    labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vitals: Option<&'a Vitals>,
    counters: SlaveFigures,
}

/// `/api/v1/status`
#[derive(Serialize)]
struct StatusPage<'a> {
    version: &'static str,
    session: SessionId,
    uptime_seconds: u64,
    /// The listeners of the master's own broker.
    mqtt: BTreeMap<&'a str, SocketAddr>,
    /// The broker that others run in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    external_broker: Option<RemotePage>,
    slaves: usize,
    online: usize,
    counters: Totals,
    broker: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Totals {
    #[serde(flatten)]
    slaves: SlaveFigures,
    #[serde(flatten)]
    master: MasterFigures,
}

/// `/healthz`
#[derive(Serialize)]
struct HealthPage {
    status: &'static str,
    bus: &'static str,
    engine: &'static str,
    /// The broker that others run, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<RemotePage>,
}

#[derive(Serialize)]
struct ErrorPage {
    error: String,
}

/// All pages.
pub(crate) fn router(site: Arc<Site>, guard: Arc<Guard>) -> Router {
    let guarded = |needs| axum::middleware::from_fn_with_state((guard.clone(), needs), guard::guard);
    Router::new()
        .merge(reading_router().layer(guarded(Needs::Reading)))
        .merge(admin::router().layer(guarded(Needs::Token)))
        .fallback(async |uri: Uri| error(StatusCode::NOT_FOUND, format!("there is no page {:?}", uri.path())))
        .method_not_allowed_fallback(async |method: Method| {
            error(StatusCode::METHOD_NOT_ALLOWED, format!("{method} means nothing on this page"))
        })
        .with_state(site)
}

/// What can only be read.
fn reading_router() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/slaves", get(slaves))
        .route("/api/v1/slaves/{id}", get(slave))
        .route("/api/v1/status", get(status))
        .route("/healthz", get(healthz))
        .layer(DefaultBodyLimit::max(0))
}

async fn slaves(State(site): State<Arc<Site>>) -> Response {
    let slaves: Vec<(Arc<Slave>, Latest)> = with_latest(&site.view);
    Json(slaves.iter().map(|(slave, latest)| page(&site, slave, latest)).collect::<Vec<_>>()).into_response()
}

async fn slave(State(site): State<Arc<Site>>, id: Result<Path<String>, PathRejection>) -> Response {
    let Ok(Path(id)) = id else {
        return error(StatusCode::BAD_REQUEST, String::from("the slave id in the path is not UTF-8"));
    };
    match site.view.get(&id) {
        Some(slave) => Json(page(&site, &slave, &slave.latest())).into_response(),
        None => error(StatusCode::NOT_FOUND, format!("slave {id:?} is not known")),
    }
}

async fn status(State(site): State<Arc<Site>>) -> Response {
    let slaves = with_latest(&site.view);
    Json(StatusPage {
        version: crate::VERSION,
        session: site.front.session(),
        uptime_seconds: clock::now().since(site.started).as_secs(),
        mqtt: site.front.addresses().iter().map(|(name, address)| (name.as_str(), *address)).collect(),
        external_broker: site.front.external(),
        slaves: slaves.len(),
        online: slaves.iter().filter(|(_, latest)| latest.state == Liveness::Online).count(),
        counters: Totals { slaves: site.view.figures(), master: site.counters.figures() },
        broker: site.front.figures(),
    })
    .into_response()
}

async fn healthz(State(site): State<Arc<Site>>) -> Response {
    let now = clock::now();
    let (bus, engine) = (site.health.bus.is_alive(now), site.health.engine.is_alive(now));
    let word = |alive| if alive { "ok" } else { "stalled" };
    let broker = site.front.external();
    let is_lost = broker.as_ref().is_some_and(|broker| !broker.connected);
    let status = if bus && engine && is_lost { "no broker" } else { word(bus && engine) };
    let code = if bus && engine && !is_lost { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let page = HealthPage { status, bus: word(bus), engine: word(engine), broker };
    (code, Json(page)).into_response()
}

fn with_latest(view: &View) -> Vec<(Arc<Slave>, Latest)> {
    view.all().into_iter().map(|slave| (slave.clone(), slave.latest())).collect()
}

fn page<'a>(site: &Site, slave: &'a Slave, latest: &'a Latest) -> SlavePage<'a> {
    let mut labels = latest.details.as_ref().map(|details| details.labels.clone()).unwrap_or_default();
    labels.extend(site.access.labels(&slave.id));
    SlavePage {
        labels,
        id: &slave.id,
        state: latest.state,
        since: latest.since,
        reason: latest.reason.as_deref(),
        session: latest.session.as_ref(),
        details: latest.details.as_deref(),
        vitals: latest.vitals.as_deref(),
        counters: slave.counters.figures(),
    }
}

fn error(code: StatusCode, error: String) -> Response {
    (code, Json(ErrorPage { error })).into_response()
}

#[cfg(test)]
mod tests;
