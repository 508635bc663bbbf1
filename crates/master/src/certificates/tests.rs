use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &TempDir) -> Certificates {
    Certificates::open(folder.path(), &Wanted::default(), SystemTime::now()).unwrap()
}

/// What the server shows to a client that trusts `root` and asks for `name`.
async fn shown(certificates: &Certificates, root: &CertificateDer<'static>, name: &str) -> Result<Vec<u8>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    let server = TlsAcceptor::from(certificates.server_config().unwrap());
    let (near, far) = tokio::io::duplex(16 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (connected, _accepted) = tokio::join!(client.connect(name, near), server.accept(far));
    let connected = connected.map_err(|error| error.to_string())?;
    Ok(connected.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

fn root_of(folder: &TempDir) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(folder.path().join(CA_FILE)).unwrap()
}

#[tokio::test]
async fn who_trusts_the_authority_reaches_the_master_by_every_name_of_the_machine() {
    let folder = folder();
    let wanted = Wanted { names: vec!["pi.example.org".into(), "203.0.113.9".into()], own: None };
    let certificates = Certificates::open(folder.path(), &wanted, SystemTime::now()).unwrap();
    let root = root_of(&folder);
    assert_eq!(certificates.fingerprint(), <[u8; 32]>::from(Sha256::digest(&root)));
    let host = rpicluster_machine::host_name().unwrap();
    let local = format!("{}.local", host.split('.').next().unwrap());
    for name in ["localhost", "127.0.0.1", "pi.example.org", "203.0.113.9", &host, &local] {
        shown(&certificates, &root, name).await.unwrap();
    }
    let error = shown(&certificates, &root, "elsewhere.example.org").await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let other = self::folder();
    open(&other);
    let error = shown(&certificates, &root_of(&other), "localhost").await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn the_authority_outlives_restarts_and_the_server_is_renewed_without_one() {
    let folder = folder();
    let first = open(&folder).fingerprint();
    let mut certificates = open(&folder);
    assert_eq!(certificates.fingerprint(), first);
    let root = root_of(&folder);
    let before = shown(&certificates, &root, "localhost").await.unwrap();
    let now = SystemTime::now();
    assert!(!certificates.refresh(now).unwrap(), "it is new");
    assert!(!certificates.refresh(now + DAY * 549).unwrap(), "it is not old enough");
    assert!(certificates.refresh(now + DAY * 551).unwrap());
    assert!(!certificates.refresh(now + DAY * 551).unwrap());
    let after = shown(&certificates, &root, "localhost").await.unwrap();
    assert_ne!(before, after);
    // A machine that learns the time only after its start.
    let mut early = Certificates::open(folder.path(), &Wanted::default(), UNIX_EPOCH).unwrap();
    assert!(early.refresh(now).unwrap());
    shown(&early, &root, "localhost").await.unwrap();
}

#[test]
fn the_key_is_for_its_owner_alone_and_half_an_authority_is_none() {
    let folder = folder();
    open(&folder);
    let key = folder.path().join(CA_KEY_FILE);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let failure = || {
        let result = Certificates::open(folder.path(), &Wanted::default(), SystemTime::now());
        result.err().unwrap().to_string()
    };
    assert!(failure().contains("chmod 600"), "{}", failure());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "no key").unwrap();
    assert!(failure().contains("ca.key: "), "{}", failure());
    fs::remove_file(&key).unwrap();
    assert!(failure().contains("ca.key is missing"), "{}", failure());
}

#[tokio::test]
async fn ones_own_certificate_is_served_and_read_again_when_it_changes() {
    let (folder, authority) = (folder(), folder());
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let own = Authority::open(authority.path()).unwrap();
    let write = |name: &str| {
        let server = new_key().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority_params(&own.key), &own.key);
        let certificate = params.signed_by(&server, &issuer).unwrap();
        let root = fs::read_to_string(authority.path().join(CA_FILE)).unwrap();
        write_private(&key, &server.serialize_pem()).unwrap();
        fs::write(&chain, certificate.pem() + &root).unwrap();
    };
    write("a.example.org");
    let wanted = Wanted { names: vec![], own: Some((chain.clone(), key.clone())) };
    let mut certificates = Certificates::open(folder.path(), &wanted, SystemTime::now()).unwrap();
    let root = root_of(&authority);
    assert_eq!(certificates.fingerprint(), <[u8; 32]>::from(Sha256::digest(&root)));
    shown(&certificates, &root, "a.example.org").await.unwrap();
    assert!(!certificates.refresh(SystemTime::now()).unwrap());
    write("b.example.org");
    // A file system may count time in steps in which two writes fall together.
    let later = SystemTime::now() + DAY;
    fs::File::open(&chain).unwrap().set_modified(later).unwrap();
    assert!(certificates.refresh(SystemTime::now()).unwrap());
    shown(&certificates, &root, "b.example.org").await.unwrap();
    // What cannot be used leaves in place what can.
    fs::write(&chain, "nothing").unwrap();
    assert!(certificates.refresh(SystemTime::now()).unwrap_err().to_string().contains("holds no certificate"));
    shown(&certificates, &root, "b.example.org").await.unwrap();
}
