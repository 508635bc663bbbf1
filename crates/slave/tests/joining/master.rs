//! What a slave meets at the master's address: a TLS listener that reads CONNECT and answers with what the test says.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rpicluster_protocol::JoinToken;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A condition that is not met within this fails its test; it is no measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// CONNACK of MQTT 5: welcome.
pub(crate) const WELCOME: &[u8] = &[0x20, 3, 0, 0, 0];
/// CONNACK of MQTT 3.1.1: welcome.
pub(crate) const WELCOME_V3: &[u8] = &[0x20, 2, 0, 0];
/// CONNACK of MQTT 3.1.1: not authorised.
pub(crate) const NOT_AUTHORIZED_V3: &[u8] = &[0x20, 2, 0, 5];
/// Reason codes of MQTT 5.
pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
pub(crate) const SERVER_BUSY: u8 = 0x89;

/// A CONNACK of MQTT 5 with a Reason String.
pub(crate) fn refusal(code: u8, reason: &str) -> Vec<u8> {
    let length = u8::try_from(reason.len()).unwrap();
    let mut packet = vec![0x20, length + 6, 0, code, length + 3, 0x1f, 0, length];
    packet.extend_from_slice(reason.as_bytes());
    packet
}

/// A CA, as the master makes one at its first start.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Ca {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A token of this CA's master.
    pub(crate) fn token(&self) -> JoinToken {
        JoinToken { ca_fingerprint: Sha256::digest(self.0.der()).into(), secret: [9; 16] }
    }
}

/// A listener with a certificate.
pub(crate) struct Master {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub(crate) port: u16,
}

/// A CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: u8,
    pub(crate) clean: bool,
    pub(crate) will: bool,
    pub(crate) client_id: String,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Connect {
    /// The token and the secret of one that joins.
    pub(crate) fn token_and_secret(&self) -> (&str, &str) {
        self.password.split_once(':').expect("a password that joins has two parts")
    }
}

impl Master {
    /// Its certificate is for 127.0.0.1, signed by `ca`, which is in the chain.
    pub(crate) async fn start(ca: &Ca) -> Master {
        Master::start_as(ca, "127.0.0.1", ca.der()).await
    }

    /// Its certificate is for `name`, signed by `ca`; `shown` takes the CA's place in the chain.
    pub(crate) async fn start_as(ca: &Ca, name: &str, shown: CertificateDer<'static>) -> Master {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca.0).unwrap();
        let chain = vec![certificate.der().clone(), shown];
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Master { listener, acceptor: Arc::new(config).into(), port }
    }

    /// Hands its port over to a master of another kind.
    pub(crate) async fn replaced_by(self, ca: &Ca) -> Master {
        Master { listener: self.listener, port: self.port, ..Master::start(ca).await }
    }

    /// The next connection before TLS.
    pub(crate) async fn accept_tcp(&self) -> TcpStream {
        let accepted = time::timeout(PATIENCE, self.listener.accept()).await;
        accepted.expect("nobody connects").unwrap().0
    }

    /// How TLS with the next connection ends.
    pub(crate) async fn shake_hands(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = self.accept_tcp().await;
        time::timeout(PATIENCE, self.acceptor.accept(tcp)).await.expect("the handshake does not end")
    }

    /// The next connection's CONNECT.
    pub(crate) async fn accept(&self) -> (TlsStream<TcpStream>, Connect) {
        let mut stream = self.shake_hands().await.unwrap();
        let connect = time::timeout(PATIENCE, read_connect(&mut stream)).await.expect("no CONNECT came");
        (stream, connect)
    }

    /// Answers the next CONNECT with `connack`.
    pub(crate) async fn answer(&self, connack: &[u8]) -> (TlsStream<TcpStream>, Connect) {
        let (mut stream, connect) = self.accept().await;
        stream.write_all(connack).await.unwrap();
        stream.flush().await.unwrap();
        (stream, connect)
    }
}

async fn read_connect(stream: &mut TlsStream<TcpStream>) -> Connect {
    assert_eq!(stream.read_u8().await.unwrap(), 0x10, "the first packet is no CONNECT");
    let mut body = vec![0; read_length(stream).await];
    stream.read_exact(&mut body).await.unwrap();
    let mut rest = &body[..];
    assert_eq!(text(&mut rest), "MQTT");
    let (version, flags) = (rest[0], rest[1]);
    rest = &rest[4..];
    if version == 5 {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    let client_id = text(&mut rest);
    let will = flags & 4 != 0;
    if will {
        assert_eq!(version, 4, "this reads no will properties");
        text(&mut rest);
        text(&mut rest);
    }
    assert_eq!(flags & 0xc0, 0xc0, "user and password");
    Connect { version, clean: flags & 2 != 0, will, client_id, user: text(&mut rest), password: text(&mut rest) }
}

async fn read_length(stream: &mut TlsStream<TcpStream>) -> usize {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = stream.read_u8().await.unwrap();
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    length
}

fn text(rest: &mut &[u8]) -> String {
    let (length, after) = rest.split_at(2);
    let (text, after) = after.split_at(usize::from(u16::from_be_bytes([length[0], length[1]])));
    *rest = after;
    String::from_utf8(text.to_vec()).unwrap()
}
