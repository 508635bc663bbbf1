//! The integration tests: real processes, real sockets, Debian's `mosquitto_*` as the other side.
//!
//! One binary; a test goes where its topic is:

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

/// What tests stand on: processes, clusters, clients, faults, waiting.
mod harness;

/// All kinds of abuse at once, through TLS, while a hundred slaves work.
mod abuse;
/// Who may do what: every kind of client, on both listeners and both versions, against every kind of topic.
mod access;
/// Backups of the master's state, taken while it runs, and what comes of them on a new head.
mod backup;
/// The command line: exit codes, messages, output for scripts, configuration.
mod cli;
/// The commands that give work, against a master that says what the test wants: what they print, and how they end.
mod commands_jobs;
/// `docker-compose.yml`: a cluster of containers as it ships, hosts of their own, which are killed and cut off.
mod containers;
/// `rpicluster demo`: its summary, and that nothing of it is left running.
mod demo;
/// A broker that others run, Debian's: presence through its loss and its return, its own matrix of who may do what.
mod external;
/// What is no message, and who floods: answered, counted, and nobody else's problem.
mod hostile;
/// Joining by token, under users of their own; clones, removal, and folders that others can read.
mod joining;
/// Subscribers that are stopped and peers that are killed under full load: what was accepted arrives, or is counted.
mod no_loss;
/// A master that has no more file descriptors.
mod open_files;
/// Processes that are killed, stopped or restarted: who is seen online and offline, and how soon.
mod presence;
/// The same through a network that is cut, lossy or resets connections.
mod presence_network;
/// Many slaves and many messages: nothing lost, nothing misattributed.
mod scale;
/// `rpicluster install`: units that systemd accepts, confines and restarts, in a container whose init it is.
mod services;
/// What a slave does with tasks, the test in the master's place: it journals, runs, kills, reports and replays.
mod slave_tasks;
/// Strangers that abuse a broker in every way, beside mosquitto: what a bystander notices, and what memory stays.
mod storm;
/// Take-overs: an old connection's end never marks the new one offline.
mod takeover;
/// Tasks from the command line to the processes and back, with a real master and real slaves.
mod tasks;
/// Rules of the repository that no compiler checks.
mod tidy;
/// What people and foreign clients see on the wire: `mosquitto_sub`, a slave made of a shell script, MQTT 5 requests.
mod traffic;
