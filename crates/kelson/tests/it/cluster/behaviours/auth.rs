//! Service accounts and certificates.

use serde_json::{Value, json};

use super::{Space, checks, condition, hold, name_of, runs};

#[test]
fn identities_behave() {
    hold(checks![
        tokens_are_mounted_unless_somebody_opts_out,
        a_token_is_good_for_a_review,
        the_root_certificate_is_in_every_namespace,
        a_request_is_approved_and_signed,
    ]);
}

fn tokens_are_mounted_unless_somebody_opts_out(space: &Space<'_>) {
    for (account, automount) in [("unsaid", Value::Null), ("yes", json!(true)), ("no", json!(false))] {
        space.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account},
            "automountServiceAccountToken": automount}));
        for (pod, says) in [("unsaid", Value::Null), ("yes", json!(true)), ("no", json!(false))] {
            let mut spec = runs("exit 0");
            spec["serviceAccountName"] = account.into();
            spec["automountServiceAccountToken"] = says;
            let name = format!("{account}-{pod}");
            space.create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}));
            let made = space.get(&format!("pod/{name}"));
            let mounts = made["spec"]["containers"][0]["volumeMounts"].as_array();
            let mounted =
                mounts.into_iter().flatten().any(|m| m["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
            let wanted = if pod == "unsaid" { account != "no" } else { pod == "yes" };
            assert_eq!(mounted, wanted, "account {account}, pod {pod}");
        }
    }
}

fn a_token_is_good_for_a_review(space: &Space<'_>) {
    space.kubectl_ok(&["create", "serviceaccount", "robot"], "");
    let token = space.kubectl_ok(&["create", "token", "robot"], "");
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()}});
    let said = space.kubectl_ok(&["create", "-f", "-", "-o", "json"], &review.to_string());
    let review: Value = serde_json::from_str(&said).unwrap();
    let user = format!("system:serviceaccount:{}:robot", space.name);
    assert_eq!(
        (&review["status"]["authenticated"], &review["status"]["user"]["username"]),
        (&json!(true), &json!(user))
    );
    // A pod finds a token of its own.
    let mut spec = runs("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; sleep 100000");
    spec["serviceAccountName"] = "robot".into();
    space.create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}));
    space.kubectl_ok(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"], "");
    let read = |file: &str| {
        space.kubectl_ok(
            &["exec", "p", "--", "cat", &format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}")],
            "",
        )
    };
    assert_eq!(read("namespace"), space.name);
    assert!(read("ca.crt").starts_with("-----BEGIN CERTIFICATE-----"));
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": read("token")}});
    let said = space.kubectl_ok(&["create", "-f", "-", "-o", "json"], &review.to_string());
    let review: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(review["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
}

fn the_root_certificate_is_in_every_namespace(space: &Space<'_>) {
    let what = "configmap/kube-root-ca.crt";
    let has = |map: &Value| map["data"]["ca.crt"].as_str().is_some_and(|pem| pem.starts_with("-----BEGIN"));
    space.until(what, has);
    space.kubectl_ok(&["delete", what], "");
    space.until(what, has);
    space.merge(what, &json!({"data": {"ca.crt": "mine"}}));
    space.until(what, has);
}

fn a_request_is_approved_and_signed(space: &Space<'_>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "e2e-user");
    let pem = parameters.serialize_request(&key).unwrap().pem().unwrap();
    use base64::Engine;
    let request = base64::engine::general_purpose::STANDARD.encode(pem);
    space.create(&json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "e2e"},
        "spec": {"request": request, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
            "expirationSeconds": 3600},
    }));
    let made = space.get("csr/e2e");
    assert_eq!(made["spec"]["username"], "kubernetes-admin");
    space.kubectl_ok(&["certificate", "approve", "e2e"], "");
    let signed = space.until("csr/e2e", |csr| csr["status"]["certificate"].is_string());
    assert_eq!((condition(&signed, "Approved"), name_of(&signed)), (Some("True"), "e2e"));
    // The certificate is its owner's.
    let certificate =
        base64::engine::general_purpose::STANDARD.decode(signed["status"]["certificate"].as_str().unwrap());
    let (cert, private) = (space.host.dir.join("e2e.crt"), space.host.dir.join("e2e.key"));
    std::fs::write(&cert, certificate.unwrap()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    let url = format!("https://{}:6443/apis/authentication.k8s.io/v1/selfsubjectreviews", space.host.address);
    let body = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let (cert, private) = (cert.display().to_string(), private.display().to_string());
    let args = ["-sk", "--cert", &cert, "--key", &private, "-H", "Content-Type: application/json", "-d", body, &url];
    let said = space.host.run("curl", &args);
    assert!(said.out.contains("\"e2e-user\""), "{said:?}");
    space.kubectl_ok(&["delete", "csr", "e2e"], "");
}
