//! The commands that give the cluster work and look after it.
//!
//! What is to be done becomes a `JobRequest` (`submission`, `template`, `file`); what happens comes as a stream of events
//! (`stream`), which `watch` turns into a [`View`](view::View) and shows through a presenter (`live`, `fold`, `results`).

mod file;
mod fold;
mod held;
mod joblog;
mod lines;
mod list;
mod live;
mod logs;
mod map;
mod names;
mod outcome;
mod printer;
mod progress;
mod results;
mod run;
mod stream;
mod submission;
mod submit;
mod template;
mod view;
mod watch;

pub(super) use list::{cancel, jobs, retry};
pub(super) use logs::logs;
pub(super) use map::map;
pub(super) use run::{action, run};
pub(super) use submit::submit;

/// Where the master keeps the jobs.
const JOBS_PATH: &str = "/api/v1/jobs";
