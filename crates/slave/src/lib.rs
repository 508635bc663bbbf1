//! The slave agent as a library: it keeps a connection to the master's broker, says who it is and how it fares, and
//! answers when it is asked to.
//!
//! A slave joins its master once, with a token, and keeps its own secret from then on ([`Access`]).
//!
//! [`Slave`] connects for ever; each connection is a session with an id and a will of its own. What a slave says and how
//! it reacts is its [`Behaviour`]; the default is [`Agent`], which tells about this machine. Many slaves can run in one
//! process.

mod behaviour;
mod config;
mod identity;
mod join;
mod outbox;
mod pulse;
mod session;
mod slave;
mod status;
mod supervisor;
mod tasks;
mod text;

pub use behaviour::{Agent, Behaviour};
pub use config::{ConfigError, SlaveConfig};
pub use identity::IdentityError;
pub use join::Refusal;
pub use outbox::{Outbox, OutboxError};
pub use pulse::Pulse;
pub use slave::{Access, Slave, SlaveError};
pub use status::{Status, query_status};
pub use supervisor::{SuperviseError, supervise};
pub use tasks::{FunctionConfig, Kind, SupervisorCommand, TasksConfig, TasksError};
