//! A node that gets its certificate from the cluster (TLS bootstrapping).

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::apiserver::{ApiServer, TOKEN};

const PORT: u16 = 16461;
const NODE: &str = "worker";
/// A bootstrap token: its id, and its secret.
const BOOTSTRAP: (&str, &str) = ("abcdef", "0123456789abcdef");

/// What an administrator sets up: the token, the right to ask, and the right to be approved.
fn rights() -> String {
    let (id, secret) = BOOTSTRAP;
    let bindings = ["system:node-bootstrapper", "system:certificates.k8s.io:certificatesigningrequests:nodeclient"]
        .map(|role| {
            format!(
                r#"{{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding",
                "metadata":{{"name":"test:{role}"}},
                "roleRef":{{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"{role}"}},
                "subjects":[{{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"system:bootstrappers"}}]}}"#
            )
        })
        .join(",");
    format!(
        r#"{{"apiVersion":"v1","kind":"List","items":[{bindings},
        {{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"bootstrap-token-{id}","namespace":"kube-system"}},
        "type":"bootstrap.kubernetes.io/token","stringData":{{"token-id":"{id}","token-secret":"{secret}",
        "usage-bootstrap-authentication":"true"}}}}]}}"#
    )
}

fn kubeconfig(path: &Path, url: &str, token: &str) {
    let text = format!(
        r#"{{"apiVersion":"v1","kind":"Config","current-context":"c",
        "contexts":[{{"name":"c","context":{{"cluster":"c","user":"u"}}}}],
        "clusters":[{{"name":"c","cluster":{{"server":"{url}","insecure-skip-tls-verify":true}}}}],
        "users":[{{"name":"u","user":{{"token":"{token}"}}}}]}}"#
    );
    std::fs::write(path, text).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_asks_for_its_first_certificate() {
    let authority = tempfile::tempdir().unwrap();
    let path = |name: &str| authority.path().join(name).display().to_string();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(path("ca.crt"), parameters.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(path("ca.key"), key.serialize_pem()).unwrap();

    let flags = [format!("--client-ca-file={}", path("ca.crt")), "--enable-bootstrap-token-auth".to_owned()];
    let server = ApiServer::start(Ipv4Addr::LOCALHOST.into(), PORT, &flags);
    server.wait_until_ready();
    server.kubectl_ok(&["create", "-f", "-"], &rights());
    kubeconfig(&server.dir().join("admin.conf"), &server.url, TOKEN);
    let mut manager = Command::new(env!("CARGO_BIN_EXE_kelson"));
    manager.arg("kube-controller-manager").args([
        format!("--kubeconfig={}", server.dir().join("admin.conf").display()),
        format!("--cluster-signing-cert-file={}", path("ca.crt")),
        format!("--cluster-signing-key-file={}", path("ca.key")),
        "--controllers=csrapproving,csrsigning".to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ]);
    let _manager = Killed(manager.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let (bootstrap, own) = (server.dir().join("bootstrap.conf"), server.dir().join("kubelet.conf"));
    kubeconfig(&bootstrap, &server.url, &format!("{}.{}", BOOTSTRAP.0, BOOTSTRAP.1));
    let kubelet = || {
        let mut kubelet = Command::new(env!("CARGO_BIN_EXE_kelson"));
        kubelet.arg("kubelet").args([
            format!("--bootstrap-kubeconfig={}", bootstrap.display()),
            format!("--kubeconfig={}", own.display()),
            format!("--cert-dir={}", server.dir().join("pki").display()),
            format!("--root-dir={}", server.dir().join("kubelet").display()),
            format!("--hostname-override={NODE}"),
            "--container-runtime-endpoint=unix:///nonexistent.sock".to_owned(),
        ]);
        // It ends because there is no container runtime; its certificate comes before that.
        let output = kubelet.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("validate service connection"), "{said}");
    };
    kubelet();
    let whoami = Command::new("kubectl")
        .args(["--kubeconfig", &own.display().to_string(), "auth", "whoami", "-o"])
        .arg("jsonpath={.status.userInfo.username} {.status.userInfo.groups}")
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let whoami = String::from_utf8_lossy(&whoami.stdout).into_owned();
    assert_eq!(whoami, r#"system:node:worker ["system:nodes","system:authenticated"]"#);

    // It has what it needs now, and asks for nothing.
    let asked = |server: &ApiServer| {
        let path = "jsonpath={range .items[*]}{.spec.username} {.spec.signerName}{\"\\n\"}{end}";
        server.kubectl_ok(&["get", "certificatesigningrequests", "-o", path], "")
    };
    let once = "system:bootstrap:abcdef kubernetes.io/kube-apiserver-client-kubelet\n";
    assert_eq!(asked(&server), once);
    kubelet();
    assert_eq!(asked(&server), once);
    // What cannot be used is asked for anew.
    std::fs::write(server.dir().join("pki/kubelet-client-current.pem"), "nothing").unwrap();
    kubelet();
    assert_eq!(asked(&server), once.repeat(2));
}
