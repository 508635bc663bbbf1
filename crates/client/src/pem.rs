//! PEM, both ways. Reading is rustls's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Characters of a line, RFC 7468.
const LINE: usize = 64;

/// The certificates of a PEM text, at least one; `None` if it is no such text.
pub(crate) fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// A certificate as PEM.
pub fn certificate_to_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_survives_its_text() {
        let certificate = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert;
        let pem = certificate_to_pem(certificate.der());
        assert_eq!(pem.replace("\r\n", "\n"), certificate.pem().replace("\r\n", "\n"));
        assert_eq!(certificates(pem.as_bytes()), Some(vec![certificate.der().clone()]));
        assert_eq!(certificates(b"nothing"), None);
        assert_eq!(certificates(&pem.as_bytes()[..100]), None);
    }
}
