//! Probes: one task per probe of a running container; what they found is read by the pod's worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::events::Recorder;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, ObjectReference, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pod::plan::Probed;
use crate::runtime::Runtime;

/// What the probes of a pod's containers have found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub probed: BTreeMap<String, Probed>,
    pub ready: BTreeMap<String, bool>,
}

/// The probes of one pod.
pub(crate) struct Probes {
    runtime: Runtime,
    events: Recorder,
    counts: Arc<Counts>,
    /// Wakes the pod's worker when something changed.
    changed: Arc<Notify>,
    found: Arc<Mutex<Findings>>,
    running: BTreeMap<String, Running>,
}

struct Running {
    container_id: String,
    stop: CancellationToken,
    /// Ends the startup and liveness probes alone.
    restarts: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Clone)]
pub(crate) struct Target {
    pub container_id: String,
    pub container: Container,
    pub pod_ip: String,
    pub regarding: ObjectReference,
    /// When the container started, seconds ago.
    pub age: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// How often each probe has passed and failed, for `/metrics/probes`. A pod's counts go with it.
#[derive(Default)]
pub(crate) struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    fn add(&self, labels: String) {
        *self.0.lock().entry(labels).or_default() += 1;
    }

    pub(crate) fn forget(&self, uid: &str) {
        let of_pod = format!("pod_uid=\"{uid}\"");
        self.0.lock().retain(|labels, _| !labels.contains(&of_pod));
    }

    pub(crate) fn text(&self) -> String {
        let head =
            "# HELP prober_probe_total Probes of containers, by what they found\n# TYPE prober_probe_total counter\n";
        let lines = self.0.lock().iter().map(|(l, n)| format!("prober_probe_total{{{l}}} {n}\n")).collect::<String>();
        head.to_owned() + &lines
    }
}

impl Probes {
    pub(crate) fn new(context: &Context, changed: Arc<Notify>) -> Self {
        let (runtime, events) = (context.runtime.clone(), context.events.clone());
        Probes {
            runtime,
            events,
            counts: Arc::clone(&context.probe_counts),
            changed,
            found: Arc::default(),
            running: BTreeMap::new(),
        }
    }

    pub(crate) fn findings(&self) -> Findings {
        self.found.lock().clone()
    }

    /// Probes exactly these containers from now on.
    pub(crate) fn set_targets(&mut self, targets: Vec<Target>) {
        self.running.retain(|name, r| {
            let stays = targets.iter().any(|t| t.container.name == *name && t.container_id == r.container_id);
            if !stays {
                let mut found = self.found.lock();
                found.probed.remove(name);
                found.ready.remove(name);
            }
            stays
        });
        for target in targets {
            if !self.running.contains_key(&target.container.name) {
                self.start(target);
            }
        }
    }

    /// A pod that goes down is no longer restarted by its probes, while its readiness still matters to who sends it work.
    pub(crate) fn keep_readiness_only(&mut self) {
        for running in self.running.values() {
            running.restarts.cancel();
        }
    }

    fn start(&mut self, target: Target) {
        let name = target.container.name.clone();
        let c = &target.container;
        let probes = [
            (Kind::Startup, c.startup_probe.clone()),
            (Kind::Liveness, c.liveness_probe.clone()),
            (Kind::Readiness, c.readiness_probe.clone()),
        ];
        if probes.iter().all(|(_, p)| p.is_none()) {
            return;
        }
        {
            let mut found = self.found.lock();
            found.probed.insert(name.clone(), Probed { started: c.startup_probe.is_none(), failed: false });
            if c.readiness_probe.is_some() {
                found.ready.insert(name.clone(), false);
            }
        }
        let stop = CancellationToken::new();
        let restarts = stop.child_token();
        for (kind, probe) in probes {
            let Some(probe) = probe else { continue };
            let task = Task {
                kind,
                probe,
                target: target.clone(),
                runtime: self.runtime.clone(),
                events: self.events.clone(),
                counts: Arc::clone(&self.counts),
                changed: Arc::clone(&self.changed),
                found: Arc::clone(&self.found),
            };
            let stop = if kind == Kind::Readiness { stop.clone() } else { restarts.clone() };
            tokio::spawn(async move { stop.run_until_cancelled(task.run()).await });
        }
        self.running.insert(name, Running { container_id: target.container_id, stop, restarts });
    }
}

struct Task {
    kind: Kind,
    probe: Probe,
    target: Target,
    runtime: Runtime,
    events: Recorder,
    counts: Arc<Counts>,
    changed: Arc<Notify>,
    found: Arc<Mutex<Findings>>,
}

fn seconds(value: Option<i32>, default: u64, least: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default).max(least))
}

impl Task {
    async fn run(self) {
        let delay = seconds(self.probe.initial_delay_seconds, 0, 0).saturating_sub(self.target.age);
        tokio::time::sleep(delay).await;
        let mut period = tokio::time::interval(seconds(self.probe.period_seconds, 10, 1));
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut successes, mut failures) = (0, 0);
        loop {
            period.tick().await;
            if self.kind != Kind::Startup && !self.has_started() {
                continue;
            }
            let outcome = self.probe_once().await;
            self.count(outcome.is_ok());
            match outcome {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(why) => {
                    (successes, failures) = (0, failures + 1);
                    let word = self.kind.word();
                    self.events.warning(&self.target.regarding, "Unhealthy", format!("{word} probe failed: {why}"));
                }
            }
            let enough = |count: i32, wanted: Option<i32>, default: i32| count >= wanted.unwrap_or(default).max(1);
            if enough(successes, self.probe.success_threshold, 1) && self.passed() {
                return; // a startup probe that has passed is done
            }
            if enough(failures, self.probe.failure_threshold, 3) && self.failed() {
                return; // the worker restarts the container, and with it its probes
            }
        }
    }

    fn count(&self, passed: bool) {
        let of = |s: &Option<String>| s.clone().unwrap_or_default();
        let pod = &self.target.regarding;
        let labels = format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{}\",probe_type=\"{}\",result=\"{}\"",
            self.target.container.name,
            of(&pod.namespace),
            of(&pod.name),
            of(&pod.uid),
            self.kind.word(),
            if passed { "successful" } else { "failed" },
        );
        self.counts.add(labels);
    }

    fn has_started(&self) -> bool {
        self.found.lock().probed.get(&self.target.container.name).is_none_or(|p| p.started)
    }

    /// Notes success; true when this probe is over.
    fn passed(&self) -> bool {
        let name = &self.target.container.name;
        let mut found = self.found.lock();
        let (changed, over) = match self.kind {
            Kind::Startup => {
                found.probed.entry(name.clone()).or_default().started = true;
                (true, true)
            }
            Kind::Liveness => (false, false),
            Kind::Readiness => (found.ready.insert(name.clone(), true) != Some(true), false),
        };
        if changed {
            self.changed.notify_one();
        }
        over
    }

    fn failed(&self) -> bool {
        let name = &self.target.container.name;
        let mut found = self.found.lock();
        let (changed, over) = match self.kind {
            Kind::Startup | Kind::Liveness => {
                found.probed.entry(name.clone()).or_default().failed = true;
                (true, true)
            }
            Kind::Readiness => (found.ready.insert(name.clone(), false) != Some(false), false),
        };
        if changed {
            self.changed.notify_one();
        }
        over
    }

    async fn probe_once(&self) -> Result<(), String> {
        let timeout = seconds(self.probe.timeout_seconds, 1, 1);
        let host = |given: Option<&String>| {
            given.cloned().filter(|h| !h.is_empty()).unwrap_or_else(|| self.target.pod_ip.clone())
        };
        if let Some(exec) = &self.probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            let done = self.runtime.exec(&self.target.container_id, command, timeout);
            let done = tokio::time::timeout(timeout, done)
                .await
                .map_err(|_| format!("command timed out after {}s", timeout.as_secs()))?
                .map_err(|e| e.to_string())?;
            let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            return if done.exit_code == 0 { Ok(()) } else { Err(output) };
        }
        let attempt = async {
            if let Some(get) = &self.probe.http_get {
                return http_get(get, &host(get.host.as_ref()), port_of(&get.port, &self.target.container)?).await;
            }
            if let Some(tcp) = &self.probe.tcp_socket {
                let address = (host(tcp.host.as_ref()), port_of(&tcp.port, &self.target.container)?);
                let shown = format!("{}:{}", address.0, address.1);
                return TcpStream::connect(address)
                    .await
                    .map(drop)
                    .map_err(|e| format!("dial tcp {shown}: connect: {}", words(&e)));
            }
            if let Some(grpc) = &self.probe.grpc {
                let port = u16::try_from(grpc.port).map_err(|_| "invalid port".to_owned())?;
                let service = grpc.service.clone().unwrap_or_default();
                return crate::grpc_health::check(&self.target.pod_ip, port, &service).await;
            }
            Err("missing probe handler".to_owned())
        };
        tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())
        })
    }
}

/// An I/O error in the words of Go's.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

/// Where a GET goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    scheme: String,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Where a redirect leads, if that is on the same host: probes follow it no further.
    fn redirected(&self, location: &str) -> Option<Place> {
        let uri: http::Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        let Some(host) = uri.host() else { return Some(Place { path, ..self.clone() }) };
        let scheme = uri.scheme_str().unwrap_or(&self.scheme).to_owned();
        let default = if scheme == "https" { 443 } else { 80 };
        let host = host.trim_matches(['[', ']']).to_owned();
        (host == self.host).then(|| Place { port: uri.port_u16().unwrap_or(default), scheme, host, path })
    }
}

/// How many redirects a probe follows.
const REDIRECTS: usize = 10;

async fn http_get(get: &HTTPGetAction, host: &str, port: u16) -> Result<(), String> {
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let mut place = Place { scheme, host: host.to_owned(), port, path };
    for _ in 0..=REDIRECTS {
        let answer = request(get, &place).await?;
        match (answer.code, answer.location.as_deref().and_then(|l| place.redirected(l))) {
            (300..=399, Some(next)) => place = next,
            (200..=399, _) => return Ok(()),
            (code, _) => return Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    Err(format!("Get \"{}\": stopped after {REDIRECTS} redirects", place.path))
}

struct Answer {
    code: u16,
    location: Option<String>,
}

async fn request(get: &HTTPGetAction, place: &Place) -> Result<Answer, String> {
    let authority = place.authority();
    let shown = format!("{}://{authority}{}", place.scheme, place.path);
    let dial = |e: std::io::Error| format!("Get \"{shown}\": dial tcp {authority}: connect: {}", words(&e));
    let socket = TcpStream::connect((place.host.as_str(), place.port)).await.map_err(dial)?;
    let given = || get.http_headers.iter().flatten();
    let has = |name: &str| given().any(|h| h.name.eq_ignore_ascii_case(name));
    let mut request = http::Request::get(&place.path);
    if !has("host") {
        request = request.header(http::header::HOST, &authority);
    }
    if !has("user-agent") {
        request = request.header(http::header::USER_AGENT, "kube-probe/1.36");
    }
    if !has("accept") {
        request = request.header(http::header::ACCEPT, "*/*");
    }
    for header in given() {
        request = request.header(&header.name, &header.value);
    }
    let request = request
        .header(http::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let answer = if place.scheme == "https" {
        let tls = crate::probe_tls::connect(socket, &place.host).await?;
        send(TokioIo::new(tls), request).await
    } else {
        send(TokioIo::new(socket), request).await
    };
    answer.map_err(|e| format!("Get \"{shown}\": {e}"))
}

async fn send<S>(socket: S, request: http::Request<Empty<bytes::Bytes>>) -> Result<Answer, hyper::Error>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(socket).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let code = response.status().as_u16();
    let location = response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
    // Up to 10 KB of the body are read, so that the server is not cut off in the middle of a short answer.
    let mut body = http_body_util::Limited::new(response.into_body(), 10 << 10);
    while let Some(Ok(_)) = body.frame().await {}
    connection.abort();
    Ok(Answer { code, location })
}

/// One GET for a lifecycle hook.
pub(crate) async fn get_once(get: &HTTPGetAction, pod_ip: &str, container: &Container) -> Result<(), String> {
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
    http_get(get, host, port_of(&get.port, container)?).await
}

fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let named =
                container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port);
            named.or_else(|| name.parse().ok())
        }
    };
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| format!("invalid port: {port:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_on_the_same_host() {
        let place = |scheme: &str, port: u16, path: &str| Place {
            scheme: scheme.into(),
            host: "192.0.2.7".into(),
            port,
            path: path.into(),
        };
        let check = |location: &str, want: Option<Place>| {
            assert_eq!(place("http", 8080, "/a").redirected(location), want, "{location}");
        };
        check("/b?c=d", Some(place("http", 8080, "/b?c=d")));
        check("https://192.0.2.7/b", Some(place("https", 443, "/b")));
        check("http://192.0.2.7:90/", Some(place("http", 90, "/")));
        check("http://example.com/b", None);
    }
}
