//! The processes that are measured: a master, a slave, mosquitto.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Entrance, LOGIN};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A process that is stopped when dropped.
pub(crate) struct Process {
    child: Child,
    _folder: TempDir,
}

/// A running master.
pub(crate) struct Master {
    pub(crate) process: Process,
    /// Where it speaks MQTT without TLS.
    pub(crate) mqtt: SocketAddr,
    /// Where it speaks MQTT with TLS.
    pub(crate) mqtts: SocketAddr,
    /// The certificate of its authority, as PEM.
    pub(crate) ca: Vec<u8>,
    http: String,
    api_token: String,
}

/// Builds the product that this program measures.
pub(crate) fn build_product() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--release", "--locked", "-q", "-p", "rpicluster"]).status()?;
    ensure!(status.success(), "the product does not build");
    Ok(())
}

/// Lets this process and its children hold thousands of sockets.
pub(crate) fn raise_open_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

fn product() -> Result<PathBuf> {
    // The benchmark lies in the folder of the product it has just built.
    let folder = std::env::current_exe()?;
    Ok(folder.with_file_name("rpicluster"))
}

impl Master {
    /// Starts a master on free ports, with its state in a temporary folder. `wrapper` is put before the command.
    pub(crate) fn start(wrapper: &[&str]) -> Result<Master> {
        let folder = tempfile::tempdir()?;
        let state_dir = folder.path().join("state");
        let program = product()?;
        let words: Vec<&str> = wrapper.iter().copied().chain(program.to_str()).collect();
        let (first, rest) = words.split_first().context("path of the product is not UTF-8")?;
        let mut child = Command::new(first)
            .args(rest)
            .args(["master", "--mqtt", "127.0.0.1:0", "--mqtts", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(&state_dir)
            .current_dir(folder.path())
            // Above the defaults, for the runs with 10,000 connections from one address.
            .env("RPICLUSTER__BROKER__LIMITS__CONNECTIONS", "30000")
            .env("RPICLUSTER__BROKER__LIMITS__CONNECTIONS_PER_ADDRESS", "30000")
            .env("RPICLUSTER__BROKER__LIMITS__PENDING_PER_ADDRESS", "30000")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {words:?}"))?;
        let lines = BufReader::new(child.stdout.take().context("standard output")?).lines();
        let process = Process { child, _folder: folder };
        let (mut mqtt, mut mqtts, mut http) = (None, None, None);
        for line in lines {
            let line = line?;
            if let Some(rest) = line.strip_prefix("master: mqtt ") {
                let (address, name) = rest.split_once(' ').context("an address and its listener's name")?;
                let listener = if name == "(local)" { &mut mqtt } else { &mut mqtts };
                *listener = Some(address.parse()?);
            } else if let Some(rest) = line.strip_prefix("master: http ") {
                http = Some(rest.to_owned());
            } else if line == "master: ready" {
                break;
            }
        }
        let (Some(mqtt), Some(mqtts), Some(http)) = (mqtt, mqtts, http) else { bail!("the master did not start") };
        let token = std::fs::read_to_string(state_dir.join("api-token"))?;
        let ca = std::fs::read(state_dir.join("ca.pem"))?;
        let master = Master { process, mqtt, mqtts, ca, http, api_token: token.trim().to_owned() };
        let (name, password) = LOGIN;
        let account =
            json!({"name": name, "role": "custom", "password": password, "publish": ["#"], "subscribe": ["#"]});
        master.post("/api/v1/accounts", &account)?;
        Ok(master)
    }

    /// Where it speaks MQTT with TLS, for who trusts it.
    pub(crate) fn entrance_with_tls(&self) -> Result<Entrance> {
        Ok(Entrance { address: self.mqtts, tls: Some(trusting(&CertificateDer::from_pem_slice(&self.ca)?)?) })
    }

    /// Lets a slave in; its secret.
    pub(crate) fn add_slave(&self, id: &str) -> Result<String> {
        let answer = self.post("/api/v1/slaves", &json!({ "id": id }))?;
        Ok(answer["secret"].as_str().context("a secret")?.to_owned())
    }

    /// Submits a job and waits until it has ended; how that is told.
    pub(crate) fn run(&self, job: &Value) -> Result<Value> {
        let accepted = self.post("/api/v1/jobs", job)?;
        let number = accepted["job"].as_u64().context("a job's number")?;
        let request = ureq::get(format!("{}/api/v1/jobs/{number}/events", self.http));
        let request = request.header("authorization", format!("Bearer {}", self.api_token));
        // The stream ends with the job.
        std::io::copy(&mut request.call()?.body_mut().as_reader(), &mut std::io::sink())?;
        let request = ureq::get(format!("{}/api/v1/jobs/{number}", self.http));
        let request = request.header("authorization", format!("Bearer {}", self.api_token));
        Ok(serde_json::from_str(&request.call()?.body_mut().read_to_string()?)?)
    }

    /// Makes something through the API.
    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = ureq::post(format!("{}{path}", self.http));
        let request = request.header("authorization", format!("Bearer {}", self.api_token));
        let text = request.content_type("application/json").send(body.to_string())?.body_mut().read_to_string()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// `/api/v1/status`
    pub(crate) fn status(&self) -> Result<Value> {
        let body = ureq::get(format!("{}/api/v1/status", self.http)).call()?.body_mut().read_to_string()?;
        Ok(serde_json::from_str(&body)?)
    }

    /// One of the master's counters.
    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        self.status()?["counters"][name].as_u64().with_context(|| format!("counter {name}"))
    }
}

/// An agent of `master`, joined as any other; in the place of one that was measured before. `settings` are variables of
/// its environment.
pub(crate) fn start_slave(master: &Master, id: &str, settings: &[(&str, String)]) -> Result<Process> {
    let folder = tempfile::tempdir()?;
    let token =
        master.post("/api/v1/tokens", &json!({"replace": true}))?["token"].as_str().context("a token")?.to_owned();
    let mut command = Command::new(product()?);
    command
        .env("RPICLUSTER_TOKEN", token)
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .args(["slave", "--id", id, "--master", &master.mqtts.to_string(), "--state-dir"])
        .arg(folder.path())
        .current_dir(folder.path());
    Process::start(&mut command, folder)
}

/// The same broker without TLS and with it.
pub(crate) struct Both {
    pub(crate) plain: Entrance,
    pub(crate) tls: Entrance,
}

/// Debian's mosquitto on a free port, or `None` where it is not installed.
pub(crate) fn start_mosquitto() -> Result<Option<(Process, SocketAddr)>> {
    start_mosquitto_in(tempfile::tempdir()?, "")
}

/// The same with a second listener, whose certificate is of the kind that a master makes (ECDSA P-256, a chain of two).
pub(crate) fn start_mosquitto_with_tls() -> Result<Option<(Process, Both)>> {
    let folder = tempfile::tempdir()?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = params.self_signed(&authority_key)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::IpAddress(address.ip())];
    let leaf = leaf.signed_by(&key, &Issuer::new(params, &authority_key))?;
    let (chain_file, key_file) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain_file, leaf.pem() + &authority.pem())?;
    std::fs::write(&key_file, key.serialize_pem())?;
    let listener = format!(
        "listener {} 127.0.0.1\ncertfile {}\nkeyfile {}\n",
        address.port(),
        chain_file.display(),
        key_file.display(),
    );
    let tls = Entrance { address, tls: Some(trusting(authority.der())?) };
    let started = start_mosquitto_in(folder, &listener)?;
    Ok(started.map(|(process, plain)| (process, Both { plain: plain.into(), tls })))
}

/// TLS with whom this authority vouches for.
fn trusting(authority: &CertificateDer<'static>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(Arc::new(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth()))
}

fn start_mosquitto_in(folder: TempDir, more: &str) -> Result<Option<(Process, SocketAddr)>> {
    let program = Path::new("/usr/sbin/mosquitto");
    if !program.exists() {
        eprintln!("mosquitto is not installed: its figures are left out");
        return Ok(None);
    }
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let file = folder.path().join("mosquitto.conf");
    // The same TCP_NODELAY and the same freedom as the embedded broker has.
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n{more}",
        address.port()
    );
    std::fs::write(&file, text)?;
    let process = Process::start(Command::new(program).arg("-c").arg(&file), folder)?;
    wait_until("mosquitto listens", || Ok(TcpStream::connect(address).is_ok()))?;
    Ok(Some((process, address)))
}

/// The stock server of rumqttd, as its own example configures it, in a process of its own.
pub(crate) fn start_stock() -> Result<(Process, SocketAddr)> {
    let folder = tempfile::tempdir()?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()?).into();
    let mut command = Command::new(std::env::current_exe()?);
    let process = Process::start(command.args(["--serve-stock-rumqttd", &address.to_string()]), folder)?;
    wait_until("stock rumqttd listens", || Ok(TcpStream::connect(address).is_ok()))?;
    Ok((process, address))
}

/// Serves until the process is ended.
pub(crate) fn serve_stock(address: SocketAddr) -> Result<()> {
    use std::collections::HashMap;
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 60_000,
        max_payload_size: 65_536,
        max_inflight_count: 1_000,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    let server = rumqttd::ServerSettings {
        name: "stock".to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 0,
        connections,
    };
    let router = rumqttd::RouterConfig {
        max_connections: 30_000,
        max_outgoing_packet_count: 200,
        max_segment_size: 104_857_600,
        max_segment_count: 10,
        ..rumqttd::RouterConfig::default()
    };
    let config = rumqttd::Config {
        router,
        v4: Some(HashMap::from([("stock".to_owned(), server)])),
        ..rumqttd::Config::default()
    };
    rumqttd::Broker::new(config).start()?;
    bail!("stock rumqttd has stopped")
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Looks until a condition holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !condition()? {
        ensure!(Instant::now() < deadline, "not within {START_TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Process {
    /// Starts it, with a folder that goes when it does. What it prints is not for us.
    pub(crate) fn start(command: &mut Command, folder: TempDir) -> Result<Process> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Process { child: child.with_context(|| format!("start {command:?}"))?, _folder: folder })
    }

    /// Resident memory in bytes. Of the process itself, or of its only child if it is a wrapper.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// CPU time used so far, of all threads.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        // schedstat counts nanoseconds where stat counts ticks of 10 ms.
        let mut nanos = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
