//! Jobs: submitted, shown, watched, canceled, tried again.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use rpicluster_core::tasks::Task;
use rpicluster_protocol::{CancelRequest, JobId, JobInfo, RetryRequest, TaskId, TaskInfo, TaskPage, TaskState};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Site;
use super::admin::{Answer, Refused};
use super::guard::Requester;
use super::query::Query;
use crate::board::Board;
use crate::engine::Input;
use crate::engine::tasks::{Ask, AskError, Done};
use crate::shown::{job_info, task_info};
use crate::store::{Reader, StoreError};

mod events;
mod nodes;
mod output;
mod submit;

pub(crate) use submit::LONG_MAX;

/// The longest body of a request that submits nothing.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How many jobs are listed, at most and if nothing else is said.
const JOBS_PAGE: (u32, u32) = (1_000, 20);

/// How many tasks are listed, at most and if nothing else is said.
const TASKS_PAGE: (u32, u32) = (10_000, 1_000);

/// Who asks for one of these has to prove who he is: a job's command line may hold what is not for everybody.
pub(super) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/jobs", get(jobs).post(submit::submit))
        .route("/api/v1/jobs/{job}", get(job))
        .route("/api/v1/jobs/{job}/tasks", get(tasks))
        .route("/api/v1/jobs/{job}/tasks/{index}", get(task))
        .route("/api/v1/jobs/{job}/events", get(events::events))
        .route("/api/v1/jobs/{job}/output", get(output::output))
        .route("/api/v1/jobs/{job}/cancel", post(cancel))
        .route("/api/v1/jobs/{job}/retry", post(retry))
        .merge(nodes::router())
        // The page that submits reads its body itself.
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

type JobPath = Result<Path<String>, PathRejection>;

async fn jobs(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    let query = Query::of(&uri, &["limit"])?;
    let limit = query.get("limit")?.unwrap_or(JOBS_PAGE.1).min(JOBS_PAGE.0);
    let live = site.board.rows();
    let stored = look(&site, move |reader| reader.newest_jobs(limit)).await?;
    let shown = stored.into_iter().map(|mut job| {
        if let Some(row) = live.get(&job.row.job).filter(|_| job.row.ended.is_none()) {
            job.row = row.clone();
        }
        job_info(job)
    });
    Ok(Json(shown.collect::<Vec<_>>()).into_response())
}

async fn job(State(site): State<Arc<Site>>, job: JobPath) -> Answer {
    Ok(Json(info(&site, number(job)?).await?).into_response())
}

async fn tasks(State(site): State<Arc<Site>>, job: JobPath, uri: Uri) -> Answer {
    let job = number(job)?;
    let query = Query::of(&uri, &["from", "limit", "state"])?;
    let from = query.get("from")?.unwrap_or(0);
    let limit = query.get("limit")?.unwrap_or(TASKS_PAGE.1).clamp(1, TASKS_PAGE.0);
    let state = query.get::<Word>("state")?.map(|Word(state)| state);
    let page = look(&site, move |reader| page(reader, job, from, limit, state)).await?;
    Ok(Json(page.ok_or_else(|| unknown(job))?).into_response())
}

async fn task(State(site): State<Arc<Site>>, path: Result<Path<(String, String)>, PathRejection>) -> Answer {
    let Ok(Path((job, index))) = path else { return Err(not_text()) };
    let id: TaskId = format!("{job}.{index}").parse().map_err(|error| not_found(format!("{error}")))?;
    let page = look(&site, move |reader| page(reader, id.job, id.index, 1, None)).await?;
    let found = page.ok_or_else(|| unknown(id.job))?.tasks.pop();
    Ok(Json(found.ok_or_else(|| not_found(format!("task {id} is not known")))?).into_response())
}

async fn cancel(
    State(site): State<Arc<Site>>,
    Extension(Requester(requester)): Extension<Requester>,
    job: JobPath,
    body: Bytes,
) -> Answer {
    let (job, CancelRequest { running }) = (number(job)?, optional(&body)?);
    ask(&site, |done| Ask::Cancel { job, running, requester, done }).await?;
    Ok(Json(info(&site, job).await?).into_response())
}

async fn retry(
    State(site): State<Arc<Site>>,
    Extension(Requester(requester)): Extension<Requester>,
    job: JobPath,
    body: Bytes,
) -> Answer {
    let (job, RetryRequest { failed: failed_only }) = (number(job)?, optional(&body)?);
    ask(&site, |done| Ask::Retry { job, failed_only, requester, done }).await?;
    Ok(Json(info(&site, job).await?).into_response())
}

/// How a job stands.
async fn info(site: &Arc<Site>, job: JobId) -> Result<JobInfo, Refused> {
    let board = site.board.clone();
    look(site, move |reader| stored_info(&board, reader, job)).await?.ok_or_else(|| unknown(job))
}

fn stored_info(board: &Board, reader: &Reader, job: JobId) -> Result<Option<JobInfo>, StoreError> {
    let live = board.row(job);
    Ok(reader.job(job)?.map(|mut stored| {
        if let Some(row) = live.filter(|_| stored.row.ended.is_none()) {
            stored.row = row;
        }
        job_info(stored)
    }))
}

/// A page of tasks, those that nobody has begun among them.
fn page(
    reader: &Reader,
    job: JobId,
    from: u32,
    limit: u32,
    state: Option<TaskState>,
) -> Result<Option<TaskPage>, StoreError> {
    let Some((stored, spec)) = reader.job(job)?.zip(reader.spec(job)?) else { return Ok(None) };
    let (all, dropped) = (spec.tasks(), stored.output_dropped);
    let shown = |(index, task): &(u32, Task)| task_info(&spec, TaskId { job, index: *index }, task, dropped);
    let mut tasks: Vec<TaskInfo> = Vec::new();
    let next = match state {
        Some(TaskState::Queued) => {
            // Most of them have no row.
            let mut at = from;
            while at < all && tasks.len() < limit as usize {
                let to = all.min(at.saturating_add(limit));
                let queued = whole(reader, job, at, to)?.into_iter();
                let queued: Vec<_> = queued.filter(|(_, task)| task.state == TaskState::Queued).collect();
                let room = limit as usize - tasks.len();
                tasks.extend(queued.iter().take(room).map(shown));
                at = queued.get(room).map_or(to, |(index, _)| *index);
            }
            (at < all).then_some(at)
        }
        Some(state) => {
            let found = reader.tasks_in(job, state, from, limit + 1)?;
            tasks.extend(found.iter().take(limit as usize).map(shown));
            found.get(limit as usize).map(|(index, _)| *index)
        }
        None => {
            let to = all.min(from.saturating_add(limit));
            tasks.extend(whole(reader, job, from, to)?.iter().map(shown));
            (to < all).then_some(to)
        }
    };
    Ok(Some(TaskPage { tasks, next }))
}

/// All tasks from one place to another, which is not among them.
fn whole(reader: &Reader, job: JobId, from: u32, to: u32) -> Result<Vec<(u32, Task)>, StoreError> {
    let mut rows = reader.tasks(job, from, to)?.into_iter().peekable();
    let at = |index| rows.next_if(|(found, _)| *found == index).unwrap_or_else(|| (index, Task::new()));
    Ok((from..to).map(at).collect())
}

/// A task state as it is written.
struct Word(TaskState);

impl std::str::FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Word, String> {
        let found = TaskState::ALL.into_iter().find(|state| state.as_str() == text);
        found.map(Word).ok_or_else(|| format!("use one of {}", TaskState::ALL.map(TaskState::as_str).join(", ")))
    }
}

/// Reads the store where that may take its time.
async fn look<T: Send + 'static>(
    site: &Arc<Site>,
    look: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refused> {
    let reader = site.reader.clone();
    match tokio::task::spawn_blocking(move || look(&reader)).await {
        Ok(found) => found.map_err(|error| Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(_) => Err(stopping()),
    }
}

/// Asks the engine, and waits until what was asked for is written.
async fn ask<T>(site: &Site, ask: impl FnOnce(Done<T>) -> Ask) -> Result<T, Refused> {
    let (done, answer) = oneshot::channel();
    let engine = site.engine.upgrade().ok_or_else(stopping)?;
    engine.send(Input::Ask(ask(done))).await.map_err(|_| stopping())?;
    drop(engine);
    answer.await.map_err(|_| stopping())?.map_err(Refused::from)
}

impl From<AskError> for Refused {
    fn from(problem: AskError) -> Refused {
        let code = match problem {
            AskError::NotWritten => StatusCode::SERVICE_UNAVAILABLE,
            AskError::NoJob(_) => StatusCode::NOT_FOUND,
            AskError::TooMany(_) => StatusCode::CONFLICT,
        };
        Refused(code, problem.to_string())
    }
}

/// A body of JSON, or none.
fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refused> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

fn number(path: JobPath) -> Result<JobId, Refused> {
    let Ok(Path(text)) = path else { return Err(not_text()) };
    text.parse().map_err(|error| not_found(format!("{error}")))
}

fn unknown(job: JobId) -> Refused {
    not_found(format!("job {job} is not known"))
}

fn not_found(problem: String) -> Refused {
    Refused(StatusCode::NOT_FOUND, problem)
}

fn not_text() -> Refused {
    Refused(StatusCode::BAD_REQUEST, String::from("the path is not UTF-8"))
}

fn stopping() -> Refused {
    Refused(StatusCode::SERVICE_UNAVAILABLE, String::from("the master stops"))
}
