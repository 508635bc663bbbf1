//! Tasks on the slave: what may run, what has run, and what the master has yet to hear of it.
//!
//! A thread of its own, because it waits for the disk; the session hands it what comes for it and sends what it has to say.
//! The rules are `rpicluster_core::journal`; the processes are the supervisor's (see there).

mod account;
mod config;
mod engine;
mod file;
mod output;
mod policy;
mod runner;
mod speech;

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rpicluster_core::journal::Journal;
use rpicluster_machine::{PrivateError, create_private_folder, ensure_private_folder};
use rpicluster_protocol::{AttemptKey, JournalId, SessionId, SlaveId, Stream, ToSlave, Upward};
use tokio::sync::mpsc;

use self::engine::{Engine, Message};
use self::file::{Found, JournalFile};
use self::policy::Policy;
use crate::config::SlaveConfig;
use crate::supervisor::spool_path;
use crate::supervisor::wire::Setup;

pub use config::{FunctionConfig, Kind, TasksConfig};
pub use runner::SupervisorCommand;

/// Messages that wait for the thread. It takes all of them at once, so a full queue shows a disk that stands still; what is
/// dropped then, the master repeats.
const INPUTS_MAX: usize = 1024;
/// Messages that wait for the session.
const OUTGOING_MAX: usize = 16;

/// Why a slave cannot run tasks.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// The folder of its state is no place for them.
    #[error(transparent)]
    Folder(#[from] PrivateError),
    /// The system refuses.
    #[error("tasks: cannot {action} {}: {cause}", .path.display())]
    Io {
        /// What was tried, as in `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The system gives no random bits to name a journal.
    #[error("no random bits: {0}")]
    Random(#[from] getrandom::Error),
}

/// The session's end of the tasks.
#[derive(Debug)]
pub(crate) struct Tasks {
    inputs: SyncSender<Message>,
    /// The session that is up. Not a message, because none of these may be dropped.
    session: Arc<Mutex<Option<SessionId>>>,
    outgoing: mpsc::Receiver<Spoken>,
    /// The thread has something to say and no room for it.
    waits_for_room: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A message for the master, encoded.
#[derive(Debug)]
pub(crate) struct Spoken {
    /// In which session it makes sense.
    pub(crate) session: SessionId,
    pub(crate) leaf: Upward,
    pub(crate) payload: Vec<u8>,
}

impl Tasks {
    /// Kills what an earlier life has left, reads the journal and begins to listen.
    ///
    /// # Errors
    /// If the state cannot be read or written, or the supervisor not be started.
    pub(crate) fn start(
        config: &SlaveConfig,
        slave: SlaveId,
        boot_id: Option<String>,
        supervisor: SupervisorCommand,
    ) -> Result<Tasks, TasksError> {
        create_private_folder(&config.state_dir)?;
        let folder = config.state_dir.join("tasks");
        // A task does not run where the agent does.
        let folder = std::path::absolute(&folder).map_err(|cause| failed("find", &folder, cause))?;
        let [spool, work] = ["spool", "work"].map(|name| folder.join(name));
        for folder in [&folder, &spool, &work] {
            ensure_private_folder(folder)?;
        }
        let mark = mark(&fs::metadata(&folder).map_err(|cause| failed("read", &folder, cause))?);
        let cgroup = runner::cgroup_path(&mark);
        runner::kill_marked(&mark, cgroup.as_deref());
        empty(&work);

        let path = folder.join("journal");
        let (id, journal) = find_journal(&path, &spool, config.slots(), boot_id)?;
        tidy(&spool, &journal);
        let (inputs, receiver) = sync_channel(INPUTS_MAX);
        let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
        let waits_for_room = Arc::new(AtomicBool::new(false));
        let session = Arc::default();
        let grace = config.tasks.kill_grace;
        let setup = Setup {
            agent: mark.clone(),
            spool: spool.clone(),
            spool_max: config.tasks.spool_bytes_max,
            spool_used: 0,
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            cgroup,
        };
        let policy = Policy::new(config.tasks.clone(), slave, mark, work, config.slots());
        let engine = Engine::new(
            journal,
            JournalFile::new(path, id),
            policy,
            engine::Ways {
                inputs: inputs.clone(),
                session: Arc::clone(&session),
                outgoing: sender,
                waits_for_room: Arc::clone(&waits_for_room),
                supervisor,
                setup,
                spool,
            },
        );
        let thread = thread::Builder::new().name("tasks".to_owned()).spawn(move || engine.run(&receiver));
        let thread = thread.map_err(|cause| failed("start a thread for", &folder, cause))?;
        Ok(Tasks { inputs, session, outgoing, waits_for_room, thread: Some(thread) })
    }

    /// A session is up, its `state` on the way; or none is.
    pub(crate) fn set_session(&self, session: Option<&SessionId>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session.cloned();
        // If its queue is full it will look by itself.
        self.hand(Message::Look);
    }

    /// Everything is to be told again.
    pub(crate) fn announce(&self) -> bool {
        self.hand(Message::Announced)
    }

    /// Takes what is about tasks; whether it could be taken.
    pub(crate) fn deliver(&self, message: &ToSlave) -> bool {
        match message {
            ToSlave::TaskOffer(_) | ToSlave::TaskCancel(_) | ToSlave::TaskAck(_) | ToSlave::LeaseAck(_) => {
                self.hand(Message::Told(message.clone()))
            }
            _ => true,
        }
    }

    /// The next message for the master.
    pub(crate) async fn next(&mut self) -> Option<Spoken> {
        let next = self.outgoing.recv().await;
        if self.waits_for_room.swap(false, Ordering::AcqRel) {
            // If its queue is full it will look by itself.
            self.hand(Message::Look);
        }
        next
    }

    fn hand(&self, message: Message) -> bool {
        self.inputs.try_send(message).is_ok()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.outgoing.close();
        // The queue moves on, or the thread is gone.
        let _ = self.inputs.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn failed(action: &'static str, path: &Path, cause: io::Error) -> TasksError {
    TasksError::Io { action, path: path.to_owned(), cause }
}

/// Tells this agent from all others on this machine, containers that share its processes included: the folder of its state.
fn mark(folder: &Metadata) -> String {
    format!("{:x}-{}", folder.dev(), folder.ino())
}

fn find_journal(
    path: &Path,
    spool: &Path,
    slots: u32,
    boot_id: Option<String>,
) -> Result<(JournalId, Journal), TasksError> {
    let new = |boot_id| Ok((JournalId(getrandom::u64()?), Journal::new(slots, boot_id)));
    match file::read(path).map_err(|cause| failed("read", path, cause))? {
        Found::Nothing => new(boot_id),
        Found::Damaged { damage, aside } => {
            let aside = aside.display();
            tracing::error!(%damage, %aside, "the journal of tasks is damaged and was set aside: what had begun is lost");
            new(boot_id)
        }
        Found::Journal(contents) => {
            if contents.torn {
                tracing::info!("the last write to the journal of tasks was cut short, and is ignored");
            }
            let length =
                |key: &AttemptKey, stream| fs::metadata(spool_path(spool, key, stream)).map_or(0, |file| file.len());
            let spooled = |key| (length(&key, Stream::Stdout), length(&key, Stream::Stderr));
            Ok((contents.id, Journal::restore(slots, boot_id, contents.records, spooled)))
        }
    }
}

/// Removes output that belongs to nothing.
fn tidy(spool: &Path, journal: &Journal) {
    let streams = [Stream::Stdout, Stream::Stderr];
    let held: HashSet<PathBuf> =
        journal.keys().flat_map(|key| streams.map(|stream| spool_path(spool, &key, stream))).collect();
    for entry in fs::read_dir(spool).into_iter().flatten().flatten() {
        if !held.contains(&entry.path()) {
            // It only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "what a task has left cannot be removed");
        }
    }
}
