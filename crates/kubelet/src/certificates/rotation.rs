//! Renewing certificates while the ones before are good, and serving with the newest.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use component_base::tls::ReloadingCertificate;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use parking_lot::RwLock;
use rcgen::KeyPair;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::request::{Wish, ask};
use super::store::{Store, Validity};
use super::{CertificateError, Purpose};

/// Between two attempts at a certificate that was refused or not answered.
const RETRY: Duration = Duration::from_secs(60);
/// A certificate is renewed between these parts of its life, so that the nodes of a cluster do not all ask at once.
const FROM: f64 = 0.7;
const SPREAD: f64 = 0.2;

/// The certificate that the kubelet serves with, once the cluster has issued one.
#[derive(Debug, Default)]
pub(crate) struct ServingCertificate(RwLock<Option<ReloadingCertificate>>);

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().as_ref()?.resolve(hello)
    }
}

impl ServingCertificate {
    fn open(&self, file: &Path) {
        match ReloadingCertificate::open(file, file) {
            Ok(certificate) => *self.0.write() = Some(certificate),
            Err(error) => tracing::debug!(%error, "there is no serving certificate yet"),
        }
    }
}

/// Keeps a certificate of the node good until `stop`. One for serving is put into `serving` whenever it is new.
pub(crate) async fn rotate(
    client: Client,
    dir: &Path,
    wish: Wish,
    serving: Option<Arc<ServingCertificate>>,
    stop: CancellationToken,
) {
    let purpose = wish.purpose;
    let store = Store::new(dir, purpose);
    let refresh = || {
        if let Some(serving) = &serving {
            serving.open(&store.current());
        }
    };
    refresh();
    // One roll of the dice for each kubelet is spread enough.
    let share = f64::from(rand::random::<u16>()) / f64::from(u16::MAX);
    let keep = async {
        loop {
            let pause = match store.validity() {
                Some(validity) => until(renewal(validity, share)),
                // The first client certificate is the bootstrap's matter.
                None if purpose == Purpose::Client => return,
                None => Duration::ZERO,
            };
            tokio::time::sleep(pause).await;
            match renew(&client, &wish, &store).await {
                Ok(()) => refresh(),
                Err(error) => {
                    tracing::error!(%error, ?purpose, "the certificate is not renewed");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    stop.run_until_cancelled(keep).await;
}

async fn renew(client: &Client, wish: &Wish, store: &Store) -> Result<(), CertificateError> {
    let pem = ask(client, wish, &KeyPair::generate()?).await?;
    store.put(&pem)
}

/// When a certificate is renewed; `share` (0 to 1) is where in the span for that.
fn renewal(validity: Validity, share: f64) -> Timestamp {
    let life = validity.not_after.duration_since(validity.not_before).as_secs_f64();
    let age = SignedDuration::try_from_secs_f64(life * SPREAD.mul_add(share, FROM)).unwrap_or_default();
    validity.not_before.saturating_add(age).unwrap_or(validity.not_after)
}

fn until(time: Timestamp) -> Duration {
    time.duration_since(Timestamp::now()).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_late_in_its_life() {
        let validity = Validity {
            not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
            not_after: "2026-01-11T00:00:00Z".parse().unwrap(),
        };
        assert_eq!(renewal(validity, 0.0), "2026-01-08T00:00:00Z".parse().unwrap());
        assert_eq!(renewal(validity, 1.0), "2026-01-10T00:00:00Z".parse().unwrap());
    }
}
