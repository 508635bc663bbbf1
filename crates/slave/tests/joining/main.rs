//! How a slave joins: what it sends to whom, what it keeps, and when it gives up.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as the test itself does")]

mod impostors;
mod logs;
mod master;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use master::{Ca, Master, NOT_AUTHORIZED, NOT_AUTHORIZED_V3, PATIENCE, SERVER_BUSY, WELCOME, WELCOME_V3, refusal};
use rpicluster_client::TrustError;
use rpicluster_protocol::{JoinToken, TopicRoot};
use rpicluster_slave::{Access, Behaviour, IdentityError, Slave, SlaveConfig, SlaveError, Status};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time;

struct Quiet;

impl Behaviour for Quiet {}

/// A machine on which a slave is started, perhaps several times.
struct Machine {
    state_dir: TempDir,
}

struct Running {
    status: watch::Receiver<Status>,
    task: JoinHandle<Result<(), SlaveError>>,
    _stop: oneshot::Sender<()>,
}

impl Machine {
    fn new() -> Machine {
        Machine { state_dir: tempfile::tempdir().unwrap() }
    }

    fn identity_file(&self) -> PathBuf {
        self.state_dir.path().join("identity.json")
    }

    fn identity(&self) -> Value {
        serde_json::from_slice(&fs::read(self.identity_file()).unwrap()).unwrap()
    }

    fn config(&self, master: &str) -> SlaveConfig {
        SlaveConfig {
            master: master.parse().unwrap(),
            id: Some("pi-1".parse().unwrap()),
            state_dir: self.state_dir.path().to_owned(),
            ..SlaveConfig::default()
        }
    }

    fn slave(&self, config: SlaveConfig, token: Option<JoinToken>) -> Result<Slave, SlaveError> {
        Slave::new(config, TopicRoot::default(), Access::Identity { token }, Quiet)
    }

    fn start(&self, port: u16, token: Option<JoinToken>) -> Running {
        self.start_at(&format!("127.0.0.1:{port}"), token)
    }

    fn start_at(&self, master: &str, token: Option<JoinToken>) -> Running {
        let slave = self.slave(self.config(master), token).unwrap();
        let status = slave.status();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(slave.run(async { drop(stopped.await) }));
        Running { status, task, _stop: stop }
    }

    /// A machine that has joined a master with `ca`.
    async fn joined(ca: &Ca) -> (Machine, Master) {
        let (machine, master) = (Machine::new(), Master::start(ca).await);
        let mut running = machine.start(master.port, Some(ca.token()));
        master.answer(WELCOME).await;
        let _session = master.answer(WELCOME_V3).await;
        running.wait_for("connected", |status| status.connected).await;
        running.task.abort();
        (machine, master)
    }
}

impl Running {
    async fn wait_for(&mut self, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
        let waited = time::timeout(PATIENCE, self.status.wait_for(condition)).await;
        waited.unwrap_or_else(|_| panic!("not reached: {what}")).unwrap().clone()
    }

    /// The error that ends it.
    async fn end(self) -> SlaveError {
        time::timeout(PATIENCE, self.task).await.expect("the slave goes on").unwrap().unwrap_err()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_token_is_used_once_and_the_secret_from_then_on() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start(&ca).await;
    let mut running = machine.start(master.port, Some(ca.token()));

    let (_stream, enrolment) = master.answer(WELCOME).await;
    assert_eq!((enrolment.version, enrolment.clean, enrolment.will), (5, true, false));
    assert_eq!(enrolment.user, "enrol:pi-1");
    let (token, secret) = enrolment.token_and_secret();
    assert_eq!(token, ca.token().to_string());

    let (_session, normal) = master.answer(WELCOME_V3).await;
    assert_eq!((normal.version, normal.clean, normal.will), (4, true, true));
    assert_eq!((normal.client_id.as_str(), normal.user.as_str()), ("pi-1", "pi-1"));
    assert_eq!(normal.password, secret);
    running.wait_for("connected", |status| status.connected && status.problem.is_none()).await;

    let identity = machine.identity();
    assert_eq!((&identity["id"], &identity["joined"]), (&"pi-1".into(), &true.into()));
    assert_eq!(identity["secret"], secret);
    let pem = rpicluster_client::certificate_to_pem(&ca.der());
    assert_eq!(identity["ca"], pem);
    assert_eq!(mode(&machine.identity_file()), 0o600);
    assert!(!fs::read_to_string(machine.identity_file()).unwrap().contains(token));
}

#[tokio::test]
async fn a_restart_needs_no_token_and_ignores_one() {
    let ca = Ca::new();
    let (machine, master) = Machine::joined(&ca).await;
    let secret = machine.identity()["secret"].clone();
    for token in [None, Some(ca.token()), Some(Ca::new().token())] {
        let mut running = machine.start(master.port, token);
        let (_session, connect) = master.answer(WELCOME_V3).await;
        assert_eq!((connect.user.as_str(), connect.password.as_str()), ("pi-1", secret.as_str().unwrap()));
        running.wait_for("connected", |status| status.connected).await;
        running.task.abort();
    }
}

#[tokio::test]
async fn a_repeated_try_bears_the_same_secret_also_after_a_crash() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start(&ca).await;
    let mut running = machine.start(master.port, Some(ca.token()));
    // The master stores it, and the answer is lost.
    let (stream, first) = master.accept().await;
    assert_eq!(machine.identity()["joined"], false);
    drop(stream);
    let status = running.wait_for("a problem", |status| status.problem.is_some()).await;
    assert!(status.problem.unwrap().starts_with("cannot join yet: "));
    let (_stream, second) = master.accept().await;
    assert_eq!(second, first);
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());

    assert!(matches!(machine.slave(machine.config("127.0.0.1"), None), Err(SlaveError::NotJoined)));
    let _running = machine.start(master.port, Some(ca.token()));
    let (_stream, third) = master.accept().await;
    assert_eq!(third, first);
}

#[tokio::test]
async fn another_id_is_another_try_with_another_secret() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start(&ca).await;
    let running = machine.start(master.port, Some(ca.token()));
    let (_stream, first) = master.answer(&refusal(NOT_AUTHORIZED, "pi-1 is another machine")).await;
    running.end().await;

    let config =
        SlaveConfig { id: Some("pi-2".parse().unwrap()), ..machine.config(&format!("127.0.0.1:{}", master.port)) };
    let task = tokio::spawn(machine.slave(config, Some(ca.token())).unwrap().run(std::future::pending()));
    let (_stream, second) = master.accept().await;
    assert_eq!(second.user, "enrol:pi-2");
    assert_ne!(second.token_and_secret().1, first.token_and_secret().1);
    task.abort();
}

#[tokio::test]
async fn a_refusal_ends_it_with_the_masters_words() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start(&ca).await;
    let running = machine.start(master.port, Some(ca.token()));
    let (_stream, _) = master.answer(&refusal(NOT_AUTHORIZED, "this token is used up\u{1b}[2J")).await;
    let error = running.end().await;
    assert!(matches!(error, SlaveError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("this token is used up\\u{1b}[2J (NotAuthorized)"), "{text}");
    assert!(text.contains("as pi-1") && text.contains("rpicluster token create"), "{text}");
    assert_eq!(machine.identity()["joined"], false);
}

#[tokio::test]
async fn a_busy_master_is_asked_again() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start(&ca).await;
    let mut running = machine.start(master.port, Some(ca.token()));
    master.answer(&refusal(SERVER_BUSY, "later")).await;
    master.answer(WELCOME).await;
    let _session = master.answer(WELCOME_V3).await;
    running.wait_for("connected", |status| status.connected).await;
}

#[tokio::test]
async fn an_absent_master_is_waited_for() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut running = machine.start(port, Some(ca.token()));
    let status = running.wait_for("a problem", |status| status.problem.is_some()).await;
    assert!(status.problem.unwrap().contains("refused") && !running.task.is_finished());
    drop(running._stop);
    time::timeout(PATIENCE, running.task).await.expect("it does not stop").unwrap().unwrap();
}

#[tokio::test]
async fn a_removed_slave_says_so_and_goes_on_asking() {
    let ca = Ca::new();
    let (machine, master) = Machine::joined(&ca).await;
    let mut running = machine.start(master.port, None);
    let _refused = master.answer(NOT_AUTHORIZED_V3).await;
    let problem = running.wait_for("a problem", |status| status.problem.is_some()).await.problem.unwrap();
    assert!(problem.contains("removed") && problem.contains(machine.identity_file().to_str().unwrap()), "{problem}");
    // The master may be restored from a backup.
    let _session = master.answer(WELCOME_V3).await;
    running.wait_for("connected", |status| status.connected && status.problem.is_none()).await;
}

#[tokio::test]
async fn without_identity_and_token_it_says_what_to_do() {
    let machine = Machine::new();
    let error = machine.slave(machine.config("127.0.0.1"), None).err().unwrap();
    assert!(matches!(error, SlaveError::NotJoined) && error.to_string().contains("rpicluster token create"));
}

#[tokio::test]
async fn a_file_that_others_may_read_is_refused() {
    let (machine, _master) = Machine::joined(&Ca::new()).await;
    fs::set_permissions(machine.identity_file(), fs::Permissions::from_mode(0o644)).unwrap();
    let error = machine.slave(machine.config("127.0.0.1"), None).err().unwrap();
    assert!(matches!(error, SlaveError::Identity(IdentityError::Private(_))));
    assert!(error.to_string().contains(&format!("chmod 600 {}", machine.identity_file().display())));
}

#[tokio::test]
async fn the_id_stays_what_it_was_when_it_joined() {
    let (machine, _master) = Machine::joined(&Ca::new()).await;
    let unnamed = SlaveConfig { id: None, ..machine.config("127.0.0.1") };
    assert_eq!(machine.slave(unnamed, None).unwrap().id().as_str(), "pi-1");
    let renamed = SlaveConfig { id: Some("pi-2".parse().unwrap()), ..machine.config("127.0.0.1") };
    let error = machine.slave(renamed, None).err().unwrap();
    assert!(matches!(error, SlaveError::Identity(IdentityError::OtherId { .. })));
    assert!(error.to_string().contains("pi-1") && error.to_string().contains("to become pi-2, remove"));
}

#[tokio::test]
async fn no_secret_leaves_the_machine_without_tls() {
    let (machine, _master) = Machine::joined(&Ca::new()).await;
    for (machine, token) in [(&machine, None), (&Machine::new(), Some(Ca::new().token()))] {
        let error = machine.slave(machine.config("mqtt://192.0.2.1"), token).err().unwrap();
        assert!(matches!(error, SlaveError::Plain(_)) && error.to_string().contains("mqtts://"), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_name_ends_it_with_the_right_ones() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let master = Master::start_as(&ca, "head.local", ca.der()).await;
    let running = machine.start(master.port, Some(ca.token()));
    assert!(master.shake_hands().await.is_err());
    let error = running.end().await;
    assert!(matches!(error, SlaveError::Untrusted(TrustError::WrongName { .. })), "{error:?}");
    assert!(error.to_string().contains("names head.local but not 127.0.0.1"), "{error}");
}
