//! The answers, for the API server alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use component_base::{connections, tls};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::usage::{Usage, Window};
use crate::{Config, Error, Windows};

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "metrics.k8s.io/v1beta1";

pub(crate) struct Server {
    config: Config,
    client: Client,
    windows: Windows,
}

/// A `Status` that tells of a failure.
struct Failure(StatusCode, &'static str, String);

impl Server {
    pub(crate) fn new(config: Config, client: Client, windows: Windows) -> Self {
        Server { config, client, windows }
    }

    /// Binds, and serves until `stop` in a task of its own.
    pub(crate) async fn start(self, stop: CancellationToken) -> Result<(), Error> {
        let certificate = Arc::new(tls::ReloadingCertificate::open(&self.config.certificate, &self.config.key)?);
        let roots = tls::load_roots(&self.config.front_proxy_ca)?;
        let tls = tls::server_config(certificate, Some(roots), &["h2", "http/1.1"])?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let address = self.config.address;
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let server = Arc::new(self);
        let serve = move |socket| Arc::clone(&server).serve(socket, acceptor.clone());
        tokio::spawn(connections::accept(listener, stop, serve));
        Ok(())
    }

    async fn serve(self: Arc<Self>, socket: TcpStream, acceptor: TlsAcceptor) {
        let Some(tls) = connections::agree_on_tls(&acceptor, socket).await else { return };
        // The handshake has verified the certificate, if there is one.
        let peer = tls.get_ref().1.peer_certificates().and_then(|c| c.first()).and_then(|c| common_name(c));
        let is_front_proxy = peer.is_some_and(|name| self.config.front_proxy_names.contains(&name));
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(server.answer(&request, is_front_proxy).await) }
        });
        if let Err(error) = connections::http().serve_connection(TokioIo::new(tls), service).await {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn answer(&self, request: &Request<Incoming>, is_front_proxy: bool) -> Response<Full<Bytes>> {
        let answer = if is_front_proxy {
            self.route(request).await
        } else {
            Err(Failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".to_owned()))
        };
        match answer {
            Ok(value) => reply(StatusCode::OK, &value),
            Err(Failure(code, reason, message)) => reply(
                code,
                &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
                    "message": message, "code": code.as_u16() }),
            ),
        }
    }

    async fn route(&self, request: &Request<Incoming>) -> Result<Value, Failure> {
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let missing =
            || Failure(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource".into());
        if request.method() != Method::GET {
            let text = "the server does not allow this method on the requested resource".to_owned();
            return Err(Failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text));
        }
        let params = selected(request.uri().query().unwrap_or_default());
        match parts.as_slice() {
            ["apis"] => Ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group()] })),
            ["apis", GROUP] => Ok(group()),
            ["apis", GROUP, "v1beta1", rest @ ..] => match rest {
                [] => Ok(resources()),
                ["nodes"] => self.nodes(&params).await,
                ["nodes", name] => {
                    let usage = self.windows.read().get(*name).and_then(Window::node);
                    let usage = usage.ok_or_else(|| not_found("nodes", name))?;
                    let meta = self.node(name).await?;
                    Ok(typed("NodeMetrics", node_metrics(&meta, usage)))
                }
                ["pods"] => self.pods(None, &params).await,
                ["namespaces", namespace, "pods"] => self.pods(Some(namespace), &params).await,
                ["namespaces", namespace, "pods", name] => {
                    let only = ListParams::default().fields(&format!("metadata.name={name}"));
                    let found = self.pod_list(Some(namespace), &only).await?;
                    let one =
                        found.into_iter().next().ok_or_else(|| not_found("pods", &format!("{namespace}/{name}")))?;
                    Ok(typed("PodMetrics", one))
                }
                _ => Err(missing()),
            },
            _ => Err(missing()),
        }
    }

    async fn node(&self, name: &str) -> Result<ObjectMeta, Failure> {
        let found = Api::<Node>::all(self.client.clone()).get_metadata_opt(name).await.map_err(internal)?;
        found.map(|node| node.metadata).ok_or_else(|| not_found("nodes", name))
    }

    async fn nodes(&self, params: &ListParams) -> Result<Value, Failure> {
        let nodes = Api::<Node>::all(self.client.clone()).list_metadata(params).await.map_err(internal)?;
        let windows = self.windows.read();
        let items: Vec<Value> = nodes
            .items
            .iter()
            .filter_map(|node| {
                let usage = windows.get(node.metadata.name.as_deref()?)?.node()?;
                Some(node_metrics(&node.metadata, usage))
            })
            .collect();
        Ok(json!({ "kind": "NodeMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items }))
    }

    async fn pods(&self, namespace: Option<&str>, params: &ListParams) -> Result<Value, Failure> {
        let items = self.pod_list(namespace, params).await?;
        Ok(json!({ "kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items }))
    }

    async fn pod_list(&self, namespace: Option<&str>, params: &ListParams) -> Result<Vec<Value>, Failure> {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let pods = api.list_metadata(params).await.map_err(internal)?;
        let windows = self.windows.read();
        let items = pods.items.iter().filter_map(|pod| {
            let key = (pod.metadata.namespace.clone()?, pod.metadata.name.clone()?);
            let containers = windows.values().find_map(|w| w.pod(&key))?;
            pod_metrics(&pod.metadata, &containers)
        });
        Ok(items.collect())
    }
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// The selectors of a request's query, which the API server applies.
fn selected(query: &str) -> ListParams {
    let mut params = ListParams::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "labelSelector" if !value.is_empty() => params = params.labels(&value),
            "fieldSelector" if !value.is_empty() => params = params.fields(&value),
            _ => {}
        }
    }
    params
}

fn internal(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 400 => {
            Failure(StatusCode::BAD_REQUEST, "BadRequest", status.message.clone())
        }
        other => {
            Failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("Internal error occurred: {other}"))
        }
    }
}

fn not_found(resource: &str, name: &str) -> Failure {
    Failure(StatusCode::NOT_FOUND, "NotFound", format!("{resource}.{GROUP} \"{name}\" not found"))
}

fn reply(code: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn group() -> Value {
    let version = json!({ "groupVersion": VERSION, "version": "v1beta1" });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version })
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, namespaced: bool| json!({ "name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"] });
    let all = [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)];
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": all })
}

fn typed(kind: &str, mut object: Value) -> Value {
    object["kind"] = kind.into();
    object["apiVersion"] = VERSION.into();
    object
}

fn amounts(usage: &Usage) -> Value {
    json!({ "cpu": format!("{}n", usage.cpu_nanos), "memory": format!("{}Ki", usage.memory_bytes / 1024) })
}

/// Whole seconds, and the window in Go's words.
fn times(usage: &Usage) -> (String, String) {
    let seconds = usage.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let window = Duration::try_from(usage.window).unwrap_or_default();
    (seconds, component_base::flags::show_go_duration(window))
}

fn metadata(of: &ObjectMeta, at: &str) -> Value {
    let mut metadata = json!({ "name": of.name, "creationTimestamp": at });
    if let Some(namespace) = &of.namespace {
        metadata["namespace"] = namespace.as_str().into();
    }
    if let Some(labels) = of.labels.as_ref().filter(|l| !l.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    metadata
}

fn node_metrics(node: &ObjectMeta, usage: Usage) -> Value {
    let (timestamp, window) = times(&usage);
    json!({ "metadata": metadata(node, &timestamp), "timestamp": timestamp, "window": window, "usage": amounts(&usage) })
}

/// Nothing for a pod none of whose containers was measured.
fn pod_metrics(pod: &ObjectMeta, containers: &BTreeMap<String, Usage>) -> Option<Value> {
    let oldest = containers.values().min_by_key(|usage| usage.at)?;
    let (timestamp, window) = times(oldest);
    let each: Vec<Value> = containers.iter().map(|(name, u)| json!({ "name": name, "usage": amounts(u) })).collect();
    Some(json!({ "metadata": metadata(pod, &timestamp), "timestamp": timestamp, "window": window, "containers": each }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn figures_are_worded_as_clients_read_them() {
        let usage = Usage {
            cpu_nanos: 1_500_000,
            memory_bytes: 3 << 20,
            at: Timestamp::UNIX_EPOCH,
            window: SignedDuration::from_millis(15_250),
        };
        let pod = ObjectMeta { name: Some("p".into()), namespace: Some("ns".into()), ..ObjectMeta::default() };
        let shown = pod_metrics(&pod, &BTreeMap::from([("c".to_owned(), usage)])).unwrap();
        let want = json!({
            "metadata": { "name": "p", "namespace": "ns", "creationTimestamp": "1970-01-01T00:00:00Z" },
            "timestamp": "1970-01-01T00:00:00Z", "window": "15.25s",
            "containers": [{ "name": "c", "usage": { "cpu": "1500000n", "memory": "3072Ki" } }],
        });
        assert_eq!(shown, want);
        assert_eq!(pod_metrics(&pod, &BTreeMap::new()), None);
    }

    #[test]
    fn selectors_are_passed_on() {
        let params = selected("labelSelector=a%3Db&fieldSelector=metadata.name%3Dx&limit=500");
        assert_eq!(params.label_selector.as_deref(), Some("a=b"));
        assert_eq!(params.field_selector.as_deref(), Some("metadata.name=x"));
    }
}
