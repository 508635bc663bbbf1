//! A master that says only what a test tells it to say, over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

/// Answers requests as its test says, and remembers them. Its threads end with the test process.
pub(crate) struct FakeMaster {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method, path and query, as in `GET /healthz`.
    pub(crate) line: String,
    /// Its headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// An answer.
pub(crate) enum Reply {
    /// A complete one.
    Whole(u16, Vec<u8>),
    /// The beginning of a stream of events, which then ends.
    Events(Vec<Value>),
    /// The same, and the function decides how it goes on and when it ends.
    EventsThen(Vec<Value>, Box<dyn FnOnce(&mut Events) + Send>),
    /// The connection ends without an answer.
    Nothing,
}

/// A stream of events that is open.
pub(crate) struct Events(TcpStream);

impl FakeMaster {
    /// Listens, and answers with what `answer` says.
    pub(crate) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (answer, remembered) = (Arc::new(answer), Arc::clone(&asked));
        thread::spawn(move || {
            for socket in listener.incoming().map(Result::unwrap) {
                let (answer, remembered) = (Arc::clone(&answer), Arc::clone(&remembered));
                thread::spawn(move || {
                    let Some(request) = read(&socket) else { return };
                    remembered.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                    write(socket, answer(&request));
                });
            }
        });
        FakeMaster { address, asked }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Asked {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Reply {
    /// JSON with this status.
    pub(crate) fn json(status: u16, body: &Value) -> Reply {
        Reply::Whole(status, body.to_string().into_bytes())
    }
}

impl Events {
    /// Sends one more; the reader may have gone.
    pub(crate) fn send(&mut self, event: &Value) {
        let _ = write!(self.0, "data: {event}\n\n");
    }

    /// Waits until the reader has gone.
    pub(crate) fn wait_for_end(&mut self) {
        let _ = self.0.read(&mut [0]);
    }
}

fn read(socket: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(socket);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|size| *size > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers: Vec<(String, String)> =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_owned();
    let mut asked = Asked { line, headers, body: Vec::new() };
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body).ok()?;
    Some(asked)
}

/// A client that has gone before it was answered is its test's business.
fn write(mut socket: TcpStream, reply: Reply) {
    let (events, then) = match reply {
        Reply::Nothing => return,
        Reply::Whole(status, body) => {
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&body));
            return;
        }
        Reply::Events(events) => (events, None),
        Reply::EventsThen(events, then) => (events, Some(then)),
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n";
    let mut text = head.to_owned();
    for event in events {
        text.push_str(&format!("data: {event}\n\n"));
    }
    let _ = socket.write_all(text.as_bytes());
    if let Some(then) = then {
        then(&mut Events(socket));
    }
}
