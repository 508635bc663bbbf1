//! What a slave tells about itself holds no secret.

use std::io;
use std::sync::{Arc, Mutex};

use crate::Machine;
use crate::master::{Ca, Master, NOT_AUTHORIZED, NOT_AUTHORIZED_V3, WELCOME, refusal};
use rpicluster_slave::Access;
use tracing_subscriber::fmt::MakeWriter;

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn log_status_and_errors_hold_neither_token_nor_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    // For the whole process: what is logged first on a thread without a subscriber might be logged nowhere afterwards.
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let ca = Ca::new();
    let (machine, master) = (Machine::new(), Master::start(&ca).await);
    let token = ca.token();
    let mut told = vec![format!("{:?}", Access::Identity { token: Some(token.clone()) })];

    let running = machine.start(master.port, Some(token.clone()));
    let (_stream, _) = master.answer(&refusal(NOT_AUTHORIZED, "no")).await;
    let error = running.end().await;
    told.extend([error.to_string(), format!("{error:?}")]);

    let mut running = machine.start(master.port, Some(token.clone()));
    master.accept().await;
    master.answer(WELCOME).await;
    let _removed = master.answer(NOT_AUTHORIZED_V3).await;
    let refused = |status: &rpicluster_slave::Status| status.problem.as_ref().is_some_and(|p| p.contains("removed"));
    let status = running.wait_for("refused", refused).await;
    told.extend([serde_json::to_string(&status).unwrap(), format!("{status:?}")]);
    running.task.abort();

    told.push(String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
    let logged = told.last().unwrap();
    assert!(logged.contains("cannot join yet") && logged.contains("joined") && logged.contains("no connection"));
    let secret = machine.identity()["secret"].as_str().unwrap().to_owned();
    let token = token.to_string();
    let token_secret = token.rsplit('.').next().unwrap();
    for text in told {
        assert!(!text.contains(&secret) && !text.contains(token_secret), "{text}");
    }
}
