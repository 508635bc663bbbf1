//! The client of the master's HTTP API: plain HTTP, with every wait and every size bounded.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::Uri;

use crate::exit::{Exit, Failure};
use crate::text::Escaped;

/// A master on the local network accepts a connection within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The whole list of 10,000 slaves arrives within this, also over a slow network.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Ten times the list of 10,000 slaves.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// An error's text is cut to this many characters.
const PROBLEM_CHARS_MAX: usize = 200;

/// Where the master's HTTP API is: `http://HOST[:PORT]`, without a `/` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MasterUrl(String);

/// Asks one master.
pub(crate) struct MasterClient {
    agent: Agent,
    url: MasterUrl,
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
        let uri: Uri = trimmed.parse().map_err(|error| format!("{error}; use http://HOST[:PORT]"))?;
        let host_only = uri.path().trim_end_matches('/').is_empty() && uri.query().is_none();
        if uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && host_only {
            Ok(MasterUrl(trimmed.to_owned()))
        } else {
            Err("use http://HOST[:PORT]".to_owned())
        }
    }
}

impl fmt::Display for MasterUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl MasterClient {
    /// A client of the master at `url`; nothing is connected yet.
    pub(crate) fn new(url: MasterUrl) -> MasterClient {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The master is on the local network: a proxy from the environment would only be in the way.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        MasterClient { agent: config.into(), url }
    }

    /// The answer to `GET path`, whatever its status.
    ///
    /// # Errors
    /// [`Exit::Unreachable`] if nobody answers in time.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        let mut response =
            self.agent.get(format!("{}{path}", self.url)).call().map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let read = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        Ok(Answer { status, body: read.map_err(|error| self.unreachable(&error))? })
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

impl Answer {
    /// The body as part of an error message.
    pub(crate) fn problem(&self) -> String {
        let short: String = self.body.trim().chars().take(PROBLEM_CHARS_MAX).collect();
        Escaped(short).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
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
        for bad in ["pi:80", "https://pi", "http://", "http://pi/x", "ftp://pi", "http://a b", "/"] {
            assert!(bad.parse::<MasterUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_there_is_unreachable_and_names_the_url_and_the_way_out() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url: MasterUrl = format!("http://127.0.0.1:{port}").parse().unwrap();
        let failure = MasterClient::new(url.clone()).get("/healthz").err().unwrap();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains(&url.to_string()) && failure.message.contains("RPICLUSTER_URL"), "{failure}");
    }

    #[test]
    fn answers_are_told_apart() {
        let client = MasterClient::new(server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"));
        assert_eq!(client.get_json("/x").unwrap().as_deref(), Some("[]"));
        let client = MasterClient::new(server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(client.get_json("/x").unwrap(), None);
        let client = MasterClient::new(server(b"HTTP/1.1 503 No\r\ncontent-length: 6\r\n\r\nfull\x1b\n"));
        let failure = client.get_json("/x").unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.ends_with("status 503: full\\u{1b}"), "{failure}");
    }

    #[test]
    fn what_speaks_no_http_or_no_json_is_no_master() {
        let client = MasterClient::new(server(b"SSH-2.0-OpenSSH\r\n"));
        assert_eq!(client.get("/x").err().unwrap().exit, Exit::Unreachable);
        let client = MasterClient::new(MasterUrl::default());
        assert_eq!(client.parse::<Vec<u8>>("<html>").unwrap_err().exit, Exit::Unreachable);
    }
}
