//! A certificate, and a way for clients that speak bytes to reach a broker through TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A server's certificate for `localhost` that is its own authority.
pub struct Certified {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Certified {
    pub fn make() -> Certified {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Certified { certificate: made.cert.der().clone(), key }
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(vec![self.certificate.clone()], self.key.clone_key()).unwrap())
    }

    pub fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    pub async fn connect(&self, broker: SocketAddr) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(broker).await.unwrap();
        stream.set_nodelay(true).unwrap();
        self.connector().connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    /// An address whose connections come out, encrypted, at the broker; for as long as the test runs.
    pub async fn tunnel_to(&self, broker: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connector = self.connector();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                near.set_nodelay(true).unwrap();
                let connector = connector.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(broker).await.unwrap();
                    far.set_nodelay(true).unwrap();
                    let name = ServerName::try_from("localhost").unwrap();
                    let mut far = connector.connect(name, far).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        address
    }
}
