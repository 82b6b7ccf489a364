//! The kubelet's own API on port 10250.

mod auth;
pub(crate) mod logs;
mod node_logs;
mod stats;
mod streaming;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use component_base::{connections, tls};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Purpose, ServingCertificate, Wish};
use crate::config::Config;
use crate::context::Context;
use crate::pod::manager::Pods;
use crate::runtime::Phase;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) struct Server {
    context: Arc<Context>,
    pods: Pods,
    auth: auth::Auth,
    config: Config,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// An answer that is no success: its code and text.
struct Refused(StatusCode, String);

impl Server {
    pub(crate) fn new(context: Arc<Context>, pods: Pods, config: Config) -> Self {
        let auth = auth::Auth::new(context.client.clone(), &config);
        Server { context, pods, auth, config }
    }

    /// The names and addresses that it is reached by.
    fn hosts(&self) -> Vec<String> {
        std::iter::once(&self.config.node_name).chain(&self.context.host_ips).cloned().collect()
    }

    /// A certificate that the cluster issues and renews. Nobody is served before it is there.
    fn issued_certificate(
        &self,
        client: kube::Client,
        stop: &CancellationToken,
    ) -> Arc<dyn rustls::server::ResolvesServerCert> {
        let serving = Arc::new(ServingCertificate::default());
        let (name, dir) = (self.config.node_name.clone(), self.config.cert_dir.clone());
        let wish = Wish { purpose: Purpose::Serving, node_name: name, hosts: self.hosts() };
        let (filled, stop) = (Arc::clone(&serving), stop.clone());
        tokio::spawn(async move { certificates::rotate(client, &dir, wish, Some(filled), stop).await });
        serving
    }

    /// Binds and serves in a task of its own until `stop`. Gives the port.
    pub(crate) async fn start(self, stop: CancellationToken) -> Result<u16, ServeError> {
        let certificate: Arc<dyn rustls::server::ResolvesServerCert> = match &self.config.tls {
            Some((cert, key)) => Arc::new(tls::ReloadingCertificate::open(cert, key)?),
            None => match &self.context.client {
                Some(client) if self.config.server_tls_bootstrap => self.issued_certificate(client.clone(), &stop),
                _ => tls::self_signed("kubelet", &self.hosts(), Some(&self.config.cert_dir))?,
            },
        };
        let roots = self.config.client_ca_file.as_deref().map(tls::load_roots).transpose()?;
        // HTTP/1.1 only: exec, attach and port-forward upgrade their connections.
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(certificate, roots, &["http/1.1"])?));
        let address = self.config.address;
        let listener = connections::listen(address).await.map_err(|source| ServeError::Listen { address, source })?;
        let port = listener.local_addr().map_or(address.port(), |a| a.port());
        let server = Arc::new(self);
        let serve = move |socket| Arc::clone(&server).serve(socket, acceptor.clone());
        tokio::spawn(connections::accept(listener, stop, serve));
        Ok(port)
    }

    async fn serve(self: Arc<Self>, socket: tokio::net::TcpStream, acceptor: TlsAcceptor) {
        let Some(tls) = connections::agree_on_tls(&acceptor, socket).await else { return };
        let peer = tls.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.as_ref().to_vec());
        let peer = Arc::new(peer);
        let service = service_fn(move |request| {
            let (server, peer) = (Arc::clone(&self), Arc::clone(&peer));
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer.as_deref()).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
        builder.http1().timer(TokioTimer::new());
        if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
            tracing::debug!(%error, "a connection to the kubelet broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: Option<&[u8]>) -> Response<Body> {
        match self.route(request, peer).await {
            Ok(response) => response,
            Err(Refused(code, message)) => {
                let mut response = text(message);
                *response.status_mut() = code;
                response
            }
        }
    }

    async fn route(&self, request: Request<Incoming>, peer: Option<&[u8]>) -> Result<Response<Body>, Refused> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        self.auth.check(&request, peer, &self.context.node_name).await?;
        let query = query_of(request.uri().query().unwrap_or_default());
        match (request.method(), parts.as_slice()) {
            (&Method::GET, ["healthz"]) => Ok(text("ok".to_owned())),
            (&Method::GET, ["healthz", ..]) => Ok(text("ok".to_owned())),
            (&Method::GET, ["pods"]) => Ok(json(&serde_json::json!({
                "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods.list(&self.context),
            }))),
            (&Method::GET, ["runningpods"]) => Ok(json(&self.running_pods().await?)),
            (&Method::GET, ["containerLogs", namespace, pod, container]) => {
                let (namespace, pod, container) = (decode(namespace), decode(pod), decode(container));
                self.container_logs(&namespace, &pod, &container, &query).await
            }
            (&Method::GET, ["metrics"]) => Ok(typed(component_base::metrics::CONTENT_TYPE, self.metrics_text())),
            (&Method::GET, ["metrics", "resource"]) => {
                Ok(typed(component_base::metrics::CONTENT_TYPE, self.measure().await?.resource_metrics()))
            }
            (&Method::GET, ["metrics", "cadvisor"]) => {
                let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
                Ok(typed(component_base::metrics::CONTENT_TYPE, self.measure().await?.cadvisor_metrics(cpus)))
            }
            (&Method::GET, ["metrics", "probes"]) => {
                Ok(typed(component_base::metrics::CONTENT_TYPE, self.context.probe_counts.text()))
            }
            (&Method::GET, ["stats", "summary"]) => self.summary().await,
            (&Method::GET, ["configz"]) => Ok(json(&serde_json::json!({"kubeletconfig": self.configuration()}))),
            (&Method::GET, ["logs", rest @ ..]) if self.config.system_logs => {
                let query = request.uri().query().unwrap_or_default();
                node_logs::serve(rest, query, self.config.system_log_query).await
            }
            (&Method::POST, ["checkpoint", namespace, pod, container]) => {
                self.checkpoint(&decode(namespace), &decode(pod), &decode(container), &query).await
            }
            (_, ["exec", rest @ ..]) => {
                let (id, tty) = self.running_container(rest).await?;
                streaming::exec(&self.context.runtime, request, id, tty).await
            }
            (_, ["attach", rest @ ..]) => {
                let (id, tty) = self.running_container(rest).await?;
                streaming::attach(&self.context.runtime, request, id, tty).await
            }
            (_, ["portForward", namespace, pod]) => {
                let sandbox = self.sandbox_of(&decode(namespace), &decode(pod)).await?;
                streaming::port_forward(&self.context.runtime, request, &sandbox).await
            }
            (&Method::POST, ["run", namespace, pod, container]) => {
                let (id, _) = self.running_container(&[namespace, pod, container]).await?;
                let command =
                    query.get("cmd").map(|c| c.split_whitespace().map(str::to_owned).collect()).unwrap_or_default();
                let done = self.context.runtime.exec(&id, command, std::time::Duration::from_secs(60)).await;
                let done = done.map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
                Ok(text(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()))
            }
            _ => Err(Refused(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
        }
    }

    /// The file as it was given, under what the kubelet made of it.
    fn configuration(&self) -> serde_json::Value {
        let mut all = serde_json::json!({
            "maxPods": self.config.max_pods,
            "clusterDNS": self.config.cluster_dns,
            "clusterDomain": self.config.cluster_domain,
            "containerRuntimeEndpoint": self.config.runtime_endpoint,
            "registerNode": self.config.register_node,
            "resolvConf": self.config.resolv_conf,
            "imageGCHighThresholdPercent": self.config.image_gc.high,
            "imageGCLowThresholdPercent": self.config.image_gc.low,
            "containerLogMaxFiles": self.config.logs.max_files,
            "podPidsLimit": self.config.pod_pids_limit,
            "seccompDefault": self.config.seccomp_default,
        });
        if let (Some(all), Some(given)) = (all.as_object_mut(), self.config.file.as_object()) {
            all.extend(
                given.iter().filter(|(k, _)| *k != "kind" && *k != "apiVersion").map(|(k, v)| (k.clone(), v.clone())),
            );
        }
        all
    }

    async fn container_logs(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
        query: &HashMap<String, String>,
    ) -> Result<Response<Body>, Refused> {
        let pod = self.pod(namespace, name)?;
        let options = logs::Options::parse(query).map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let state = self.context.runtime.pod(uid).await.map_err(internal)?;
        let mut runs = state.containers.iter().filter(|c| c.name == container);
        if crate::pod::worker::find(&pod, container).is_none() {
            let text = format!("container {container} is not valid for pod {name}");
            return Err(Refused(StatusCode::BAD_REQUEST, text));
        }
        let run = if options.previous { runs.nth(1) } else { runs.next() };
        let Some(run) = run else {
            let what = if options.previous {
                format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
            } else {
                format!("container \"{container}\" in pod \"{name}\" is waiting to start: ContainerCreating")
            };
            return Err(Refused(StatusCode::BAD_REQUEST, what));
        };
        let path = crate::pod::container_config::log_dir(&self.context.log_root, &pod)
            .join(format!("{container}/{}.log", run.restart_count));
        let still_runs = {
            let (runtime, id) = (self.context.runtime.clone(), run.id.clone());
            move || {
                let (runtime, id) = (runtime.clone(), id.clone());
                async move {
                    runtime
                        .container(&id)
                        .await
                        .is_ok_and(|c| matches!(c.listed.phase, Phase::Running | Phase::Created))
                }
            }
        };
        let body =
            logs::stream(path, options, still_runs).map_err(|e| Refused(StatusCode::NOT_FOUND, e.to_string()))?;
        let mut response = Response::new(body);
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    /// Has the runtime write a container's state into a file, and tells where that is (KEP-2008).
    async fn checkpoint(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &HashMap<String, String>,
    ) -> Result<Response<Body>, Refused> {
        let (id, _) = self.running_container(&[namespace, pod, container]).await?;
        let dir = self.context.root.join("checkpoints");
        let failed = |e: &dyn std::fmt::Display| {
            let text = format!("checkpointing of {namespace}/{pod}/{container} failed ({e})");
            Refused(StatusCode::INTERNAL_SERVER_ERROR, text)
        };
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| failed(&e))?;
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let file = dir.join(format!("checkpoint-{pod}_{namespace}-{container}-{stamp}.tar"));
        let timeout = match query.get("timeout") {
            Some(text) => {
                text.parse().map_err(|_| Refused(StatusCode::BAD_REQUEST, format!("cannot parse timeout {text:?}")))?
            }
            None => 0,
        };
        self.context.runtime.checkpoint(&id, &file, timeout).await.map_err(|e| failed(&e.in_full()))?;
        Ok(json(&serde_json::json!({ "items": [file] })))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<k8s_openapi::api::core::v1::Pod, Refused> {
        let missing = || Refused(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found\n"));
        self.pods.find(&self.context, namespace, name).ok_or_else(missing)
    }

    /// The id of a running container and whether it has a terminal, from `namespace/pod[/uid]/container`.
    async fn running_container(&self, rest: &[&str]) -> Result<(String, bool), Refused> {
        let rest: Vec<String> = rest.iter().map(|p| decode(p)).collect();
        let ([namespace, name, container] | [namespace, name, _, container]) = rest.as_slice() else {
            return Err(Refused(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()));
        };
        let pod = self.pod(namespace, name)?;
        let state =
            self.context.runtime.pod(pod.metadata.uid.as_deref().unwrap_or_default()).await.map_err(internal)?;
        let tty = crate::pod::worker::find(&pod, container).and_then(|c| c.tty) == Some(true);
        let found = state.containers.iter().find(|c| c.name == *container && c.phase == Phase::Running);
        let missing = || Refused(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")\n"));
        found.map(|c| (c.id.clone(), tty)).ok_or_else(missing)
    }

    async fn sandbox_of(&self, namespace: &str, name: &str) -> Result<String, Refused> {
        let pod = self.pod(namespace, name)?;
        let state =
            self.context.runtime.pod(pod.metadata.uid.as_deref().unwrap_or_default()).await.map_err(internal)?;
        let ready = state.sandboxes.iter().find(|s| s.ready).map(|s| s.id.clone());
        ready.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("pod {name} is not running\n")))
    }

    async fn running_pods(&self) -> Result<serde_json::Value, Refused> {
        let pods = self.context.runtime.list().await.map_err(internal)?;
        let items: Vec<serde_json::Value> = pods
            .values()
            .filter(|p| p.sandboxes.iter().any(|s| s.ready))
            .map(|p| {
                let names = p
                    .containers
                    .iter()
                    .filter(|c| c.phase == Phase::Running)
                    .map(|c| serde_json::json!({"name": c.name}));
                serde_json::json!({
                    "metadata": {"name": p.name, "namespace": p.namespace, "uid": p.uid},
                    "spec": {"containers": names.collect::<Vec<_>>()},
                })
            })
            .collect();
        Ok(serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    fn metrics_text(&self) -> String {
        let mut text = self.config.metrics.text();
        text.push_str(&format!(
            "# HELP kubelet_running_pods Number of pods that have a worker\n# TYPE kubelet_running_pods gauge\n\
             kubelet_running_pods {}\n",
            self.pods.len()
        ));
        text
    }

    /// Walks through the pods' volumes, however much is in them: others go on meanwhile.
    async fn summary(&self) -> Result<Response<Body>, Refused> {
        let (snapshot, context) = (self.measure().await?, Arc::clone(&self.context));
        let summed = tokio::task::spawn_blocking(move || snapshot.summary(&context)).await;
        summed.map(|all| json(&all)).map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    }

    async fn measure(&self) -> Result<stats::Snapshot, Refused> {
        stats::Snapshot::take(&self.context).await.map_err(internal)
    }
}

fn internal(error: crate::runtime::RuntimeError) -> Refused {
    Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// `%2F` and its like in a part of a path.
fn decode(part: &str) -> String {
    let bytes = part.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = part.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                i += 1;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The first value of each parameter.
pub(super) fn query_of(query: &str) -> HashMap<String, String> {
    let mut map = HashMap::new();
    for (key, value) in pairs(query) {
        map.entry(key).or_insert(value);
    }
    map
}

pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|p| !p.is_empty());
    parts.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn text(body: String) -> Response<Body> {
    typed("text/plain; charset=utf-8", body)
}

fn json(value: &serde_json::Value) -> Response<Body> {
    typed("application/json", value.to_string())
}

fn typed(content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn full(body: String) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}
