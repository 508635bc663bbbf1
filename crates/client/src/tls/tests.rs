use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn fingerprint(ca: &Ca) -> [u8; 32] {
    Fingerprint::of(ca.der()).0
}

/// A server's chain and key.
struct Server {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

fn server(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Server {
    let mut params = CertificateParams::new(["head.local".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    Server { chain: vec![certificate.der().clone(), ca.der().clone()], key }
}

/// Shakes hands in memory.
fn shake_hands(trust: &Trust, server: &Server, name: &str) -> Result<(), TrustError> {
    let key = PrivateKeyDer::Pkcs8(server.key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(server.chain.clone(), key)
        .unwrap();
    let mut there = ServerConnection::new(Arc::new(config)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut here = ClientConnection::new(client_config(trust, None).unwrap(), name).unwrap();
    while here.is_handshaking() || there.is_handshaking() {
        let mut wire = Vec::new();
        while here.wants_write() {
            here.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            there.read_tls(&mut rest).unwrap();
        }
        there.process_new_packets().unwrap();
        let mut wire = Vec::new();
        while there.wants_write() {
            there.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            here.read_tls(&mut rest).unwrap();
        }
        here.process_new_packets().map_err(|error| TrustError::from(&error))?;
    }
    Ok(())
}

#[test]
fn the_pinned_ca_is_trusted_and_kept() {
    let ca = ca();
    let pin = PinnedCa::new(fingerprint(&ca));
    assert_eq!(pin.pem(), None);
    for name in ["head.local", "127.0.0.1"] {
        shake_hands(&Trust::Pinned(pin.clone()), &server(&ca, |_| {}), name).unwrap();
    }
    let kept = pin.pem().unwrap();
    assert!(pin.is_in(kept.as_bytes()) && !PinnedCa::new([7; 32]).is_in(kept.as_bytes()) && !pin.is_in(b""));
    assert_eq!(certificates(kept.as_bytes()), Some(vec![ca.der().clone()]));
    shake_hands(&Trust::Ca(kept.into_bytes()), &server(&ca, |_| {}), "head.local").unwrap();
}

#[test]
fn another_ca_is_told_by_both_fingerprints() {
    let (ours, theirs) = (ca(), ca());
    let pin = PinnedCa::new(fingerprint(&ours));
    let error = shake_hands(&Trust::Pinned(pin.clone()), &server(&theirs, |_| {}), "head.local").unwrap_err();
    let expected = Fingerprint(fingerprint(&ours));
    assert_eq!(error, TrustError::OtherCa { presented: Fingerprint(fingerprint(&theirs)), expected });
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains("make a new token"), "{text}");
    assert_eq!(pin.pem(), None);
}

#[test]
fn presenting_the_pinned_ca_without_its_signature_is_not_enough() {
    let (ours, theirs) = (ca(), ca());
    let mut forged = server(&theirs, |_| {});
    for chain in [vec![ours.der().clone()], vec![theirs.der().clone(), ours.der().clone()]] {
        forged.chain.truncate(1);
        forged.chain.extend(chain);
        let pin = PinnedCa::new(fingerprint(&ours));
        let error = shake_hands(&Trust::Pinned(pin.clone()), &forged, "head.local").unwrap_err();
        assert_eq!(error, TrustError::UnknownIssuer);
        assert_eq!(pin.pem(), None);
    }
    let error = shake_hands(&Trust::Ca(ours.pem().into_bytes()), &forged, "head.local").unwrap_err();
    assert_eq!(error, TrustError::UnknownIssuer);
}

#[test]
fn a_wrong_name_tells_the_right_ones() {
    let ca = ca();
    for trust in [Trust::Pinned(PinnedCa::new(fingerprint(&ca))), Trust::Ca(ca.pem().into_bytes())] {
        let error = shake_hands(&trust, &server(&ca, |_| {}), "pi.example").unwrap_err();
        let names = vec!["head.local".to_owned(), "127.0.0.1".to_owned()];
        assert_eq!(error, TrustError::WrongName { name: "pi.example".to_owned(), names });
        let text = error.to_string();
        assert!(text.contains("names head.local, 127.0.0.1 but not pi.example"), "{text}");
    }
}

#[test]
fn a_wrong_time_tells_this_machines_clock() {
    let ca = ca();
    let trust = Trust::Pinned(PinnedCa::new(fingerprint(&ca)));
    let old = server(&ca, |params| params.not_after = date_time_ymd(2001, 2, 3));
    let error = shake_hands(&trust, &old, "head.local").unwrap_err();
    assert!(matches!(error, TrustError::Expired { .. }) && error.may_pass(), "{error:?}");
    assert!(error.to_string().contains("2001-02-03T00:00:00Z; this machine's clock says 2"), "{error}");
    let early = server(&ca, |params| params.not_before = date_time_ymd(3001, 2, 3));
    let error = shake_hands(&trust, &early, "head.local").unwrap_err();
    assert!(matches!(error, TrustError::NotYetValid { .. }) && error.to_string().contains("3001-02-03"), "{error:?}");
}

#[test]
fn a_ca_text_without_certificates_is_refused() {
    for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert_eq!(client_config(&Trust::Ca(text.into()), None).unwrap_err(), TlsSetupError::Ca, "{text}");
    }
}

#[test]
fn a_client_certificate_must_match_its_key() {
    let ca = ca();
    let trust = Trust::Ca(ca.pem().into_bytes());
    let ours = server(&ca, |_| {});
    let certificates = certificate_to_pem(&ours.chain[0]).into_bytes();
    let good = ClientCertificate { certificates, key: ours.key.serialize_pem().into_bytes() };
    client_config(&trust, Some(&good)).unwrap();
    let other = ClientCertificate { key: KeyPair::generate().unwrap().serialize_pem().into_bytes(), ..good.clone() };
    assert!(matches!(client_config(&trust, Some(&other)), Err(TlsSetupError::ClientCertificate(_))));
    let none = ClientCertificate { key: b"-----BEGIN hunter2".to_vec(), ..good };
    assert!(!client_config(&trust, Some(&none)).unwrap_err().to_string().contains("hunter2"));
    assert_eq!(format!("{none:?}"), "ClientCertificate(…)");
}
