use std::fmt;
use std::io;
use std::sync::Arc;

use rumqttc::{MqttOptions, NetworkOptions, TlsConfiguration, Transport, v5};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::address::BrokerAddress;
use crate::tls::{ClientCertificate, TlsSetupError, Trust, client_config};

/// Where a broker is, whom to trust there, and who one is. Made once and used for every connection. `Debug` hides secrets.
#[derive(Clone)]
pub struct Connection {
    address: BrokerAddress,
    /// Set exactly if the address says TLS.
    tls: Option<Arc<ClientConfig>>,
    login: Option<Login>,
}

/// User name and password. `Debug` hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password; empty if the account has none.
    pub password: String,
}

/// A connected stream, encrypted or not.
pub trait BrokerStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> BrokerStream for T {}

impl Connection {
    /// To `address`, without a login. `trust` and `client` count where TLS is spoken.
    ///
    /// # Errors
    /// If a certificate or key cannot be used.
    pub fn new(
        address: BrokerAddress,
        trust: &Trust,
        client: Option<&ClientCertificate>,
    ) -> Result<Connection, TlsSetupError> {
        let tls = address.is_tls().then(|| client_config(trust, client)).transpose()?;
        Ok(Connection { address, tls, login: None })
    }

    /// The same with a login.
    pub fn with_login(self, login: Login) -> Connection {
        Connection { login: Some(login), ..self }
    }

    /// The same, whose login has this user name if it has none yet.
    pub fn with_default_user(mut self, user: &str) -> Connection {
        if let Some(login) = self.login.as_mut().filter(|login| login.user.is_empty()) {
            user.clone_into(&mut login.user);
        }
        self
    }

    /// The user name, if there is one.
    pub fn user(&self) -> Option<&str> {
        self.login.as_ref().map(|login| login.user.as_str()).filter(|user| !user.is_empty())
    }

    /// Where the broker is.
    pub fn address(&self) -> &BrokerAddress {
        &self.address
    }

    /// Whether a password would cross the network for everybody to read.
    pub fn exposes_password(&self) -> bool {
        let has_password = self.login.as_ref().is_some_and(|login| !login.password.is_empty());
        has_password && self.tls.is_none() && !self.address.is_loopback()
    }

    /// rumqttc's options for this broker: transport and login are set, everything else has rumqttc's default.
    pub fn options(&self, client_id: &str) -> MqttOptions {
        // An IPv6 address has no brackets here: TLS takes none, and the resolver needs none.
        let mut options = MqttOptions::new(client_id, self.address.host(), self.address.port());
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.clone())));
        }
        if let Some(Login { user, password }) = &self.login {
            options.set_credentials(user, password);
        }
        options
    }

    /// The same for MQTT 5; nothing waits for more to be sent with it (no Nagle).
    pub fn options_v5(&self, client_id: &str) -> v5::MqttOptions {
        let mut options = v5::MqttOptions::new(client_id, self.address.host(), self.address.port());
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if let Some(tls) = &self.tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.clone())));
        }
        if let Some(Login { user, password }) = &self.login {
            options.set_credentials(user, password);
        }
        options
    }

    /// A stream to the broker for who speaks MQTT himself; nothing is sent on it but TLS's handshake. The caller limits
    /// its time.
    ///
    /// # Errors
    /// If the network or TLS fails; [`crate::TrustError::of`] tells the latter.
    pub async fn open(&self) -> io::Result<Box<dyn BrokerStream>> {
        let tcp = TcpStream::connect((self.address.host(), self.address.port())).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = self.address.server_name().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, tcp).await?))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).field("login", &self.login).finish_non_exhaustive()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?}, …)", self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_password_is_shown() {
        let address: BrokerAddress = "mqtt://10.0.0.1".parse().unwrap();
        let login = Login { user: String::new(), password: "hunter2".to_owned() };
        let connection = Connection::new(address, &Trust::System, None).unwrap();
        assert!(!connection.exposes_password());
        let connection = connection.with_login(login).with_default_user("pi-7");
        assert!(connection.exposes_password());
        let shown = format!("{connection:?}");
        assert!(shown.contains("pi-7") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(connection.with_default_user("other").options("x").credentials().unwrap().username, "pi-7");
    }

    #[test]
    fn an_ipv6_address_reaches_the_resolver_in_a_form_that_it_takes() {
        use std::net::ToSocketAddrs;
        let address: BrokerAddress = "mqtt://[::1]:4711".parse().unwrap();
        let (host, port) = Connection::new(address, &Trust::System, None).unwrap().options("x").broker_address();
        // As rumqttc does it.
        let resolved = format!("{host}:{port}").to_socket_addrs().unwrap().next();
        assert_eq!(resolved, Some("[::1]:4711".parse().unwrap()));
    }
}
