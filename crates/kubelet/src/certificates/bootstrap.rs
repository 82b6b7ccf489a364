//! The first client certificate of a node, asked for with the bootstrap kubeconfig's rights.

use std::path::Path;

use base64::Engine;
use client::config::{ClientOptions, from_kubeconfig};
use futures::future::BoxFuture;
use jiff::Timestamp;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use rcgen::KeyPair;

use super::request::{Wish, ask};
use super::store::{Store, Validity, write_private};
use super::{CertificateError, Purpose};

pub struct Bootstrap<'a> {
    /// May ask for certificates, and for little else.
    pub bootstrap_kubeconfig: &'a Path,
    /// Where the kubeconfig of the node is, or will be.
    pub kubeconfig: &'a Path,
    pub cert_dir: &'a Path,
    pub node_name: &'a str,
}

/// Makes sure that there is a kubeconfig with a client certificate that is still good: asks for one if there is none, and
/// waits until it is issued.
///
/// # Errors
/// When the request is refused or cannot be made, or nothing can be written.
pub fn bootstrap<'a>(of: &'a Bootstrap<'a>) -> BoxFuture<'a, Result<(), CertificateError>> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(ensure_kubeconfig(of))
}

async fn ensure_kubeconfig(of: &Bootstrap<'_>) -> Result<(), CertificateError> {
    if certificate_of(of.kubeconfig).is_some_and(|validity| validity.not_after > Timestamp::now()) {
        return Ok(());
    }
    tracing::info!(kubeconfig = %of.kubeconfig.display(), "no usable client certificate, asking for one");
    let cluster = cluster_of(of.bootstrap_kubeconfig)?;
    let client = from_kubeconfig(of.bootstrap_kubeconfig, &ClientOptions::unlimited("kubelet")).await?;
    let store = Store::new(of.cert_dir, Purpose::Client);
    let key = pending_key(&store)?;
    let wish = Wish { purpose: Purpose::Client, node_name: of.node_name.to_owned(), hosts: Vec::new() };
    let answer = ask(&client, &wish, &key).await;
    if matches!(answer, Ok(_) | Err(CertificateError::Refused { .. })) {
        // Answered, one way or the other: the next request is another one. One of which nothing is known may have been made.
        let path = store.pending_key();
        std::fs::remove_file(&path).map_err(|source| CertificateError::Write { path, source })?;
    }
    store.put(&answer?)?;
    let yaml = serde_saphyr::to_string(&kubeconfig_of(cluster, &store.current()))
        .map_err(|error| CertificateError::Kubeconfig { path: of.kubeconfig.to_owned(), problem: error.to_string() })?;
    write_private(of.kubeconfig, yaml.as_bytes())
}

/// The key of a request that an earlier kubelet did not live to see answered, or a new one.
fn pending_key(store: &Store) -> Result<KeyPair, CertificateError> {
    let path = store.pending_key();
    if let Some(key) = std::fs::read_to_string(&path).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = KeyPair::generate()?;
    write_private(&path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

/// When the client certificate of a kubeconfig's current user is good; `None` when it has none.
fn certificate_of(kubeconfig: &Path) -> Option<Validity> {
    let config = Kubeconfig::read_from(kubeconfig).ok()?;
    let context = config.contexts.iter().find(|c| Some(&c.name) == config.current_context.as_ref())?.context.clone()?;
    let user = config.auth_infos.into_iter().find(|u| Some(&u.name) == context.user.as_ref())?.auth_info?;
    let pem = match (user.client_certificate_data, user.client_certificate) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD.decode(data).ok()?,
        (None, Some(file)) => std::fs::read(file).ok()?,
        (None, None) => return None,
    };
    Validity::of_pem(&pem)
}

/// The cluster that a kubeconfig's current context is about.
fn cluster_of(kubeconfig: &Path) -> Result<Cluster, CertificateError> {
    let wrong = |problem: String| CertificateError::Kubeconfig { path: kubeconfig.to_owned(), problem };
    let config = Kubeconfig::read_from(kubeconfig).map_err(|error| wrong(error.to_string()))?;
    let context = config.contexts.iter().find(|c| Some(&c.name) == config.current_context.as_ref());
    let name = context.and_then(|c| c.context.as_ref()).map(|c| &c.cluster);
    let cluster = config.clusters.iter().find(|c| Some(&c.name) == name).and_then(|c| c.cluster.clone());
    cluster.ok_or_else(|| wrong("the current context names no cluster".to_owned()))
}

/// A kubeconfig, under upstream's names, whose user has the certificate and key in `file`.
fn kubeconfig_of(cluster: Cluster, file: &Path) -> Kubeconfig {
    let (name, user) = ("default-cluster".to_owned(), "default-auth".to_owned());
    let file = Some(file.display().to_string());
    let auth_info = AuthInfo { client_certificate: file.clone(), client_key: file, ..AuthInfo::default() };
    let context = Context {
        cluster: name.clone(),
        user: Some(user.clone()),
        namespace: Some("default".to_owned()),
        ..Context::default()
    };
    Kubeconfig {
        api_version: Some("v1".to_owned()),
        kind: Some("Config".to_owned()),
        clusters: vec![NamedCluster { name, cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: user, auth_info: Some(auth_info), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext {
            name: "default-context".to_owned(),
            context: Some(context),
            ..NamedContext::default()
        }],
        current_context: Some("default-context".to_owned()),
        ..Kubeconfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_could_not_be_made_is_made_again_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let (bootstrap_kubeconfig, kubeconfig) = (dir.path().join("bootstrap.conf"), dir.path().join("kubelet.conf"));
        // Nobody listens on the port of a socket that is only bound.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let cluster =
            Cluster { server: Some(format!("http://{}", socket.local_addr().unwrap())), ..Cluster::default() };
        let text = serde_saphyr::to_string(&kubeconfig_of(cluster, Path::new("/none"))).unwrap();
        let text = text.replace("client-certificate: /none", "token: t").replace("client-key: /none", "");
        std::fs::write(&bootstrap_kubeconfig, text).unwrap();
        let of = Bootstrap {
            bootstrap_kubeconfig: &bootstrap_kubeconfig,
            kubeconfig: &kubeconfig,
            cert_dir: dir.path(),
            node_name: "node-1",
        };
        let key = || std::fs::read_to_string(Store::new(dir.path(), Purpose::Client).pending_key()).unwrap();
        assert!(matches!(bootstrap(&of).await, Err(CertificateError::Create(_))));
        let first = key();
        assert!(matches!(bootstrap(&of).await, Err(CertificateError::Create(_))));
        assert_eq!(key(), first);
    }
}
