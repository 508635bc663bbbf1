//! A job as it goes on, event by event.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use rpicluster_protocol::{AttemptKey, Epoch, JobEvent, JobId, JobInfo, JobState, TaskId, TaskOutput};
use tokio::time::MissedTickBehavior;

use super::{JobPath, look, number, stored_info, unknown};
use crate::board::{Board, Watch};
use crate::engine::tasks::write_event;
use crate::shown::task_info;
use crate::store::{Pieces, Reader, StoreError};
use crate::web::Site;
use crate::web::admin::{Answer, Refused};
use crate::web::body::{Lifeline, Portions, streamed};
use crate::web::query::Query;

/// How often something is sent while nothing happens: whoever hears nothing for longer gives the master up.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How many tasks are read at once.
const TASKS_MAX: u32 = 2_000;

/// First how the job stands, then what changes, until it has ended.
pub(super) async fn events(
    State(site): State<Arc<Site>>,
    Extension(lifeline): Extension<Lifeline>,
    job: JobPath,
    uri: Uri,
) -> Answer {
    let job = number(job)?;
    let output = Query::of(&uri, &["output"])?.get("output")?.unwrap_or(false);
    // Before anything is read: what is written from now on is told.
    let watch = site.board.watch(job, output).ok_or_else(|| {
        let problem = String::from("too many jobs are watched already: try again later");
        Refused(StatusCode::SERVICE_UNAVAILABLE, problem)
    })?;
    look(&site, move |reader| reader.job(job)).await?.ok_or_else(|| unknown(job))?;
    let watching = Watching { job, output, epoch: site.epoch, board: site.board.clone(), reader: site.reader.clone() };
    let body = streamed(lifeline, move |portions| watching.run(watch, portions));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, body).into_response())
}

#[derive(Clone)]
struct Watching {
    job: JobId,
    output: bool,
    epoch: Epoch,
    board: Arc<Board>,
    reader: Reader,
}

/// Where in the snapshot one is.
enum Place {
    Job,
    Tasks(u32),
    Output(Pieces),
    End,
}

impl Watching {
    async fn run(self, mut watch: Watch, portions: Portions) {
        let mut state = Snapshot { watching: self, place: Place::Job, info: None };
        loop {
            // A job that has ended is told of last: with that the stream ends.
            let Ok((found, next)) = tokio::task::spawn_blocking(move || {
                let portion = state.next();
                (portion, state)
            })
            .await
            else {
                return;
            };
            state = next;
            let is_error = found.is_err();
            let Some(portion) = found.transpose() else { break };
            if portion.as_ref().is_ok_and(Bytes::is_empty) {
                continue;
            }
            if portions.send(portion).await.is_err() || is_error {
                return;
            }
        }
        if !state.is_active() {
            return;
        }
        let mut keep_alive = tokio::time::interval(KEEP_ALIVE_INTERVAL);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let portion = tokio::select! {
                told = watch.next() => match told {
                    Some(portion) => portion,
                    None => return,
                },
                _ = keep_alive.tick() => Bytes::from_static(b":\n\n"),
            };
            if portions.send(Ok(portion)).await.is_err() {
                return;
            }
        }
    }
}

/// How the job stands, portion by portion.
struct Snapshot {
    watching: Watching,
    place: Place,
    info: Option<JobInfo>,
}

impl Snapshot {
    fn is_active(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.state == JobState::Active)
    }

    fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Watching { job, output, epoch, ref board, ref reader } = self.watching;
        let mut text = Vec::new();
        match std::mem::replace(&mut self.place, Place::End) {
            Place::Job => {
                self.info = stored_info(board, reader, job)?;
                if self.is_active() {
                    text.extend(self.info.iter().flat_map(job_event));
                }
                self.place = Place::Tasks(0);
                // Even if it is empty: that the stream has begun.
                text.extend_from_slice(b":\n\n");
            }
            Place::Tasks(from) => {
                let Some((stored, spec)) = reader.job(job)?.zip(reader.spec(job)?) else { return Ok(None) };
                let to = spec.tasks().min(from.saturating_add(TASKS_MAX));
                for (index, task) in reader.tasks(job, from, to)? {
                    let id = TaskId { job, index };
                    write_event(&mut text, &JobEvent::Task(task_info(&spec, id, &task, stored.output_dropped)));
                }
                self.place = match (to < spec.tasks(), output) {
                    (true, _) => Place::Tasks(to),
                    (false, true) => Place::Output(Pieces::OfJob(job, i64::MIN)),
                    (false, false) => Place::End,
                };
            }
            Place::Output(wanted) => {
                let (pieces, next) = reader.output(wanted)?;
                for piece in pieces {
                    let key = AttemptKey { task: piece.task, attempt: piece.attempt, epoch };
                    let (stream, offset, gap, data) = (piece.stream, piece.offset, piece.gap, piece.data);
                    write_event(&mut text, &JobEvent::Output(TaskOutput { key, stream, offset, gap, data }));
                }
                self.place = next.map_or(Place::End, Place::Output);
            }
            Place::End => {
                // Once.
                let ended = self.info.take_if(|info| info.state != JobState::Active);
                return Ok(ended.as_ref().map(job_event).map(Bytes::from));
            }
        }
        Ok(Some(text.into()))
    }
}

fn job_event(info: &JobInfo) -> Vec<u8> {
    let mut text = Vec::new();
    write_event(&mut text, &JobEvent::Job(info.clone()));
    text
}
