//! Clients not ours against the broker: Debian's mosquitto_pub, mosquitto_sub and mosquitto_rr, and paho-mqtt, aiomqtt and
//! gmqtt from PyPI, each with both versions of MQTT. What the Python clients do lies in `foreign/`.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; its modules are its own")]

mod common;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use common::TestBroker;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Ten thousand messages and more go through interpreters, side by side with other tests.
const PATIENCE: Duration = Duration::from_secs(180);
const SCENARIOS: [&str; 7] =
    ["connect", "retained", "will", "qos_2", "session", "request_and_response", "many_in_order"];

/// Runs a script of `foreign/` and expects it to name every scenario.
async fn script(name: &str, version: &str) {
    let broker = TestBroker::start(|_| {}).await;
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"))).unwrap();
    let python = cache.join("rpicluster-tests/bin/python");
    assert!(python.exists(), "{} is missing: tests/run.sh installs the Python clients", python.display());
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name);
    let run = Command::new(python)
        .arg("-B")
        .arg(script)
        .args([&broker.address.port().to_string(), version])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run).await.expect("the script does not end").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    let expected: String = SCENARIOS.map(|scenario| format!("ok {scenario}\n")).concat();
    assert_eq!(said, expected);
    assert_eq!(["connection_panics", "router_gaps", "protocol_errors"].map(|name| broker.stat(name)), [0; 3]);
}

#[tokio::test]
async fn paho_with_3_1_1() {
    script("with_paho.py", "3").await;
}

#[tokio::test]
async fn paho_with_5() {
    script("with_paho.py", "5").await;
}

#[tokio::test]
async fn aiomqtt_with_3_1_1() {
    script("with_aiomqtt.py", "3").await;
}

#[tokio::test]
async fn aiomqtt_with_5() {
    script("with_aiomqtt.py", "5").await;
}

#[tokio::test]
async fn gmqtt_with_3_1_1() {
    script("with_gmqtt.py", "3").await;
}

#[tokio::test]
async fn gmqtt_with_5() {
    script("with_gmqtt.py", "5").await;
}

const VERSIONS: [&str; 2] = ["311", "5"];

/// One of mosquitto's clients, connected to `broker`; arguments as on a command line.
fn mosquitto(broker: &TestBroker, program: &str, version: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    let port = broker.address.port().to_string();
    command.args(["-h", "127.0.0.1", "-p", &port, "-V", version]).args(arguments.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs mosquitto_pub to its end.
async fn publish(broker: &TestBroker, version: &str, arguments: &str) {
    let run = mosquitto(broker, "mosquitto_pub", version, arguments).status();
    let status = tokio::time::timeout(PATIENCE, run).await.expect("mosquitto_pub does not end").unwrap();
    assert!(status.success(), "mosquitto_pub {arguments}: {status}");
}

/// A running mosquitto_sub and its lines.
struct Subscriber {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Subscriber {
    /// Starts it and waits until the broker has its subscription.
    async fn start(broker: &TestBroker, version: &str, arguments: &str) -> Subscriber {
        let before = broker.stat("subscriptions_now");
        let mut process = mosquitto(broker, "mosquitto_sub", version, arguments).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        common::until(|| broker.stat("subscriptions_now") > before).await;
        Subscriber { process, lines }
    }

    /// The next line that it prints.
    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("nothing came in time");
        line.unwrap().expect("mosquitto_sub has ended")
    }

    /// Kills it: its connection is lost.
    async fn lose(mut self, broker: &TestBroker) {
        let before = broker.stat("connections_now");
        self.process.kill().await.unwrap();
        common::until(|| broker.stat("connections_now") < before).await;
    }
}

#[tokio::test]
async fn mosquitto_clients_at_every_qos_and_retained() {
    for version in VERSIONS {
        let broker = TestBroker::start(|_| {}).await;
        let mut subscriber = Subscriber::start(&broker, version, "-i s -q 2 -t m/# -F %q%r|%t|%p").await;
        for qos in 0..3 {
            publish(&broker, version, &format!("-i p -t m/ä -m {qos} -q {qos}")).await;
            assert_eq!(subscriber.line().await, format!("{qos}0|m/ä|{qos}"));
        }
        publish(&broker, version, "-t m/kept -m kept -q 1 -r").await;
        let mut late = Subscriber::start(&broker, version, "-q 1 -t m/kept -F %q%r|%p").await;
        assert_eq!(late.line().await, "11|kept");
        assert_eq!(broker.stat("protocol_errors"), 0);
    }
}

#[tokio::test]
async fn mosquitto_clients_with_wills_and_lasting_sessions() {
    for version in VERSIONS {
        let broker = TestBroker::start(|_| {}).await;
        let mut watcher = Subscriber::start(&broker, version, "-t will -F %p").await;
        let session = match version {
            "5" => "-i s -c -x 60 -q 1 -t t",
            _ => "-i s -c -q 1 -t t",
        };
        let with_will = format!("{session} --will-topic will --will-payload gone --will-qos 1");
        let subscriber = Subscriber::start(&broker, version, &with_will).await;
        subscriber.lose(&broker).await;
        assert_eq!(watcher.line().await, "gone");
        for number in 0..20 {
            publish(&broker, version, &format!("-t t -q 1 -m {number}")).await;
        }
        // It subscribes again, so nothing new tells that it is there.
        let mut process = mosquitto(&broker, "mosquitto_sub", version, session).spawn().unwrap();
        let mut subscriber = Subscriber { lines: BufReader::new(process.stdout.take().unwrap()).lines(), process };
        for number in 0..20 {
            assert_eq!(subscriber.line().await, number.to_string());
        }
    }
}

#[tokio::test]
async fn mosquitto_clients_ten_thousand_lines_in_order() {
    for version in VERSIONS {
        for qos in 0..3 {
            let broker = TestBroker::start(|_| {}).await;
            let mut subscriber = Subscriber::start(&broker, version, &format!("-q {qos} -t t")).await;
            let arguments = format!("-q {qos} -t t -l");
            let mut publisher = mosquitto(&broker, "mosquitto_pub", version, &arguments).spawn().unwrap();
            let mut input = publisher.stdin.take().unwrap();
            let lines: String = (0..10_000).map(|number| format!("{number}\n")).collect();
            let writing = tokio::spawn(async move { input.write_all(lines.as_bytes()).await });
            for number in 0..10_000 {
                assert_eq!(subscriber.line().await, number.to_string(), "QoS {qos}");
            }
            writing.await.unwrap().unwrap();
            assert!(publisher.wait().await.unwrap().success());
        }
    }
}

#[tokio::test]
async fn mosquitto_pub_a_thousand_times_with_one_client_id() {
    let broker = TestBroker::start(|_| {}).await;
    let mut subscriber = Subscriber::start(&broker, "311", "-t t").await;
    for number in 0..1000 {
        // A process that ends without waiting for anything, and the next with the same id at once.
        let arguments = format!("-i x -t t -m {number}");
        let status = mosquitto(&broker, "mosquitto_pub", VERSIONS[number % 2], &arguments).status().await.unwrap();
        assert!(status.success());
    }
    for number in 0..1000 {
        assert_eq!(subscriber.line().await, number.to_string());
    }
}

#[tokio::test]
async fn mosquitto_rr_asks_and_is_answered() {
    let broker = TestBroker::start(|_| {}).await;
    let mut responder = common::Raw::connect(&broker, true, "responder").await;
    responder.subscribe("ask", 1).await;
    let asking = mosquitto(&broker, "mosquitto_rr", "5", "-t ask -e answer -m question -q 1").output();
    let answering = async {
        use common::wire::property::{CORRELATION_DATA, RESPONSE_TOPIC, all};
        let question = responder.take().await;
        assert_eq!(question.payload, "question");
        let topic = all(&question.properties, RESPONSE_TOPIC).remove(0).split_off(2);
        let correlation: Vec<u8> = all(&question.properties, CORRELATION_DATA).concat();
        let correlation = if correlation.is_empty() { vec![] } else { [vec![CORRELATION_DATA], correlation].concat() };
        let topic = String::from_utf8(topic).unwrap();
        responder.publish_properties(&topic, "answer", 2, 1, &correlation).await;
    };
    let (output, ()) = tokio::join!(tokio::time::timeout(PATIENCE, asking), answering);
    assert_eq!(String::from_utf8(output.unwrap().unwrap().stdout).unwrap(), "answer\n");
}
