//! Certificates in PEM, without whatever else a text holds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The certificates of a text, in its order.
pub(super) fn certificates(text: &str) -> Vec<Vec<u8>> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
    found.map(|certificate| certificate.to_vec()).collect()
}

/// One certificate as a block of its own.
pub(super) fn block(der: &[u8]) -> String {
    const LINE: usize = 64; // RFC 7468
    let text = STANDARD.encode(der);
    let mut block = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        block.push_str(line);
        block.push('\n');
        rest = more;
    }
    block + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_left_of_a_text() {
        let (one, other) = (block(&[1; 100]), block(b"two"));
        let text = format!("# a comment\n{one}\nSubject: x\n{other}");
        assert_eq!(certificates(&text), [vec![1; 100], b"two".to_vec()]);
        assert!(one.lines().all(|line| line.len() <= 64));
        assert!(certificates("nothing").is_empty());
    }
}
