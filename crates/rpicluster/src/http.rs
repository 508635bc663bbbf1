//! The client of the master's HTTP API, with every wait and every size bounded.

use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, thread};

use anyhow::Context as _;
use rpicluster_master::{ca_file, local_token_file};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::request::Builder;
use ureq::http::{Request, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, AsSendBody, Timeout};

use crate::cli::UrlArgs;
use crate::config::load;
use crate::exit::{Exit, Failure};
use crate::text::{Escaped, Hidden};

/// Where the master tells its figures.
pub(crate) const STATUS_PATH: &str = "/api/v1/status";
/// A master on the local network accepts a connection within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The whole list of 10,000 slaves arrives within this, also over a slow network.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// A request of the largest size is sent, stored and answered within this.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(120);
/// A stream on which nothing at all has come for so long is broken: the master sends a comment more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a submission is sent.
const SUBMIT_ATTEMPTS: u32 = 6;
/// How long to wait before a submission is sent again; doubled each time.
const SUBMIT_PAUSE: Duration = Duration::from_millis(250);
/// By which the master knows a submission that it has had already.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Ten times the list of 10,000 slaves.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How a master's address is written.
const URL_FORM: &str = "http://HOST[:PORT] or https://HOST[:PORT]";
/// The variable that may hold a token; there is no flag for it, since everybody sees a process's arguments.
const TOKEN_VARIABLE: &str = "RPICLUSTER_API_TOKEN";
/// An error's text is cut to this many characters.
const PROBLEM_CHARS_MAX: usize = 200;

/// Where the master's HTTP API is: `http://HOST[:PORT]` or `https://…`, without a `/` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MasterUrl(String);

/// Asks one master.
#[derive(Clone)]
pub(crate) struct MasterClient {
    agent: Agent,
    url: MasterUrl,
    token: TokenSource,
}

/// Where the token is.
#[derive(Clone)]
enum TokenSource {
    /// There is none.
    Nowhere,
    /// The user named it.
    Given(Hidden),
    /// The master makes it anew at each start: it is read for each request.
    OfThisMachine(PathBuf),
}

impl TokenSource {
    /// The token; who may not read it has none.
    fn token(&self) -> Option<Hidden> {
        match self {
            TokenSource::Nowhere => None,
            TokenSource::Given(token) => Some(token.clone()),
            TokenSource::OfThisMachine(path) => {
                fs::read_to_string(path).ok().map(|token| Hidden(token.trim().to_owned()))
            }
        }
    }
}

/// A complete answer.
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The text, as it came.
    pub(crate) body: String,
}

impl Default for MasterUrl {
    fn default() -> Self {
        MasterUrl("http://127.0.0.1:8080".to_owned())
    }
}

impl FromStr for MasterUrl {
    type Err = String;

    /// An empty text means the default, as an empty environment variable does elsewhere.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(MasterUrl::default());
        }
        let trimmed = text.trim_end_matches('/');
        let uri: Uri = trimmed.parse().map_err(|error| format!("{error}; use {URL_FORM}"))?;
        let host_only = uri.path().trim_end_matches('/').is_empty() && uri.query().is_none();
        if matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && host_only
        {
            Ok(MasterUrl(trimmed.to_owned()))
        } else {
            Err(format!("use {URL_FORM}"))
        }
    }
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl MasterUrl {
    fn is_loopback(&self) -> bool {
        let uri: Option<Uri> = self.0.parse().ok();
        let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    fn is_encrypted(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl MasterClient {
    /// A client of the master that `args` name; nothing is connected yet.
    ///
    /// # Errors
    /// If a file that is named cannot be used.
    pub(crate) fn new(args: UrlArgs) -> Result<MasterClient, Failure> {
        let state_dir = match args.state_dir {
            Some(folder) => folder,
            None => load(args.config.as_deref(), None)?.file.master.state_dir,
        };
        let given = |token: String| TokenSource::Given(Hidden(token.trim().to_owned()));
        let token = match (std::env::var(TOKEN_VARIABLE), &args.api_token_file) {
            (Ok(token), _) if !token.is_empty() => given(token),
            (_, Some(path)) => given(read(path)?),
            // The token of this machine's master goes to nobody else.
            _ if args.url.is_loopback() => TokenSource::OfThisMachine(local_token_file(&state_dir)),
            _ => TokenSource::Nowhere,
        };
        let mut tls = None;
        if args.url.is_encrypted() {
            let path = args.ca_file.unwrap_or_else(|| ca_file(&state_dir));
            tls = Some(trusting(&path)?);
        }
        Ok(MasterClient { token, ..MasterClient::with(args.url, None, tls) })
    }

    /// A client of the master at `url`, as it is known by somebody who started it.
    pub(crate) fn with(url: MasterUrl, token: Option<Hidden>, tls: Option<TlsConfig>) -> MasterClient {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The master is on the local network: a proxy from the environment would only be in the way.
            .proxy(None)
            .tls_config(tls.unwrap_or_default())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        MasterClient { agent: config.into(), url, token: token.map_or(TokenSource::Nowhere, TokenSource::Given) }
    }

    /// The answer to `GET path`, whatever its status.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if nobody answers in time.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", path, None)
    }

    /// Changes something: the JSON text of the answer.
    ///
    /// # Errors
    /// As [`MasterClient::get`]; [`Exit::Failed`] with the master's reason if it refuses.
    pub(crate) fn change(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, Failure> {
        let answer = self.ask(method, path, body)?;
        match answer.status {
            200..=299 => Ok(answer.body),
            _ => Err(self.refused(&answer, Exit::Failed)),
        }
    }

    /// Submits something under a random key, so that it may be sent again without being done twice: the JSON text of the
    /// answer. `waiting` is told why it is sent again.
    ///
    /// # Errors
    /// As [`MasterClient::change`]; [`Exit::Usage`] if the master finds it wrong, [`Exit::NotRun`] if it matches nobody.
    pub(crate) fn submit(&self, path: &str, body: &str, waiting: impl Fn(&str)) -> Result<String, Failure> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).context("the system gives no random numbers")?;
        let key = format!("{:032x}", u128::from_be_bytes(bits));
        let mut attempt = 1;
        loop {
            let request = self.request("POST", path, body).header(IDEMPOTENCY_KEY, &key);
            let request = self.agent.configure_request(complete(request, body)?);
            let (retry, failure) = match self.run(request.timeout_global(Some(SUBMIT_TIMEOUT)).build()) {
                Ok(answer) => match answer.status {
                    200..=299 => return Ok(answer.body),
                    400 => return Err(self.refused(&answer, Exit::Usage)),
                    422 => return Err(self.refused(&answer, Exit::NotRun)),
                    status => (status == 503, self.refused(&answer, Exit::Failed)),
                },
                // Nothing was sent to a master that was never there.
                Err(error) => (attempt > 1 || !never_connected(&error), self.unreachable(&error)),
            };
            if !retry || attempt == SUBMIT_ATTEMPTS {
                return Err(failure);
            }
            waiting(&failure.message);
            thread::sleep(SUBMIT_PAUSE * 2u32.pow(attempt));
            attempt += 1;
        }
    }

    /// The bytes of `GET path` while they come, for as long as they come.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if the master does not answer, or not now (503); [`Exit::Failed`] if it refuses.
    pub(crate) fn open(&self, path: &str) -> Result<impl io::Read + Send + 'static, Failure> {
        let request = self.agent.configure_request(complete(self.request("GET", path, ""), "")?);
        let request = request.timeout_global(None).timeout_recv_response(Some(ANSWER_TIMEOUT));
        let request = request.timeout_per_read(Some(SILENCE_MAX)).build();
        let mut response = self.agent.run(request).map_err(|error| self.unreachable(&error))?;
        match response.status().as_u16() {
            200 => Ok(response.into_body().into_reader()),
            status => {
                let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
                let answer = Answer { status, body: body.map_err(|error| self.unreachable(&error))? };
                Err(self.refused(&answer, if status >= 500 { Exit::Unreachable } else { Exit::Failed }))
            }
        }
    }

    /// The whole of `GET path` as bytes.
    ///
    /// # Errors
    /// As [`MasterClient::open`].
    pub(crate) fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = self.open(path)?.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(|error| self.unreachable(&error))
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Failure> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = complete(self.request(method, path, &body), &body)?;
        self.run(request).map_err(|error| self.unreachable(&error))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Builder {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(Hidden(token)) = self.token.token() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        request
    }

    fn run(&self, request: Request<impl AsSendBody>) -> Result<Answer, ureq::Error> {
        let mut response = self.agent.run(request)?;
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string()?;
        Ok(Answer { status: response.status().as_u16(), body })
    }

    fn refused(&self, answer: &Answer, exit: Exit) -> Failure {
        match answer.status {
            401 => self.not_allowed(),
            _ => Failure::new(exit, format!("the master refuses: {}", answer.reason())),
        }
    }

    fn not_allowed(&self) -> Failure {
        let reason = match self.token.token() {
            None => format!(
                "there is none here: run this as the user of the master on its machine (perhaps with its --state-dir), or \
                 set {TOKEN_VARIABLE} to one that \"rpicluster api-token create\" made there"
            ),
            Some(_) => "the one that was sent is not known to it".to_owned(),
        };
        Failure::new(Exit::Failed, format!("the master at {} asks for a token, and {reason}", self.url))
    }

    /// The JSON text of `GET path`; `None` if the master knows no such thing.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] as [`MasterClient::get`], [`Exit::Failed`] if the master refuses.
    pub(crate) fn get_json(&self, path: &str) -> Result<Option<String>, Failure> {
        let answer = self.get(path)?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            401 => Err(self.not_allowed()),
            status => Err(Failure::new(
                Exit::Failed,
                format!("{}{path} answers with status {status}: {}", self.url, answer.problem()),
            )),
        }
    }

    /// The typed form of what [`MasterClient::get_json`] returned.
    ///
    /// # Errors
    /// [`Exit::Unreachable`]: what answers there is no master.
    pub(crate) fn parse<T: DeserializeOwned>(&self, json: &str) -> Result<T, Failure> {
        serde_json::from_str(json).map_err(|error| self.unreachable(&format!("the answer is not a master's: {error}")))
    }

    fn unreachable(&self, cause: &dyn fmt::Display) -> Failure {
        let url = &self.url;
        let advice = "start it with \"rpicluster master\", or name it with --url or RPICLUSTER_URL";
        Failure::new(Exit::Unreachable, Escaped(format!("no master answers at {url} ({cause}): {advice}")).to_string())
    }
}

fn complete(request: Builder, body: &str) -> Result<Request<&[u8]>, Failure> {
    request.body(body.as_bytes()).map_err(|error| Failure::new(Exit::Usage, error.to_string()))
}

/// Whether no byte can have reached the master.
fn never_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        ),
        ureq::Error::Timeout(timeout) => matches!(timeout, Timeout::Resolve | Timeout::Connect),
        error => matches!(error, ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_)),
    }
}

/// Trusts the certificates in a file, and nothing else.
fn trusting(path: &Path) -> Result<TlsConfig, Failure> {
    let pem = fs::read(path).map_err(|error| {
        let path = path.display();
        let advice = "name the master's ca.pem with --ca-file or RPICLUSTER_CA_FILE";
        Failure::new(Exit::Configuration, format!("{path}: {error}: {advice}"))
    })?;
    let certificates: Result<Vec<_>, _> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
        .collect();
    let certificates =
        certificates.map_err(|error| Failure::new(Exit::Configuration, format!("{}: {error}", path.display())))?;
    let config = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
    Ok(config.build())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::new(Exit::Configuration, format!("{}: {error}", path.display())))
}

impl Answer {
    /// What the master says in an answer that is an error.
    fn reason(&self) -> String {
        let said = serde_json::from_str::<Value>(&self.body).ok();
        let said = said.as_ref().and_then(|body| body["error"].as_str()).map(|reason| Escaped(reason).to_string());
        said.unwrap_or_else(|| format!("status {}: {}", self.status, self.problem()))
    }

    /// The body as part of an error message.
    pub(crate) fn problem(&self) -> String {
        let short: String = self.body.trim().chars().take(PROBLEM_CHARS_MAX).collect();
        Escaped(short).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// A server that gives one answer; its URL.
    fn server(answer: &'static [u8]) -> MasterUrl {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = socket.read(&mut request);
            let _ = socket.write_all(answer);
        });
        url.parse().unwrap()
    }

    #[test]
    fn urls_follow_their_rule() {
        assert_eq!("http://pi:80/".parse::<MasterUrl>().unwrap().to_string(), "http://pi:80");
        assert_eq!("".parse::<MasterUrl>().unwrap(), MasterUrl::default());
        assert!("https://pi".parse::<MasterUrl>().unwrap().is_encrypted());
        for (url, loopback) in [
            ("http://127.0.0.1:8080", true),
            ("http://localhost", true),
            ("http://[::1]:80", true),
            ("http://10.0.0.1", false),
            ("https://localhost.example.org", false),
        ] {
            assert_eq!(url.parse::<MasterUrl>().unwrap().is_loopback(), loopback, "{url}");
        }
        for bad in ["pi:80", "https://", "http://", "http://pi/x", "ftp://pi", "http://a b", "/"] {
            assert!(bad.parse::<MasterUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_there_is_unreachable_and_names_the_url_and_the_way_out() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url: MasterUrl = format!("http://127.0.0.1:{port}").parse().unwrap();
        let failure = MasterClient::with(url.clone(), None, None).get("/healthz").err().unwrap();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains(&url.to_string()) && failure.message.contains("RPICLUSTER_URL"), "{failure}");
    }

    #[test]
    fn answers_are_told_apart() {
        let client = MasterClient::with(server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"), None, None);
        assert_eq!(client.get_json("/x").unwrap().as_deref(), Some("[]"));
        let client = MasterClient::with(server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), None, None);
        assert_eq!(client.get_json("/x").unwrap(), None);
        let client = MasterClient::with(server(b"HTTP/1.1 503 No\r\ncontent-length: 6\r\n\r\nfull\x1b\n"), None, None);
        let failure = client.get_json("/x").unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.ends_with("status 503: full\\u{1b}"), "{failure}");
    }

    #[test]
    fn the_token_of_this_machine_is_read_anew_since_a_master_that_starts_makes_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = TokenSource::OfThisMachine(path.clone());
        assert!(source.token().is_none());
        for text in ["one\n", "other\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(source.token().map(|token| token.0).as_deref(), Some(text.trim()));
        }
    }

    #[test]
    fn what_speaks_no_http_or_no_json_is_no_master() {
        let client = MasterClient::with(server(b"SSH-2.0-OpenSSH\r\n"), None, None);
        assert_eq!(client.get("/x").err().unwrap().exit, Exit::Unreachable);
        let client = MasterClient::with(MasterUrl::default(), None, None);
        assert_eq!(client.parse::<Vec<u8>>("<html>").unwrap_err().exit, Exit::Unreachable);
    }
}
