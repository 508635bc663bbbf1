//! The master's certificate authority, and the certificate that its listeners show.
//!
//! The authority's key and certificate lie in the state folder; slaves trust that certificate, so it must outlive
//! everything. The server's certificate is made anew at each start and whenever the machine's names change or it grows
//! old, with a key that never leaves the memory; listeners show the newest from then on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, date_time_ymd,
};
use rpicluster_machine::{PrivateError, read_private, write_private};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::tasks::RunError;

/// The authority's certificate, which slaves trust. Not secret.
pub(crate) const CA_FILE: &str = "ca.pem";
/// The authority's key: who has it is the master.
pub(crate) const CA_KEY_FILE: &str = "ca.key";

/// The certificate that slaves and clients of the master with this state folder trust.
pub fn ca_file(state_dir: &Path) -> PathBuf {
    state_dir.join(CA_FILE)
}

/// The authority's certificate and key as a backup takes them; nothing before there is one.
///
/// # Errors
/// If the key is missing while the certificate is there, or others may read them.
pub(crate) fn authority_texts(folder: &Path) -> Result<Option<[String; 2]>, CertificateError> {
    let (certificate_path, key_path) = (ca_file(folder), folder.join(CA_KEY_FILE));
    match (read_private(&certificate_path)?, read_private(&key_path)?) {
        (Some(certificate), Some(key)) => Ok(Some([certificate, key])),
        (None, _) => Ok(None),
        (Some(_), None) => Err(CertificateError::Halved { missing: key_path, present: certificate_path }),
    }
}

/// Whether the authority in this folder can be used; one must be there.
///
/// # Errors
/// If it cannot.
pub(crate) fn check_authority(folder: &Path) -> Result<(), CertificateError> {
    Authority::open(folder).map(drop)
}

/// How long a server's certificate is valid. It is renewed after two thirds of that.
const LIFETIME: Duration = Duration::from_secs(825 * 24 * 3600);

/// A machine without a clock of its own may believe anything before this, until it has asked somebody.
const FIRST_DAY: (i32, u8, u8) = (2020, 1, 1);
/// When the authority ends: nobody replaces what all slaves trust in time for a date.
const LAST_DAY: (i32, u8, u8) = (2100, 1, 1);

/// How often names and age are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written, or others may read it.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// One of the authority's files is missing, so that slaves would not know the master any more.
    #[error(
        "{missing} is missing while {present} is there: restore it from a backup; or move {present} away for a new \
         certificate authority, to which every slave has to be joined anew"
    )]
    Halved {
        /// The file that is missing.
        missing: PathBuf,
        /// The other one.
        present: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Made(String),
}

/// Where the server's certificate comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Further names and addresses under which the master is reached.
    pub(crate) names: Vec<String>,
    /// One's own certificate (a chain that ends with the authority's) and key, instead of those made here.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// The certificates of a running master.
pub(crate) struct Certificates {
    source: Source,
    current: Arc<Current>,
    /// SHA-256 of the certificate at the end of the chain: what slaves are told to trust.
    fingerprint: [u8; 32],
}

enum Source {
    Authority { authority: Box<Authority>, names: Vec<String>, issued: Issued },
    Files { chain: PathBuf, key: PathBuf, read_at: (SystemTime, SystemTime) },
}

/// What the certificate that is shown now was made for.
struct Issued {
    names: BTreeSet<String>,
    renew_at: SystemTime,
}

struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Certificates {
    /// Takes the authority from the state folder, made there at the first start, and issues a certificate; or reads one's
    /// own.
    ///
    /// # Errors
    /// If files are damaged, missing in part, or open to others.
    pub(crate) fn open(folder: &Path, wanted: &Wanted, now: SystemTime) -> Result<Certificates, CertificateError> {
        if let Some((chain, key)) = &wanted.own {
            let (certified, fingerprint) = read_own(chain, key)?;
            let source = Source::Files { chain: chain.clone(), key: key.clone(), read_at: modified(chain, key) };
            return Ok(Certificates { source, current: Current::new(certified), fingerprint });
        }
        let authority = Authority::open(folder)?;
        let fingerprint = Sha256::digest(&authority.certificate).into();
        let names = machine_names(&wanted.names);
        let certified = authority.issue(&names, now, LIFETIME)?;
        let issued = Issued { names, renew_at: now + LIFETIME * 2 / 3 };
        let source = Source::Authority { authority: Box::new(authority), names: wanted.names.clone(), issued };
        Ok(Certificates { source, current: Current::new(certified), fingerprint })
    }

    /// SHA-256 of the certificate that slaves are told to trust.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// TLS 1.2 and 1.3, with the certificate that is current at each handshake.
    ///
    /// # Errors
    /// If the system gives no random numbers for tickets.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let made = |error: rustls::Error| CertificateError::Made(error.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(made)?.with_no_client_auth();
        let resolver = Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>;
        let mut config = builder.with_cert_resolver(resolver);
        // A slave that comes back spares both sides the signatures; nothing is kept here for it.
        config.ticketer = ring::Ticketer::new().map_err(made)?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// Keeps the certificate current until `stop` turns true.
    ///
    /// # Errors
    /// Never: what fails is logged and tried again.
    pub(crate) async fn watch(mut self, mut stop: watch::Receiver<bool>) -> Result<(), RunError> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
            match self.refresh(SystemTime::now()) {
                Ok(true) => info!("a new certificate is in use"),
                Ok(false) => {}
                Err(error) => warn!(%error, "the certificate stays as it is; trying again"),
            }
        }
    }

    /// Replaces the certificate if that is due; whether it did.
    fn refresh(&mut self, now: SystemTime) -> Result<bool, CertificateError> {
        let certified = match &mut self.source {
            Source::Authority { authority, names, issued } => {
                let names = machine_names(names);
                if names == issued.names && now < issued.renew_at {
                    return Ok(false);
                }
                let certified = authority.issue(&names, now, LIFETIME)?;
                *issued = Issued { names, renew_at: now + LIFETIME * 2 / 3 };
                certified
            }
            Source::Files { chain, key, read_at } => {
                let modified = modified(chain, key);
                if modified == *read_at {
                    return Ok(false);
                }
                let (certified, fingerprint) = read_own(chain, key)?;
                *read_at = modified;
                if fingerprint != self.fingerprint {
                    warn!("the new certificate ends in another authority: slaves that joined before do not trust it");
                }
                certified
            }
        };
        self.current.replace(certified);
        Ok(true)
    }
}

impl Authority {
    fn open(folder: &Path) -> Result<Authority, CertificateError> {
        let (certificate_path, key_path) = (ca_file(folder), folder.join(CA_KEY_FILE));
        let key = read_private(&key_path)?;
        let certificate = read_private(&certificate_path)?;
        match (key, certificate) {
            (Some(key), Some(certificate)) => {
                let damaged = |path: PathBuf| move |problem: String| CertificateError::File { path, problem };
                let key = KeyPair::from_pem(&key).map_err(|error| damaged(key_path)(error.to_string()))?;
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
                    .map_err(|error| damaged(certificate_path)(error.to_string()))?;
                Ok(Authority { key, certificate })
            }
            // The certificate is written after the key: without it nobody can have been told to trust it.
            (_, None) => Authority::make(&certificate_path, &key_path),
            (None, Some(_)) => Err(CertificateError::Halved { missing: key_path, present: certificate_path }),
        }
    }

    fn make(certificate_path: &Path, key_path: &Path) -> Result<Authority, CertificateError> {
        let key = new_key()?;
        let certificate = authority_params(&key).self_signed(&key).map_err(made)?;
        write_private(key_path, &key.serialize_pem())?;
        write_private(certificate_path, &certificate.pem())?;
        Ok(Authority { key, certificate: certificate.der().clone() })
    }

    /// A certificate for these names, with a new key.
    fn issue(
        &self,
        names: &BTreeSet<String>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<CertifiedKey, CertificateError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("rpicluster master");
        params.subject_alt_names = names.iter().filter_map(|name| alternative_name(name)).collect();
        (params.not_before, params.not_after) = (first_day(), unix(now) + lifetime);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority_params(&self.key), &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(made)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| CertificateError::Made(error.to_owned()))?;
        certified(chain, key).map_err(CertificateError::Made)
    }
}

impl Current {
    fn new(certified: CertifiedKey) -> Arc<Current> {
        Arc::new(Current(RwLock::new(Arc::new(certified))))
    }

    fn replace(&self, certified: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// What the authority says of itself. It follows from the key alone, so that what it issues names its issuer rightly.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id: String = Sha256::digest(key.der_bytes())[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = name(&format!("rpicluster CA {id}"));
    let (year, month, day) = LAST_DAY;
    (params.not_before, params.not_after) = (first_day(), date_time_ymd(year, month, day));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn new_key() -> Result<KeyPair, CertificateError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn first_day() -> time::OffsetDateTime {
    let (year, month, day) = FIRST_DAY;
    date_time_ymd(year, month, day)
}

/// A clock that has not been set yet says less than [`FIRST_DAY`].
fn unix(time: SystemTime) -> time::OffsetDateTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (date_time_ymd(1970, 1, 1) + since).max(first_day())
}

fn made(error: rcgen::Error) -> CertificateError {
    CertificateError::Made(error.to_string())
}

/// Whether a certificate can hold this as the name of a server.
pub(crate) fn is_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

fn alternative_name(name: &str) -> Option<SanType> {
    match name.parse::<IpAddr>() {
        Ok(address) => Some(SanType::IpAddress(address)),
        Err(_) => Some(SanType::DnsName(name.try_into().ok()?)),
    }
}

/// Every name and address under which this machine may be reached.
pub(crate) fn machine_names(further: &[String]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    if let Some(host) = rpicluster_machine::host_name() {
        let short = host.split('.').next().unwrap_or(&host);
        names.insert(format!("{short}.local"));
        names.insert(short.to_owned());
        names.insert(host);
    }
    names.extend(rpicluster_machine::addresses());
    names.extend(further.iter().cloned());
    names
}

fn read_own(chain_path: &Path, key_path: &Path) -> Result<(CertifiedKey, [u8; 32]), CertificateError> {
    let wrong = |path: &Path, problem: String| CertificateError::File { path: path.to_owned(), problem };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(chain_path).map_err(|error| wrong(chain_path, error.to_string()))?.collect();
    let chain: Vec<CertificateDer<'static>> = chain.map_err(|error| wrong(chain_path, error.to_string()))?;
    let Some(last) = chain.last() else {
        return Err(wrong(chain_path, String::from("holds no certificate in PEM form")));
    };
    let fingerprint = Sha256::digest(last).into();
    let Some(key) = read_private(key_path)? else {
        return Err(wrong(key_path, String::from("there is no such file")));
    };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong(key_path, error.to_string()))?;
    let certified = certified(chain, key).map_err(|problem| wrong(key_path, problem))?;
    Ok((certified, fingerprint))
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, String> {
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| error.to_string())
}

/// When the two files were written last; the beginning of time for one that is not there.
fn modified(chain: &Path, key: &Path) -> (SystemTime, SystemTime) {
    let of = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
    (of(chain), of(key))
}

#[cfg(test)]
mod tests;
