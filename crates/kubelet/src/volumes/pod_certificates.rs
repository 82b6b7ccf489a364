//! Keys and certificates for pods (KEP-4317): a key is made here, a signer is asked for its certificate through a
//! PodCertificateRequest, and both are renewed in time. Nothing of it outlives the kubelet: the next one asks again.

use std::collections::BTreeMap;
use std::time::Duration;

use client::error::ignore_not_found;
use client::events::reference;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::pem;
use crate::context::Context;

/// After this time, and up to [`SPREAD`] more, a request that is not there was deleted and is made again.
const GIVEN_UP: Duration = Duration::from_secs(10 * 60);
/// So late after the time to begin with it, a renewal is overdue.
const OVERDUE: Duration = Duration::from_secs(10 * 60);
/// Requests of many pods are spread over this time.
const SPREAD: Duration = Duration::from_secs(5 * 60);

/// Which source of which volume of which pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub pod_uid: String,
    pub volume: String,
    pub index: usize,
}

/// What a pod is given, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub key: String,
    pub chain: String,
}

/// A request that has not been answered.
#[derive(Clone)]
struct Asked {
    key: String,
    name: String,
    given_up_at: Timestamp,
}

#[derive(Clone)]
struct Issued {
    credentials: Credentials,
    renew_at: Timestamp,
    not_after: Timestamp,
    renewal: Option<Asked>,
    told_overdue: bool,
    told_expired: bool,
}

#[derive(Clone)]
enum State {
    Asked(Asked),
    /// For good.
    Refused(String),
    Issued(Issued),
}

/// What a signer has made of a request.
#[derive(Debug, PartialEq)]
enum Answer {
    Waits,
    Refused { kind: &'static str, reason: String, message: String },
    Issued { chain: String, renew_at: Timestamp, not_after: Timestamp },
}

#[derive(Default)]
pub(crate) struct PodCertificates(Mutex<BTreeMap<Place, State>>);

impl PodCertificates {
    /// What the source's files hold now. Each call goes as far as it can: asks, looks for the answer, or renews.
    pub(super) async fn get(
        &self,
        context: &Context,
        pod: &Pod,
        place: &Place,
        source: &PodCertificateProjection,
    ) -> Result<Credentials, String> {
        let client = context.client.as_ref().ok_or("there is no apiserver to ask for a certificate")?;
        let known = self.0.lock().get(place).cloned();
        let now = Timestamp::now();
        let state = match known {
            None => State::Asked(ask(client, context, pod, source).await?),
            Some(State::Asked(asked)) => match look(client, pod, &asked, now).await? {
                None => {
                    self.0.lock().remove(place);
                    return Err(format!("PodCertificateRequest {:?} appears to have been deleted", asked.name));
                }
                Some(answer) => after(context, pod, &asked, answer).unwrap_or(State::Asked(asked)),
            },
            Some(State::Issued(issued)) => renewed(client, context, pod, source, issued, now).await,
            Some(refused @ State::Refused(_)) => refused,
        };
        self.0.lock().insert(place.clone(), state.clone());
        match state {
            State::Asked(_) => Err("credential bundle is not issued yet".to_owned()),
            State::Refused(why) => Err(why),
            State::Issued(issued) => Ok(issued.credentials),
        }
    }

    pub(crate) fn forget(&self, pod_uid: &str) {
        self.0.lock().retain(|place, _| place.pod_uid != pod_uid);
    }
}

fn spread() -> Duration {
    SPREAD.mul_f64(rand::random_range(0.0..1.0))
}

/// What becomes of what was asked; nothing while there is no answer.
fn after(context: &Context, pod: &Pod, asked: &Asked, answer: Answer) -> Option<State> {
    match answer {
        Answer::Waits => None,
        Answer::Refused { kind, reason, message } => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let was = if kind == "Denied" { "was denied" } else { "failed" };
            let text = format!(
                "PodCertificateRequest {namespace}/{} {was}, reason={reason:?}, message={message:?}",
                asked.name
            );
            context.events.warning(&reference(pod), kind, text);
            let was = kind.to_lowercase();
            let why = format!("PodCertificateRequest was permanently {was}: reason={reason:?} message={message:?}");
            Some(State::Refused(why))
        }
        Answer::Issued { chain, renew_at, not_after } => Some(State::Issued(Issued {
            credentials: Credentials { key: asked.key.clone(), chain },
            renew_at: renew_at + spread(),
            not_after,
            renewal: None,
            told_overdue: false,
            told_expired: false,
        })),
    }
}

/// What was issued, or what takes its place. While nothing does, pods keep what they have, whatever goes wrong.
async fn renewed(
    client: &kube::Client,
    context: &Context,
    pod: &Pod,
    source: &PodCertificateProjection,
    mut issued: Issued,
    now: Timestamp,
) -> State {
    if now < issued.renew_at {
        return State::Issued(issued);
    }
    if now > issued.renew_at + OVERDUE && !issued.told_overdue {
        context.events.warning(&reference(pod), "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
        issued.told_overdue = true;
    }
    if now > issued.not_after && !issued.told_expired {
        context.events.warning(&reference(pod), "CertificateExpired", "PodCertificate expired");
        issued.told_expired = true;
    }
    let done = match issued.renewal.take() {
        None => ask(client, context, pod, source).await.map(Some),
        Some(asked) => match look(client, pod, &asked, now).await {
            Ok(Some(answer)) => match after(context, pod, &asked, answer) {
                Some(state) => return state,
                None => Ok(Some(asked)),
            },
            Ok(None) => Ok(None),
            Err(error) => {
                issued.renewal = Some(asked);
                Err(error)
            }
        },
    };
    match done {
        Ok(renewal) => issued.renewal = renewal,
        Err(error) => tracing::warn!(pod = pod.metadata.name, error, "a pod's certificate could not be renewed yet"),
    }
    State::Issued(issued)
}

/// Makes a key and asks the signer for its certificate.
async fn ask(
    client: &kube::Client,
    context: &Context,
    pod: &Pod,
    source: &PodCertificateProjection,
) -> Result<Asked, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let found = accounts.get(account).await.map_err(|e| format!("while fetching service account: {e}"))?;
    let node = Api::<Node>::all(client.clone()).get(&context.node_name).await;
    let node = node.map_err(|e| format!("while getting node object: {e}"))?;
    let kind = source.key_type.clone();
    // Making a large key takes its time.
    let made = tokio::task::spawn_blocking(move || request_for(&key_of(&kind)?)).await.map_err(|e| e.to_string())?;
    let (key, stub) = made.map_err(|e| format!("while generating keypair: {e}"))?;
    let request = PodCertificateRequest {
        metadata: ObjectMeta {
            generate_name: Some("req-".to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: text(&pod.metadata.name),
                uid: text(&pod.metadata.uid),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PodCertificateRequestSpec {
            signer_name: source.signer_name.clone(),
            pod_name: text(&pod.metadata.name),
            pod_uid: text(&pod.metadata.uid),
            service_account_name: account.to_owned(),
            service_account_uid: text(&found.metadata.uid),
            node_name: context.node_name.clone(),
            node_uid: text(&node.metadata.uid),
            max_expiration_seconds: source.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(stub),
            unverified_user_annotations: source.user_annotations.clone(),
            ..PodCertificateRequestSpec::default()
        },
        status: None,
    };
    let requests: Api<PodCertificateRequest> = Api::namespaced(client.clone(), namespace);
    let made = requests.create(&PostParams::default(), &request).await;
    let made = made.map_err(|e| format!("while creating PodCertificateRequest: {e}"))?;
    let given_up_at = Timestamp::now() + GIVEN_UP + spread();
    Ok(Asked { key, name: text(&made.metadata.name), given_up_at })
}

/// The answer to what was asked; none when the request is gone for good.
async fn look(client: &kube::Client, pod: &Pod, asked: &Asked, now: Timestamp) -> Result<Option<Answer>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let requests: Api<PodCertificateRequest> = Api::namespaced(client.clone(), namespace);
    let found = ignore_not_found(requests.get(&asked.name).await);
    let found =
        found.map_err(|e| format!("while getting PodCertificateRequest \"{namespace}/{}\": {e}", asked.name))?;
    match found {
        Some(request) => Ok(Some(answer(&request))),
        None if now < asked.given_up_at => Ok(Some(Answer::Waits)),
        None => Ok(None),
    }
}

fn answer(request: &PodCertificateRequest) -> Answer {
    let Some(status) = &request.status else { return Answer::Waits };
    for condition in status.conditions.iter().flatten() {
        let refused = |kind: &'static str| Answer::Refused {
            kind,
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        };
        match condition.type_.as_str() {
            "Denied" => return refused("Denied"),
            "Failed" => return refused("Failed"),
            "Issued" => {
                let (Some(renew_at), Some(not_after)) = (&status.begin_refresh_at, &status.not_after) else {
                    return Answer::Waits;
                };
                let chain = pem::certificates(status.certificate_chain.as_deref().unwrap_or_default());
                return Answer::Issued {
                    chain: chain.iter().map(|der| pem::block(der)).collect(),
                    renew_at: renew_at.0,
                    not_after: not_after.0,
                };
            }
            _ => {}
        }
    }
    Answer::Waits
}

/// The key in PEM, and a request in PKCS #10 that says nothing but whose key it is.
fn request_for(key: &KeyPair) -> Result<(String, Vec<u8>), String> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let request = parameters.serialize_request(key).map_err(|e| e.to_string())?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

fn key_of(kind: &str) -> Result<KeyPair, String> {
    let said = |e: rcgen::Error| e.to_string();
    match kind {
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(said),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(said),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).map_err(said),
        "RSA3072" => rsa(3072),
        "RSA4096" => rsa(4096),
        other => Err(format!("key type {other:?} is not supported on this node")),
    }
}

fn rsa(bits: usize) -> Result<KeyPair, String> {
    use rsa::pkcs8::EncodePrivateKey;
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits).map_err(|e| e.to_string())?;
    let der = key.to_pkcs8_der().map_err(|e| e.to_string())?;
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der.as_bytes());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_RSA_SHA256).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
