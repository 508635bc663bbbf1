//! How master and slave reach an MQTT broker: its address, whom to trust there, and who one is.
//!
//! [`Connection`] holds all of it and makes rumqttc's options, or a stream for who speaks MQTT himself. Whatever TLS refuses
//! becomes a [`TrustError`], which tells people what to do.

mod address;
mod backoff;
mod config;
mod connection;
mod pem;
mod tls;
mod trust;

pub use address::{AddressError, BrokerAddress};
pub use backoff::Backoff;
pub use config::{ClusterConfig, ConfigError, Password};
pub use connection::{BrokerStream, Connection, Login};
pub use pem::certificate_to_pem;
pub use tls::{ClientCertificate, PinnedCa, TlsSetupError, Trust};
pub use trust::{Fingerprint, TrustError};
