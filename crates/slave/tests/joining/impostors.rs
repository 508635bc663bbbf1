//! Who is not the token's master learns neither token nor secret.

use rpicluster_client::TrustError;
use rpicluster_slave::SlaveError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time;

use crate::Machine;
use crate::master::{Ca, Master, PATIENCE, WELCOME};

#[tokio::test]
async fn a_man_in_the_middle_with_another_ca_is_told_nothing() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    // One who shows his own CA, and one who shows the token's.
    for shown in [theirs.der(), ours.der()] {
        let machine = Machine::new();
        let impostor = Master::start_as(&theirs, "127.0.0.1", shown.clone()).await;
        let running = machine.start(impostor.port, Some(ours.token()));
        let handshake = impostor.shake_hands().await;
        assert!(handshake.is_err(), "the slave has finished the handshake, so it may have sent its secrets");
        let error = running.end().await;
        match error {
            SlaveError::Untrusted(TrustError::OtherCa { .. }) if shown == theirs.der() => {}
            SlaveError::Untrusted(TrustError::UnknownIssuer) if shown == ours.der() => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(machine.identity()["joined"], false);
    }
}

#[tokio::test]
async fn what_does_not_speak_tls_sees_no_secret() {
    let (ca, machine) = (Ca::new(), Machine::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut running = machine.start(listener.local_addr().unwrap().port(), Some(ca.token()));
    let mut socket = accept(&listener).await;
    let mut hello = [0; 5];
    socket.read_exact(&mut hello).await.unwrap();
    socket.write_all(WELCOME).await.unwrap();
    let mut seen = hello.to_vec();
    // A connection that is closed with unread bytes in it ends with an error.
    let _ = time::timeout(PATIENCE, socket.read_to_end(&mut seen)).await.expect("the slave does not hang up");
    assert_eq!(seen[0], 0x16, "the first byte is no TLS handshake");
    let secret = machine.identity()["secret"].as_str().unwrap().to_owned();
    for secret in [ca.token().to_string(), secret, "enrol:".to_owned()] {
        assert!(!seen.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    let problem = running.wait_for("a problem", |status| status.problem.is_some()).await.problem.unwrap();
    assert!(problem.contains("does not speak TLS"), "{problem}");
    assert!(!running.task.is_finished());
    running.task.abort();
}

#[tokio::test]
async fn a_joined_slave_trusts_no_other_ca() {
    let ca = Ca::new();
    let (machine, master) = Machine::joined(&ca).await;
    let impostor = master.replaced_by(&Ca::new()).await;
    let mut running = machine.start(impostor.port, None);
    assert!(impostor.shake_hands().await.is_err());
    let problem = running.wait_for("a problem", |status| status.problem.is_some()).await.problem.unwrap();
    assert!(problem.contains("not from the CA") && problem.contains("identity.json"), "{problem}");
    // It may have been an impostor for a while only.
    assert!(impostor.shake_hands().await.is_err());
    assert!(!running.task.is_finished());
    running.task.abort();
}

async fn accept(listener: &TcpListener) -> TcpStream {
    time::timeout(PATIENCE, listener.accept()).await.expect("nobody connects").unwrap().0
}
