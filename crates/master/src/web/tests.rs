use rpicluster_protocol::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::access::tests::Bench;
use crate::health::Hearing;

struct Server {
    address: SocketAddr,
    bench: Bench,
    site: Arc<Site>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), crate::tasks::RunError>>,
}

async fn server() -> Server {
    let now = clock::now();
    let bench = Bench::new();
    let site = Arc::new(Site {
        access: bench.access.clone(),
        view: bench.view.clone(),
        health: Arc::new(Health::new(now, Arc::new(Hearing::here()))),
        counters: Arc::default(),
        front: FrontView::Own {
            stats: Arc::default(),
            session: "run".parse().unwrap(),
            addresses: vec![("local".into(), ([127, 0, 0, 1], 1883).into())],
        },
        started: now,
    });
    let guard = Arc::new(Guard::new(["localhost".to_owned()], true, |token| token == "token"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, None, router(site.clone(), guard), stopped));
    Server { address, bench, site, stop, task }
}

impl Server {
    async fn request(&self, request: &str) -> (u16, Value) {
        self.send(request, "").await
    }

    /// A request with a body of JSON. Whatever is answered is JSON too, except nothing at all.
    async fn send(&self, request: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{request} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer token\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        if code == 204 {
            return (code, Value::Null);
        }
        assert!(head.contains("application/json"), "{head}");
        let is_secret = code == 201 && (body.contains("\"token\"") || body.contains("\"secret\""));
        assert_eq!(head.contains("cache-control: no-store"), is_secret, "{head}");
        (code, serde_json::from_str(body).unwrap())
    }
}

#[tokio::test]
async fn slaves_are_shown_with_all_that_is_known() {
    let server = server().await;
    assert_eq!(server.request("GET /api/v1/slaves").await, (200, Value::Array(Vec::new())));
    let slave = server.site.view.get_or_meet(&"pi".parse().unwrap(), Timestamp::from_unix_ms(0)).unwrap();
    slave.set_details(Arc::new(Details { hostname: Some("h".into()), ..Details::default() }));
    slave.counters.received.count();
    let (_, all) = server.request("GET /api/v1/slaves").await;
    let (code, one) = server.request("GET /api/v1/slaves/pi").await;
    assert_eq!((code, &one), (200, &all[0]));
    assert_eq!(one["id"], "pi");
    assert_eq!(one["state"], "offline");
    assert_eq!(one["since"], "1970-01-01T00:00:00.000Z");
    assert_eq!(one["reason"], "no_state");
    assert_eq!(one["details"]["hostname"], "h");
    assert_eq!(one["counters"]["received"], 1);
    assert_eq!(one["labels"], json!({}));

    let (_, status) = server.request("GET /api/v1/status").await;
    assert_eq!((&status["slaves"], &status["online"]), (&1.into(), &0.into()));
    assert_eq!(status["counters"]["received"], 1);
    assert_eq!(status["counters"]["refused"], 0);
    assert_eq!(status["mqtt"]["local"], "127.0.0.1:1883");
    assert_eq!(status["session"], "run");
}

#[tokio::test]
async fn errors_are_json_too() {
    let server = server().await;
    for (request, code) in [
        ("GET /api/v1/slaves/nobody", 404),
        ("GET /api/v1/slaves/%ff", 400),
        ("GET /", 404),
        ("PUT /api/v1/slaves", 405),
        ("POST /api/v1/status", 405),
        ("GET /api/v1/tokens/1", 405),
        ("DELETE /api/v1/slaves/nobody", 404),
        ("DELETE /api/v1/slaves/N%20", 404),
        ("DELETE /api/v1/tokens/xyz", 404),
        ("DELETE /api/v1/tokens/00000000", 404),
        ("DELETE /api/v1/tokens/%ff", 400),
        ("DELETE /api/v1/accounts/nobody", 404),
        ("DELETE /api/v1/api-tokens/nobody", 404),
    ] {
        let (found, body) = server.request(request).await;
        assert_eq!(found, code, "{request}");
        assert!(body["error"].is_string(), "{request}: {body}");
    }
}

#[tokio::test]
async fn health_tells_which_part_is_stalled() {
    let server = server().await;
    assert_eq!(server.request("GET /healthz").await.0, 200);
    server.site.health.bus.beat(Moment::default());
    let (code, page) = server.request("GET /healthz").await;
    assert_eq!(code, 503);
    assert_eq!((&page["bus"], &page["engine"]), (&"stalled".into(), &"ok".into()));
}

#[tokio::test]
async fn it_stops_although_a_client_says_nothing() {
    let server = server().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    // One exchange on another connection, so that the silent one has been accepted.
    server.request("GET /healthz").await;
    server.stop.send_replace(true);
    server.task.await.unwrap().unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let server = server().await;
    let (code, made) = server.send("POST /api/v1/tokens", "{}").await;
    assert_eq!((code, &made["uses_left"], &made["replace"]), (201, &json!(1), &json!(false)));
    let token: rpicluster_protocol::JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(token.ca_fingerprint, [7; 32]);
    let body = r#"{"ttl": "90m", "uses": 5, "id": "pi", "labels": {"room": "lab"}, "replace": true}"#;
    let (_, second) = server.send("POST /api/v1/tokens", body).await;
    assert_eq!((&second["slave"], &second["labels"]["room"]), (&json!("pi"), &json!("lab")));
    let (code, all) = server.request("GET /api/v1/tokens").await;
    assert_eq!((code, all.as_array().unwrap().len()), (200, 2));
    assert!(!all.to_string().contains("rpi1."), "a secret is told once: {all}");
    let path = format!("DELETE /api/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(server.request(&path).await.0, 204);
    assert_eq!(server.request(&path).await.0, 404);
    let (_, all) = server.request("GET /api/v1/tokens").await;
    assert_eq!((all.as_array().unwrap().len(), &all[0]["id"]), (1, &second["id"]));
}

#[tokio::test]
async fn slaves_are_added_with_labels_that_win_over_their_own() {
    let server = server().await;
    let body = r#"{"id": "pi", "labels": {"room": "lab", "shelf": "2"}}"#;
    let (code, made) = server.send("POST /api/v1/slaves", body).await;
    assert_eq!((code, &made["id"], made["secret"].as_str().unwrap().len()), (201, &json!("pi"), 43));
    let slave = server.site.view.get_or_meet(&"pi".parse().unwrap(), Timestamp::from_unix_ms(0)).unwrap();
    let labels = [("room", "kitchen"), ("own", "yes")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    slave.set_details(Arc::new(Details { labels: labels.into(), ..Details::default() }));
    let labels = json!({"room": "lab", "shelf": "2", "own": "yes"});
    assert_eq!(server.request("GET /api/v1/slaves/pi").await.1["labels"], labels);
    assert_eq!(server.request("GET /api/v1/slaves").await.1[0]["labels"], labels);

    let (code, taken) = server.send("POST /api/v1/slaves", r#"{"id": "pi"}"#).await;
    assert!(code == 409 && taken["error"].as_str().unwrap().contains("taken"), "{taken}");
    assert_eq!(server.send("POST /api/v1/slaves", r#"{"id": "pi", "replace": true}"#).await.0, 201);
    assert_eq!(server.request("DELETE /api/v1/slaves/pi").await.0, 204);
    assert_eq!(server.request("GET /api/v1/slaves/pi").await.0, 404);
    assert_eq!(server.request("DELETE /api/v1/slaves/pi").await.0, 404);
}

#[tokio::test]
async fn accounts_and_api_tokens_come_and_go() {
    let server = server().await;
    let body = r#"{"name": "home", "role": "home-assistant", "password": "correct horse"}"#;
    let (code, made) = server.send("POST /api/v1/accounts", body).await;
    assert_eq!((code, &made["publish"]), (201, &json!(["homeassistant/status"])));
    assert_eq!(server.send("POST /api/v1/accounts", body).await.0, 409);
    let (_, all) = server.request("GET /api/v1/accounts").await;
    assert_eq!((&all[0], all.as_array().unwrap().len()), (&made, 1));
    assert_eq!(server.request("DELETE /api/v1/accounts/home").await.0, 204);
    assert_eq!(server.request("GET /api/v1/accounts").await.1, json!([]));

    let (code, made) = server.send("POST /api/v1/api-tokens", r#"{"name": "cli"}"#).await;
    assert_eq!(code, 201);
    assert_eq!(server.site.access.check_api_token(made["token"].as_str().unwrap()).unwrap().as_str(), "cli");
    let (_, all) = server.request("GET /api/v1/api-tokens").await;
    assert!(all[0]["name"] == "cli" && all[0]["created"].is_string() && all[0].get("token").is_none(), "{all}");
    assert_eq!(server.request("DELETE /api/v1/api-tokens/cli").await.0, 204);
    assert_eq!(server.request("GET /api/v1/broker/clients").await, (200, json!([])));
}

#[tokio::test]
async fn bodies_that_cannot_be_used_are_named() {
    let server = server().await;
    let account = |rest: &str| format!(r#"{{"name": "a", "role": "custom", "password": "correct horse", {rest}}}"#);
    for (request, body, code, word) in [
        ("tokens", "", 400, "EOF"),
        ("tokens", "[", 400, "EOF"),
        ("tokens", r#"{"tll": "1h"}"#, 400, "tll"),
        ("tokens", r#"{"ttl": "soon"}"#, 400, "ttl"),
        ("tokens", r#"{"ttl": "0s"}"#, 400, "token lives"),
        ("tokens", r#"{"uses": 0}"#, 400, "uses"),
        ("tokens", r#"{"id": "P"}"#, 400, "slave id"),
        ("tokens", r#"{"labels": {"": "x"}}"#, 400, "label"),
        ("slaves", "{}", 400, "id"),
        ("accounts", r#"{"name": "a", "role": "king", "password": "correct horse"}"#, 400, "king"),
        ("accounts", r#"{"name": "a", "role": "observer", "password": "short"}"#, 400, "password"),
        ("accounts", &account(r#""publish": ["a/#/b"]"#), 400, "a/#/b"),
        ("api-tokens", r#"{"name": "A"}"#, 400, "a-z"),
        ("api-tokens", &format!(r#"{{"name": "{}"}}"#, "x".repeat(64 * 1024)), 413, "length"),
    ] {
        let (found, answer) = server.send(&format!("POST /api/v1/{request}"), body).await;
        let error = answer["error"].as_str().unwrap();
        assert!(found == code && error.contains(word), "{request} {body:.80}: {found} {answer}");
    }
    assert_eq!(server.request("GET /api/v1/accounts").await.1, json!([]));
}

#[tokio::test]
async fn what_cannot_be_written_is_answered_with_503() {
    let server = server().await;
    let broken = server.bench.break_enrolments();
    let (code, page) = server.send("POST /api/v1/slaves", r#"{"id": "pi"}"#).await;
    assert!(code == 503 && page["error"].as_str().unwrap().contains("store"), "{page}");
    drop(broken);
    assert_eq!(server.send("POST /api/v1/slaves", r#"{"id": "pi"}"#).await.0, 201);
}
