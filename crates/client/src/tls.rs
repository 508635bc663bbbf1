//! TLS 1.2 and 1.3 with ring, and whom to trust.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::pem::{certificate_to_pem, certificates};
use crate::trust::{Fingerprint, TrustError};

/// Whose word counts for who a broker is.
#[derive(Debug, Clone)]
pub enum Trust {
    /// That of the CA with this fingerprint, which the broker must present. For the first contact.
    Pinned(PinnedCa),
    /// That of the CAs in this PEM text.
    Ca(Vec<u8>),
    /// That of the CAs that this system trusts.
    System,
}

/// A CA of which only the fingerprint is known, until a handshake has shown it.
#[derive(Debug, Clone)]
pub struct PinnedCa {
    fingerprint: Fingerprint,
    seen: Arc<OnceLock<CertificateDer<'static>>>,
}

/// What a client shows of itself. `Debug` hides the key.
#[derive(Clone)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the CA, as PEM.
    pub certificates: Vec<u8>,
    /// Its private key as PEM.
    pub key: Vec<u8>,
}

/// What is wrong with the material for TLS on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsSetupError {
    /// The CA's text.
    #[error("holds no certificate that can be used: it must be one or more CA certificates as PEM")]
    Ca,
    /// The system has none.
    #[error("this system trusts no CA: install ca-certificates, or name the broker's CA")]
    System,
    /// The client's certificate or its key.
    #[error("certificate and key cannot be used as PEM: {0}")]
    ClientCertificate(String),
    /// The TLS library's own words.
    #[error("TLS: {0}")]
    Other(String),
}

impl PinnedCa {
    /// The CA with this SHA-256 of its DER form.
    pub fn new(fingerprint: [u8; 32]) -> PinnedCa {
        PinnedCa { fingerprint: Fingerprint(fingerprint), seen: Arc::default() }
    }

    /// Whether it is among the certificates of this PEM text.
    pub fn is_in(&self, pem: &[u8]) -> bool {
        certificates(pem).is_some_and(|all| all.iter().any(|one| Fingerprint::of(one) == self.fingerprint))
    }

    /// The CA as PEM, once a broker has presented it with a chain that holds.
    pub fn pem(&self) -> Option<String> {
        self.seen.get().map(|der| certificate_to_pem(der))
    }
}

/// What TLS needs to know for all connections to a broker.
pub(crate) fn client_config(
    trust: &Trust,
    client: Option<&ClientCertificate>,
) -> Result<Arc<ClientConfig>, TlsSetupError> {
    // Named, never the process's default, which a library could set or leave unset.
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Pinned(ca) => Arc::new(PinnedVerifier { ca: ca.clone(), provider: provider.clone() }),
        Trust::Ca(pem) => verifier(ca_roots(pem)?, &provider).map_err(|_| TlsSetupError::Ca)?,
        Trust::System => verifier(system_roots(), &provider).map_err(|_| TlsSetupError::System)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsSetupError::Other(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let refused = |problem: String| TlsSetupError::ClientCertificate(problem);
            let chain = certificates(&client.certificates).ok_or_else(|| refused("no certificate".to_owned()))?;
            // The error's own words could repeat the key.
            let key = PrivateKeyDer::from_pem_slice(&client.key).map_err(|_| refused("no private key".to_owned()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| refused(error.to_string()))?
        }
    };
    Ok(Arc::new(config))
}

fn ca_roots(pem: &[u8]) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).ok_or(TlsSetupError::Ca)? {
        roots.add(certificate).map_err(|_| TlsSetupError::Ca)?;
    }
    Ok(roots)
}

/// What of it cannot be read is left out, as the system's own programs do.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn verifier(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::client::VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()
}

/// Finds the pinned CA in the chain that the broker presents and makes it the only root; chain, name and time are then
/// webpki's to judge.
#[derive(Debug)]
struct PinnedVerifier {
    ca: PinnedCa,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    fn find<'a>(&self, chain: &'a [CertificateDer<'a>]) -> Result<&'a CertificateDer<'a>, TrustError> {
        let expected = self.ca.fingerprint;
        if let Some(ca) = chain.iter().find(|certificate| Fingerprint::of(certificate) == expected) {
            return Ok(ca);
        }
        let last = chain.last().ok_or(TrustError::UnknownIssuer)?;
        Err(TrustError::OtherCa { presented: Fingerprint::of(last), expected })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let refused = |error| CertificateError::Other(OtherError(Arc::new(error)));
        let ca = self.find(&chain).map_err(refused)?.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verifier = verifier(roots, &self.provider).map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        // There is one certificate with this fingerprint: a second handshake has seen the same.
        let _ = self.ca.seen.set(ca);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(…)")
    }
}

#[cfg(test)]
mod tests;
