//! The listener with TLS, for those who do not speak as an agent does.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;
use super::cluster::Cluster;

/// A connection with TLS.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Where TLS is spoken, and whom to trust there. Every handshake is a whole one. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TlsDoor {
    /// The address.
    pub(crate) address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl TlsDoor {
    /// The cluster's listener for slaves.
    pub(crate) fn of(cluster: &Cluster) -> TlsDoor {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(cluster.ca_file()).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::disabled();
        TlsDoor { address: cluster.mqtts, config: Arc::new(config) }
    }

    /// Connected, and nothing said.
    pub(crate) fn tcp(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// The first bytes of a handshake.
    pub(crate) fn client_hello(&self) -> Vec<u8> {
        let mut hello = Vec::new();
        self.session().write_tls(&mut hello).unwrap();
        hello
    }

    /// Connected, with the handshake done.
    pub(crate) fn open(&self) -> io::Result<TlsStream> {
        let (mut session, mut tcp) = (self.session(), self.tcp()?);
        while session.is_handshaking() {
            session.complete_io(&mut tcp)?;
        }
        Ok(StreamOwned::new(session, tcp))
    }

    fn session(&self) -> ClientConnection {
        ClientConnection::new(Arc::clone(&self.config), self.address.ip().into()).unwrap()
    }
}
