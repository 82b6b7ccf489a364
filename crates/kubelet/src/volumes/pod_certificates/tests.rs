use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use super::*;

/// An apiserver with a node, a service account, and the requests that were made.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Vec<Value>>>);

impl Cluster {
    async fn answer(self, request: http::Request<kube::client::Body>) -> Result<Response<String>, Infallible> {
        let (parts, body) = request.into_parts();
        let found = match (parts.method, parts.uri.path().rsplit('/').next().unwrap_or_default()) {
            (Method::POST, _) => {
                let mut asked: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                let mut all = self.0.lock();
                asked["metadata"]["name"] = json!(format!("req-{}", all.len()));
                all.push(asked.clone());
                Some(asked)
            }
            (_, "n1" | "default") => Some(json!({ "metadata": { "uid": "known" } })),
            (_, name) => self.0.lock().iter().find(|r| r["metadata"]["name"] == name).cloned(),
        };
        let missing = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
            "code": 404, "message": "" });
        let code = if found.is_some() { 200 } else { 404 };
        Ok(Response::builder().status(code).body(found.unwrap_or(missing).to_string()).unwrap())
    }

    /// What the signer says of the newest request.
    fn say(&self, status: Value) {
        self.0.lock().last_mut().unwrap()["status"] = status;
    }

    fn asked(&self) -> Vec<PodCertificateRequest> {
        self.0.lock().iter().map(|r| serde_json::from_value(r.clone()).unwrap()).collect()
    }
}

/// A certificate of this name, to be renewed so many seconds from now.
fn issued(name: &str, renew_in: i64) -> Value {
    let time = |seconds: i64| Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap().to_string();
    let condition = json!({ "type": "Issued", "status": "True", "reason": "Done", "message": "",
        "lastTransitionTime": time(0) });
    json!({ "conditions": [condition], "certificateChain": format!("junk\n{}", pem::block(name.as_bytes())),
        "notBefore": time(-7200), "beginRefreshAt": time(renew_in), "notAfter": time(3600) })
}

struct Case {
    cluster: Cluster,
    context: Context,
    notes: tokio::sync::mpsc::Receiver<client::events::Note>,
    pod: Pod,
    _dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let (cluster, dir) = (Cluster::default(), tempfile::tempdir().unwrap());
        let (events, notes) = client::events::Recorder::collecting(8);
        let answers = cluster.clone();
        let client = kube::Client::new(tower::service_fn(move |r| answers.clone().answer(r)), "default");
        let context = Context { client: Some(client), events, ..Context::alone(dir.path()) };
        let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u1" },
            "spec": { "containers": [], "serviceAccountName": "default" } });
        Case { cluster, context, notes, pod: serde_json::from_value(pod).unwrap(), _dir: dir }
    }

    async fn get(&self) -> Result<Credentials, String> {
        let source = json!({ "signerName": "example.com/s", "keyType": "ECDSAP256", "maxExpirationSeconds": 3600,
            "userAnnotations": { "example.com/a": "b" } });
        let source = serde_json::from_value(source).unwrap();
        let place = Place { pod_uid: "u1".into(), volume: "v".into(), index: 0 };
        self.context.pod_certificates.get(&self.context, &self.pod, &place, &source).await
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_once_and_renewed_in_time() {
    let case = Case::new();
    for _ in 0..2 {
        assert_eq!(case.get().await, Err("credential bundle is not issued yet".to_owned()));
    }
    let asked = case.cluster.asked();
    assert_eq!(asked.len(), 1);
    let spec = &asked[0].spec;
    let of_whom = [&spec.pod_uid, &spec.service_account_uid, &spec.node_uid, &spec.signer_name];
    assert_eq!(of_whom, ["u1", "known", "known", "example.com/s"]);
    assert_eq!(
        (spec.max_expiration_seconds, spec.unverified_user_annotations.as_ref().unwrap().len()),
        (Some(3600), 1)
    );
    case.cluster.say(issued("first", 3600));
    let first = case.get().await.unwrap();
    assert_eq!(first.chain, pem::block(b"first"));
    assert!(KeyPair::from_pem(&first.key).is_ok());
    assert_eq!(case.get().await, Ok(first));
    assert_eq!(case.cluster.asked().len(), 1);
}

#[tokio::test]
async fn an_overdue_renewal_is_told_and_the_pod_keeps_what_it_has_until_there_is_more() {
    let mut case = Case::new();
    case.get().await.unwrap_err();
    case.cluster.say(issued("first", -3000));
    let first = case.get().await.unwrap();
    assert_eq!(case.get().await.as_ref(), Ok(&first));
    assert_eq!(case.cluster.asked().len(), 2);
    assert_eq!(case.notes.recv().await.unwrap().reason, "CertificateOverdueForRefresh");
    case.cluster.say(issued("second", 3600));
    let second = case.get().await.unwrap();
    assert_eq!(second.chain, pem::block(b"second"));
    assert_ne!(second.key, first.key);
}

#[tokio::test]
async fn what_a_signer_refuses_is_refused_for_good_and_told() {
    let mut case = Case::new();
    case.get().await.unwrap_err();
    let condition = json!({ "type": "Denied", "status": "True", "reason": "UnsupportedKeyType", "message": "no",
        "lastTransitionTime": "2026-01-01T00:00:00Z" });
    case.cluster.say(json!({ "conditions": [condition] }));
    let words = "PodCertificateRequest was permanently denied: reason=\"UnsupportedKeyType\" message=\"no\"";
    for _ in 0..2 {
        assert_eq!(case.get().await, Err(words.to_owned()));
    }
    assert_eq!(case.notes.recv().await.unwrap().reason, "Denied");
    assert!(case.notes.try_recv().is_err());
    case.context.pod_certificates.forget("u1");
    case.get().await.unwrap_err();
    assert_eq!(case.cluster.asked().len(), 2);
}

#[test]
fn a_request_says_nothing_but_whose_key_it_is() {
    // An RSA key takes a minute to be made without optimizations.
    for kind in ["ED25519", "ECDSAP256", "ECDSAP384"] {
        let key = key_of(kind).unwrap();
        let (pem, request) = request_for(&key).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&request).unwrap();
        let request = &request.certification_request_info;
        assert_eq!(request.subject_pki.raw, rcgen::PublicKeyData::subject_public_key_info(&key), "{pem}");
        assert_eq!(request.subject.as_raw(), [0x30, 0], "{pem}");
        assert_eq!(KeyPair::from_pem(&pem).unwrap().serialize_der(), key.serialize_der());
    }
    assert!(key_of("DSA").is_err());
}
