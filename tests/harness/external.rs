//! Debian's broker as a cluster's own, with the rules that `rpicluster acl` prints and an account for each.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::cluster::{Cluster, rpicluster};
use super::faults::Place;
use super::mosquitto::{address_for_mosquitto, start_mosquitto};
use super::mqtt::Door;
use super::process::{Process, run};

/// An account beside those of the rules, which may do everything.
const WITNESS: &str = "witness";

/// See the module.
pub(crate) struct ForeignBroker {
    /// Its process.
    pub(crate) process: Process,
    address: SocketAddr,
    tls: bool,
    folder: TempDir,
}

impl ForeignBroker {
    /// Starts it, with accounts for the master, an observer and these slaves.
    pub(crate) fn start(slaves: &[&str]) -> ForeignBroker {
        ForeignBroker::with(slaves, false)
    }

    /// The same, with TLS; it wants to see its clients' certificates too.
    pub(crate) fn encrypted(slaves: &[&str]) -> ForeignBroker {
        ForeignBroker::with(slaves, true)
    }

    fn with(slaves: &[&str], tls: bool) -> ForeignBroker {
        let folder = tempfile::tempdir().unwrap();
        let mut acl = rpicluster(&Place::Here);
        acl.current_dir(folder.path()).args(["acl", "--format", "mosquitto"]).args(slaves);
        let rules = run(acl);
        assert_eq!(rules.code, Some(0), "{}", rules.err);
        let witness = format!("\nuser {WITNESS}\ntopic readwrite #\n");
        fs::write(folder.path().join("acl"), rules.out + &witness).unwrap();
        fs::write(folder.path().join("passwords"), "").unwrap();
        let address = address_for_mosquitto();
        if tls {
            make_certificates(folder.path(), address);
        }
        for account in ["master", "observer", WITNESS].iter().chain(slaves) {
            set_password(folder.path(), account, &password(account));
        }
        let process = start_mosquitto(folder.path(), address, &lines(folder.path(), tls));
        ForeignBroker { process, address, tls, folder }
    }

    /// Starts it again, after it has ended, with what it has kept: nothing.
    pub(crate) fn restart(&mut self) {
        self.process = start_mosquitto(self.folder.path(), self.address, &lines(self.folder.path(), self.tls));
    }

    /// Gives an account another password; who is connected stays so.
    pub(crate) fn change_password(&self, account: &str, password: &str) {
        set_password(self.folder.path(), account, password);
        self.process.signal(Signal::HUP);
    }

    /// Removes an account, as an operator would; who is connected stays so.
    pub(crate) fn remove_account(&self, account: &str) {
        let mut command = Command::new("mosquitto_passwd");
        command.arg("-D").arg(self.folder.path().join("passwords")).arg(account);
        assert_eq!(run(command).code, Some(0));
        self.process.signal(Signal::HUP);
    }

    /// A cluster at this broker whose `rpicluster.toml` has also these lines.
    pub(crate) fn cluster(&self, config: &str) -> Cluster {
        let config = format!("{}\n{config}", self.section("master"));
        Cluster::elsewhere(&config, self.door(WITNESS), leaked_login("observer"))
    }

    /// A slave of that cluster. The rest of its configuration is the master's.
    pub(crate) fn slave(&self, cluster: &Cluster, id: &str) -> Process {
        let config = fs::read_to_string(cluster.config()).unwrap();
        let config = config.replace(&password("master"), &password(id));
        let path = cluster.slave_folder(&format!("{id}.toml"));
        fs::write(&path, config).unwrap();
        let mut command = rpicluster(&Place::Here);
        command.args(["slave", "--id", id, "--stop-on-stdin-close"]);
        command.arg("--config").arg(path).arg("--state-dir").arg(cluster.slave_folder(id));
        Process::start(id, command)
    }

    /// The section `[cluster]` for this account.
    pub(crate) fn section(&self, account: &str) -> String {
        let (scheme, ca) = match self.tls {
            true => ("mqtts", {
                let path = |name: &str| self.folder.path().join(name).display().to_string();
                let own = format!("client_certificate = '{}'\nclient_key = '{}'", path("own.pem"), path("own.key"));
                format!("ca_file = '{}'\n{own}\n", self.ca_file().display())
            }),
            false => ("mqtt", String::new()),
        };
        format!("[cluster]\nbroker = '{scheme}://{}'\npassword = '{}'\n{ca}", self.address, password(account))
    }

    /// The CA of its certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The way in for an account.
    pub(crate) fn door(&self, account: &str) -> Door {
        Door { address: self.address, login: Some(leaked_login(account)) }
    }

    /// The way in for who sees all that is said, and may say everything.
    pub(crate) fn witness(&self) -> Door {
        self.door(WITNESS)
    }
}

fn lines(folder: &Path, tls: bool) -> Vec<&'static str> {
    let path = |name: &str| folder.join(name).display().to_string();
    // The tests run as root, and so does it, to read its files; everything else is as the rules advise.
    let mut lines = vec![
        "user root".to_owned(),
        "allow_anonymous false".to_owned(),
        "use_username_as_clientid true".to_owned(),
        "max_queued_messages 20000".to_owned(),
        format!("acl_file {}", path("acl")),
        format!("password_file {}", path("passwords")),
    ];
    if tls {
        lines.extend([format!("certfile {}", path("server.pem")), format!("keyfile {}", path("server.key"))]);
        lines.extend([format!("cafile {}", path("clients.pem")), "require_certificate true".to_owned()]);
    }
    lines.into_iter().map(|line| &*line.leak()).collect()
}

fn password(account: &str) -> String {
    format!("the secret of {account}")
}

fn leaked_login(account: &str) -> (&'static str, &'static str) {
    // Tests are short, and doors are handed around a lot.
    (account.to_owned().leak(), password(account).leak())
}

fn set_password(folder: &Path, account: &str, password: &str) {
    let mut command = Command::new("mosquitto_passwd");
    command.arg("-b").arg(folder.join("passwords")).args([account, password]);
    let done = run(command);
    assert_eq!(done.code, Some(0), "{}", done.err);
}

fn make_certificates(folder: &Path, address: SocketAddr) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // OpenSSL takes what has its issuer's name for its own issuer.
    params.distinguished_name.push(DnType::CommonName, "the CA of this test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    // The clients' CA is a file of its own: a test changes the other.
    for name in ["ca.pem", "clients.pem"] {
        fs::write(folder.join(name), ca.pem()).unwrap();
    }
    for name in ["server", "own"] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([address.ip().to_string()]).unwrap().signed_by(&key, &ca).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let path = folder.join(format!("{name}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
