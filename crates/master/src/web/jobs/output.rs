//! What a task wrote, as it wrote it.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, Uri, header};
use axum::response::IntoResponse;
use rpicluster_protocol::{Stream, TaskId};

use super::{JobPath, look, not_found, number, unknown};
use crate::store::{Pieces, Reader};
use crate::web::Site;
use crate::web::admin::Answer;
use crate::web::body::{Lifeline, Portions, streamed};
use crate::web::query::Query;

/// Bytes of one stream of an attempt, by default the latest.
pub(super) async fn output(
    State(site): State<Arc<Site>>,
    Extension(lifeline): Extension<Lifeline>,
    job: JobPath,
    uri: Uri,
) -> Answer {
    let job = number(job)?;
    let query = Query::of(&uri, &["task", "stream", "attempt", "offset"])?;
    let id = TaskId { job, index: query.get("task")?.unwrap_or(0) };
    let stream = query.get::<Word>("stream")?.map_or(Stream::Stdout, |Word(stream)| stream);
    let offset = query.get("offset")?.unwrap_or(0);
    let spec = look(&site, move |reader| reader.spec(job)).await?.ok_or_else(|| unknown(job))?;
    if id.index >= spec.tasks() {
        return Err(not_found(format!(
            "task {id} is not known: job {job} has tasks 0 to {}",
            spec.tasks().saturating_sub(1)
        )));
    }
    let attempt = match query.get("attempt")? {
        Some(attempt) => attempt,
        None => {
            let rows = look(&site, move |reader| reader.tasks(job, id.index, id.index + 1)).await?;
            rows.first().map_or(0, |(_, task)| task.attempt)
        }
    };
    let reader = site.reader.clone();
    let body = streamed(lifeline, move |portions| send(reader, Pieces::Of(id, attempt, stream, offset), portions));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))], body).into_response())
}

async fn send(reader: Reader, mut wanted: Pieces, portions: Portions) {
    loop {
        let reader = reader.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || reader.output(wanted)).await else { return };
        let (pieces, next) = match found {
            Ok(found) => found,
            Err(error) => return drop(portions.send(Err(error)).await),
        };
        let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.data).collect();
        if !bytes.is_empty() && portions.send(Ok(bytes.into())).await.is_err() {
            return;
        }
        let Some(next) = next else { return };
        wanted = next;
    }
}

struct Word(Stream);

impl std::str::FromStr for Word {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Word, &'static str> {
        match text {
            "stdout" => Ok(Word(Stream::Stdout)),
            "stderr" => Ok(Word(Stream::Stderr)),
            _ => Err("use stdout or stderr"),
        }
    }
}
