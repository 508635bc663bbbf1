//! A job as it is submitted: who would run what, and whether that can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use rpicluster_core::Target;
use rpicluster_core::tasks::{JobSpec, Step};
use rpicluster_protocol::limits::{JOB_BYTES_MAX, JOB_STEPS_MAX, JOB_TASKS_MAX, MESSAGE_BYTES_MAX};
use rpicluster_protocol::{
    AttemptKey, Details, Envelope, Epoch, JobAccepted, JobId, JobRequest, Liveness, SessionId, SlaveId, StepAccepted,
    StepRequest, TaskId, TaskOffer, ToSlave, Work, encode_to_slave,
};

use super::{Ask, Site, ask, look, stopping};
use crate::engine::tasks::Submission;
use crate::web::admin::{Answer, Refused};
use crate::web::guard::Requester;
use crate::web::labels;

/// A request up to this many bytes is read at once; of longer ones only a few at a time, for the sake of memory.
const SHORT_BYTES: u64 = 1024 * 1024;

/// How many long requests are read at once.
pub(crate) const LONG_MAX: usize = 2;

/// The longest idempotency key in bytes.
const KEY_BYTES_MAX: usize = 255;

/// The longest name of a job or step in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Submits a job, or tells who would run what.
pub(super) async fn submit(
    State(site): State<Arc<Site>>,
    Extension(Requester(requester)): Extension<Requester>,
    request: Request,
) -> Answer {
    let key = idempotency_key(request.headers())?;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let _place = match length {
        Some(0..=SHORT_BYTES) => None,
        // Nobody closes it.
        _ => site.long_requests.acquire().await.ok(),
    };
    let body = axum::body::to_bytes(request.into_body(), JOB_BYTES_MAX).await.map_err(|error| {
        let problem = format!("the body: {error}; a job has at most {JOB_BYTES_MAX} bytes");
        Refused(StatusCode::PAYLOAD_TOO_LARGE, problem)
    })?;
    if let Some(key) = key.clone()
        && let Some(answer) = look(&site, move |reader| reader.answer(&key)).await?
    {
        return Ok(created(answer));
    }
    let known = site.clone();
    let checked = tokio::task::spawn_blocking(move || check(&known, &body, requester)).await;
    let (spec, accepted, is_dry) = checked.map_err(|_| stopping())??;
    if is_dry {
        return Ok(Json(accepted).into_response());
    }
    let submission = Box::new(Submission { spec: Arc::new(spec), accepted, key });
    let accepted = ask(&site, |done| Ask::Submit(submission, done)).await?;
    Ok((StatusCode::CREATED, Json(accepted)).into_response())
}

/// The same answer as before.
fn created(answer: String) -> Response {
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(bad(format!("Idempotency-Key: use 1 to {KEY_BYTES_MAX} printable ASCII characters"))),
    }
}

/// A slave as targets see it.
struct Known {
    id: SlaveId,
    /// What it says of itself, with the labels that it was given.
    details: Details,
    is_online: bool,
    is_drained: bool,
}

/// Who a target means.
struct Chosen {
    slaves: Vec<SlaveId>,
    /// Those of them that are offline.
    offline: Vec<SlaveId>,
    /// Those of them that are drained.
    draining: Vec<SlaveId>,
}

/// What is to be done, as far as that can be said now; and whether it is only asked for.
fn check(site: &Site, body: &[u8], requester: String) -> Result<(JobSpec, JobAccepted, bool), Refused> {
    let request: JobRequest = serde_json::from_slice(body).map_err(|error| bad(format!("the body: {error}")))?;
    let JobRequest { name, steps: wanted, dry_run } = request;
    if wanted.is_empty() || wanted.len() > JOB_STEPS_MAX {
        return Err(bad(format!("steps: a job has 1 to {JOB_STEPS_MAX} of them, not {}", wanted.len())));
    }
    check_name("name", name.as_deref())?;
    let slaves = known(site);
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    let (mut steps, mut accepted) = (Vec::new(), Vec::new());
    let mut tasks = 0_u64;
    for (place, wanted) in (0..).zip(wanted) {
        let name = wanted.name.clone();
        let (step, who) = check_step(place, wanted, &slaves, &places)?;
        tasks += step.inputs.as_ref().map_or(step.slaves.len(), Vec::len) as u64;
        if tasks > u64::from(JOB_TASKS_MAX) {
            return Err(bad(format!("a job has at most {JOB_TASKS_MAX} tasks: submit several")));
        }
        if let Some(name) = name
            && places.insert(name.clone(), place).is_some()
        {
            return Err(bad(format!("steps[{place}].name: another step has the name {name:?} already")));
        }
        steps.push(step);
        accepted.push(who);
    }
    if tasks == 0 {
        return Err(bad("inputs: the list is empty, so that there is nothing to be done".to_owned()));
    }
    Ok((JobSpec { name, requester, steps }, JobAccepted { job: None, steps: accepted }, dry_run))
}

/// Everybody, offline slaves included.
fn known(site: &Site) -> Vec<Known> {
    let slaves = site.view.all().into_iter();
    let known = slaves.map(|slave| {
        let latest = slave.latest();
        let labels = labels(site, &slave.id, &latest);
        let details = Details { labels, ..latest.details.as_deref().cloned().unwrap_or_default() };
        let is_online = latest.state == Liveness::Online;
        Known { id: slave.id.clone(), details, is_online, is_drained: slave.work().drain.is_some() }
    });
    known.collect()
}

fn check_step(
    place: u32,
    wanted: StepRequest,
    slaves: &[Known],
    places: &BTreeMap<String, u32>,
) -> Result<(Step, StepAccepted), Refused> {
    let at = format!("steps[{place}]");
    let StepRequest { name, on, spec, inputs, retries, idempotent, wait_ms, batch, max_failures, after } = wanted;
    check_name(&format!("{at}.name"), name.as_deref())?;
    check_work(&at, &spec.work)?;
    if spec.timeout_ms == Some(0) {
        return Err(bad(format!("{at}.timeout_ms is 0: leave it out for no limit")));
    }
    let Chosen { slaves: chosen, offline, draining } = resolve(&at, &on, slaves)?;
    let before = |name: &String| {
        let problem = || bad(format!("{at}.after: no earlier step has the name {name:?}"));
        places.get(name).copied().ok_or_else(problem)
    };
    let after = after.iter().map(before).collect::<Result<_, _>>()?;
    let mut step = Step {
        name,
        on,
        spec,
        slaves: chosen,
        inputs,
        retries,
        idempotent,
        wait_ms,
        batch: None,
        max_failures: None,
        after,
    };
    let tasks = step.tasks();
    step.batch = batch.map(|share| share.of(tasks));
    step.max_failures = max_failures.map(|share| share.of(tasks));
    check_offer(&at, &step)?;
    let accepted = StepAccepted { slaves: step.slaves.clone(), offline, draining, tasks };
    Ok((step, accepted))
}

fn resolve(at: &str, on: &str, slaves: &[Known]) -> Result<Chosen, Refused> {
    let target = Target::parse(on).map_err(|error| bad(format!("{at}.on: {error}")))?;
    for name in target.names() {
        if slaves.binary_search_by(|slave| slave.id.as_str().cmp(name)).is_err() {
            return Err(nobody(format!("{at}.on {on:?}: no slave has the id {name:?}")));
        }
    }
    let chosen: Vec<&Known> = slaves.iter().filter(|slave| target.matches(&slave.id, &slave.details)).collect();
    if chosen.is_empty() {
        return Err(nobody(format!("no slave matches {at}.on {on:?}")));
    }
    let those =
        |which: fn(&Known) -> bool| chosen.iter().filter(|slave| which(slave)).map(|slave| slave.id.clone()).collect();
    Ok(Chosen {
        slaves: those(|_| true),
        offline: those(|slave| !slave.is_online),
        draining: those(|slave| slave.is_drained),
    })
}

fn check_name(what: &str, name: Option<&str>) -> Result<(), Refused> {
    match name {
        Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) => {
            Err(bad(format!("{what}: use 1 to {NAME_BYTES_MAX} bytes of printable text")))
        }
        _ => Ok(()),
    }
}

fn check_work(at: &str, work: &Work) -> Result<(), Refused> {
    let problem = match work {
        Work::Exec { argv } if argv.first().is_none_or(String::is_empty) => "argv: a command is missing",
        Work::Script { interpreter, .. } if interpreter.first().is_none_or(String::is_empty) => {
            "interpreter: it is missing, as in [\"sh\"]"
        }
        Work::Function { function, .. }
            if function.is_empty() || function.starts_with('.') || function.contains('/') =>
        {
            "function: use the name of a file in functions.d"
        }
        _ => return Ok(()),
    };
    Err(bad(format!("{at}.{problem}")))
}

/// The longest offer of the step must fit into a message.
fn check_offer(at: &str, step: &Step) -> Result<(), Refused> {
    let length = |text: &String| serde_json::to_string(text).map_or(usize::MAX, |json| json.len());
    let inputs = (0..).zip(step.inputs.iter().flatten());
    let place = inputs.max_by_key(|(_, input)| length(input)).map_or(0, |(place, _)| place);
    let Some(slave) = step.slaves.iter().max_by_key(|slave| slave.as_str().len()) else { return Ok(()) };
    let key = AttemptKey {
        task: TaskId { job: JobId(i64::MAX.unsigned_abs()), index: u32::MAX },
        attempt: u32::MAX,
        epoch: Epoch(u64::MAX),
    };
    let Ok(session) = "x".repeat(SESSION_BYTES).parse::<SessionId>() else { return Ok(()) };
    let offer = TaskOffer { key, session, lease_ms: u64::MAX, spec: step.rendered(place, slave) };
    encode_to_slave(&Envelope::new(ToSlave::TaskOffer(vec![offer]))).map(drop).map_err(|_| {
        bad(format!(
            "{at}: with its longest input it does not fit into the {MESSAGE_BYTES_MAX} bytes of a message: put long data \
             into a file that slaves fetch"
        ))
    })
}

/// The longest session in bytes; each may be escaped to two.
const SESSION_BYTES: usize = rpicluster_protocol::limits::REQUEST_ID_BYTES_MAX;

/// The request is well-formed, and there is nobody to do it.
fn nobody(problem: String) -> Refused {
    Refused(StatusCode::UNPROCESSABLE_ENTITY, problem)
}

fn bad(problem: String) -> Refused {
    Refused(StatusCode::BAD_REQUEST, problem)
}
