use rpicluster_protocol::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

struct Server {
    address: SocketAddr,
    site: Arc<Site>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), crate::tasks::RunError>>,
}

async fn server() -> Server {
    let now = clock::now();
    let site = Arc::new(Site {
        view: Arc::new(View::new(10)),
        health: Arc::new(Health::new(now)),
        counters: Arc::default(),
        broker: Arc::default(),
        session: "run".parse().unwrap(),
        started: now,
        mqtt: vec![("local".into(), ([127, 0, 0, 1], 1883).into())],
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(listener, router(site.clone()), stopped));
    Server { address, site, stop, task }
}

impl Server {
    async fn request(&self, request: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(head.contains("application/json"), "{head}");
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
        ("POST /api/v1/slaves", 405),
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
