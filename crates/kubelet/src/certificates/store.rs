//! Where a certificate and its key lie: one file for each that was ever issued, and a link to the one in use.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{CertificateError, Purpose};

/// The span in which a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    /// Of the first certificate in a PEM text.
    pub(super) fn of_pem(pem: &[u8]) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(pem).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let validity = parsed.validity();
        Some(Validity { not_before: time(validity.not_before)?, not_after: time(validity.not_after)? })
    }
}

pub(super) struct Store {
    dir: PathBuf,
    prefix: &'static str,
}

impl Store {
    pub(super) fn new(dir: &Path, purpose: Purpose) -> Self {
        Store { dir: dir.to_owned(), prefix: purpose.prefix() }
    }

    /// The link to the file in use.
    pub(super) fn current(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.prefix))
    }

    /// The key of a request that was not answered yet.
    pub(super) fn pending_key(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.prefix))
    }

    /// Of the certificate in use; `None` when there is none, or none that can be read.
    pub(super) fn validity(&self) -> Option<Validity> {
        Validity::of_pem(&std::fs::read(self.current()).ok()?)
    }

    /// Puts a new certificate into use. Readers see the old one or the new one, never half of one.
    pub(super) fn put(&self, pem: &str) -> Result<(), CertificateError> {
        let named = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let file = self.dir.join(format!("{}-{named}.pem", self.prefix));
        write_private(&file, pem.as_bytes())?;
        let updated = self.dir.join(format!("{}-updated.pem", self.prefix));
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| CertificateError::Write { path, source }
        };
        match std::fs::remove_file(&updated) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&updated)(error)),
            _ => {}
        }
        symlink(&file, &updated).map_err(at(&updated))?;
        std::fs::rename(&updated, self.current()).map_err(at(&self.current()))
    }
}

/// Writes a file that only root may read, whole or not at all.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CertificateError> {
    let failed = |source| CertificateError::Write { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let half = path.with_extension("partial");
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half);
    let mut file = open.map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&half, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_certificate_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Purpose::Client);
        assert_eq!(store.validity(), None);
        let mut parameters = rcgen::CertificateParams::new(["node".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        store.put("not a certificate").unwrap();
        assert_eq!(store.validity(), None);
        store.put(&pem).unwrap();
        let validity = store.validity().unwrap();
        assert_eq!(validity.not_before, "2020-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(validity.not_after, "2030-01-01T00:00:00Z".parse().unwrap());
        assert!(store.current().is_symlink() && store.current().ends_with("kubelet-client-current.pem"));
    }
}
