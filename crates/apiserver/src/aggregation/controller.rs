//! Keeps the table of aggregated servers up with the APIServices and their availability, and the APIServices of what this
//! server serves itself up with that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvr};
use apimachinery::selector::LabelSelector;
use apimachinery::status::Status;
use http::{HeaderMap, HeaderValue, header};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::documents::{self, Remote};
use super::{Backend, availability, group_version_of, local, proxy};
use crate::attributes::UserInfo;
use crate::cache::selection::Selection;
use crate::cache::{Cache, Item, Object, Start};
use crate::lister::Lister;
use crate::objects::ObjectWriter;
use crate::outbound::{Answer, Endpoint, service_address, trust};
use crate::server::{ApiServer, OwnWriter};

/// How often it is looked for what has changed about the Services behind aggregated servers.
const LOOK: Duration = Duration::from_secs(1);
/// How often an aggregated server is asked whether it is still there.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon one is asked again that did not answer, at first.
const SHORTEST_RETRY: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

struct Controller {
    server: ApiServer,
    writer: OwnWriter,
    api_services: Arc<Cache>,
    /// Those that lead elsewhere, by name.
    remote: BTreeMap<String, Watched>,
    /// The names of those that stand for what this server serves itself, and whether it made them.
    local: BTreeMap<String, bool>,
    /// The generation of the resources that the local ones were made of.
    registered: Option<u64>,
}

/// An APIService that leads elsewhere.
struct Watched {
    object: Value,
    /// Of its Service and that one's endpoints, when it was last looked at.
    facts: String,
    /// When to look again; `None`: now.
    due: Option<Instant>,
    failures: u32,
    remote: Arc<Remote>,
}

/// What a look at an aggregated server came to.
struct Look {
    name: String,
    facts: String,
    available: bool,
    reason: &'static str,
    message: String,
    /// `None`: what was known before.
    remote: Option<Remote>,
}

/// Runs until `halt`.
pub(crate) async fn run(server: ApiServer, halt: CancellationToken) {
    if halt.run_until_cancelled(server.registry().feed.reach_sync()).await.is_none() {
        return;
    }
    let Some(api_services) = server.resources().get(&api_services_resource()).and_then(|r| r.cache) else { return };
    let mut controller = Controller {
        writer: OwnWriter::new(&server),
        server,
        api_services,
        remote: BTreeMap::new(),
        local: BTreeMap::new(),
        registered: None,
    };
    // A watch that ends begins anew.
    while halt.run_until_cancelled(controller.watch()).await.is_some() {}
}

fn api_services_resource() -> Gvr {
    Gvr::new("apiregistration.k8s.io", "v1", "apiservices")
}

impl Controller {
    async fn watch(&mut self) {
        let all = Arc::new(Selection::new(None, None, LabelSelector::default()));
        let fed = self.server.registry().feed.revision();
        // With what is there from the start, no watch is too late.
        let Ok(mut watcher) = self.api_services.watch(all, Start::WithInitial { fed }) else { return };
        let server = self.server.clone();
        let mut there: Option<BTreeSet<String>> = Some(BTreeSet::new());
        loop {
            let next = std::future::poll_fn(|cx| watcher.poll_next(cx));
            let item = tokio::select! {
                item = next => match item {
                    Some(item) => Some(item),
                    None => return,
                },
                () = server.inner().aggregator.changed.notified() => None,
                () = tokio::time::sleep(LOOK), if !self.remote.is_empty() || self.registered.is_none() => None,
            };
            match item {
                Some(Item::Initial(object)) => {
                    let name = self.take(&object);
                    if let Some(there) = &mut there {
                        there.insert(name);
                    }
                }
                Some(Item::InitialEnd(_)) => {
                    for name in self.names_without(&there.take().unwrap_or_default()) {
                        self.forget(&name);
                    }
                }
                Some(Item::Change(delivery)) => match &delivery.change.current {
                    Some(object) => drop(self.take(object)),
                    None => {
                        if let Some(object) = &delivery.change.previous {
                            self.forget(&self.name_of(object));
                        }
                    }
                },
                None => {}
            }
            if there.is_none() && watcher.is_drained() {
                self.register().await;
                self.look().await;
            }
        }
    }

    fn name_of(&self, object: &Object) -> String {
        self.api_services.shape.names(&object.key).1.to_owned()
    }

    fn names_without(&self, there: &BTreeSet<String>) -> Vec<String> {
        let known = self.remote.keys().chain(self.local.keys());
        known.filter(|name| !there.contains(*name)).cloned().collect()
    }

    /// Takes in an APIService as it is now.
    fn take(&mut self, object: &Object) -> String {
        let service = object.decode();
        let name = service.name().to_owned();
        if service.at(&["spec", "service"]).is_null() {
            if self.remote.contains_key(&name) {
                self.forget(&name);
            }
            self.local.insert(name.clone(), service.label(local::MANAGED).is_some());
            return name;
        }
        self.local.remove(&name);
        match self.remote.get_mut(&name) {
            Some(watched) => {
                if watched.object["spec"] != service["spec"] {
                    watched.due = None;
                }
                watched.object = service;
            }
            None => {
                let watched =
                    Watched { object: service, facts: String::new(), due: None, failures: 0, remote: Arc::default() };
                self.remote.insert(name.clone(), watched);
            }
        }
        self.serve(&name);
        name
    }

    fn forget(&mut self, name: &str) {
        self.local.remove(name);
        if let Some(watched) = self.remote.remove(name) {
            let inner = self.server.inner();
            inner.aggregator.remove(&group_version_of(&watched.object));
            inner.discovery.renew();
            inner.measured.api_service_gone(name);
        }
        // What was deleted may be something that this server makes.
        self.registered = None;
    }

    /// Makes the table say what is known of an APIService.
    fn serve(&self, name: &str) {
        let Some(watched) = self.remote.get(name) else { return };
        let inner = self.server.inner();
        let (spec, status) = (&watched.object["spec"], &watched.object["status"]);
        let is_available = |c: &Value| c.str_at(&["type"]) == "Available" && c.str_at(&["status"]) == "True";
        let roots = if spec["insecureSkipTLSVerify"].as_bool() == Some(true) {
            trust::Roots::Anyone
        } else {
            trust::Roots::of_bundle(spec.str_at(&["caBundle"]))
        };
        let backend = Backend {
            gv: group_version_of(&watched.object),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            namespace: spec.str_at(&["service", "namespace"]).to_owned(),
            service: spec.str_at(&["service", "name"]).to_owned(),
            port: spec.at(&["service", "port"]).as_i64().unwrap_or(443),
            tls: self.identity().and_then(|identity| trust::verified(roots, identity)),
            available: status["conditions"].items().iter().any(is_available),
            remote: Arc::clone(&watched.remote),
        };
        let same = inner.aggregator.backend(&backend.gv.group, &backend.gv.version).is_some_and(|before| {
            before.available == backend.available
                && before.remote == backend.remote
                && before.group_priority == backend.group_priority
                && before.version_priority == backend.version_priority
        });
        inner.aggregator.set(backend);
        if !same {
            inner.discovery.renew();
        }
    }

    /// How this server proves itself. Read anew each time: certificates are renewed.
    fn identity(&self) -> Result<Option<trust::Identity>, String> {
        let files = &self.server.inner().config.proxy_client;
        files.as_ref().map(|(cert, key)| trust::identity_of_files(cert, key)).transpose()
    }

    /// Makes the APIServices of what this server serves itself, and deletes those of what it serves no longer.
    async fn register(&mut self) {
        let generation = self.server.resources().generation();
        if self.registered == Some(generation) {
            return;
        }
        let served = self.server.resources().group_versions();
        let mut done = true;
        let names: BTreeSet<String> = served.iter().map(|gv| format!("{}.{}", gv.version, gv.group)).collect();
        for gv in &served {
            let service = local::api_service(gv);
            if self.local.contains_key(service.name()) || self.remote.contains_key(service.name()) {
                continue;
            }
            match self.writer.create(&api_services_resource(), service).await {
                Err(status) if status.reason != "AlreadyExists" => done &= logged(gv, &status),
                Ok(()) | Err(_) => {}
            }
        }
        let gone: Vec<String> =
            self.local.iter().filter(|(name, ours)| **ours && !names.contains(*name)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            match self.writer.delete(&api_services_resource(), "", &name).await {
                Err(status) if status.code != 404 => tracing::warn!(name, %status, "an APIService stays"),
                Ok(()) | Err(_) => {}
            }
        }
        if done {
            self.registered = Some(generation);
        }
    }

    /// Looks at those whose time has come, all at once.
    async fn look(&mut self) {
        let now = Instant::now();
        let lister = self.server.lister();
        let mut due = Vec::new();
        for (name, watched) in &self.remote {
            let facts = facts_of(&watched.object, &*lister);
            if watched.due.is_none_or(|due| due <= now) || facts != watched.facts {
                due.push((name.clone(), watched.object.clone(), facts, Arc::clone(&watched.remote)));
            }
        }
        if due.is_empty() {
            return;
        }
        let identity = self.identity();
        let looks = due.into_iter().map(|(name, object, facts, before)| {
            let identity =
                identity.as_ref().ok().and_then(|i| i.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key())));
            look_at(name, object, facts, before, identity, &*lister)
        });
        for look in futures::future::join_all(looks).await {
            self.note(look).await;
        }
    }

    async fn note(&mut self, look: Look) {
        let Some(watched) = self.remote.get_mut(&look.name) else { return };
        watched.failures = if look.available { 0 } else { watched.failures.saturating_add(1) };
        let pause = if look.available {
            RESYNC
        } else {
            (SHORTEST_RETRY * 2u32.saturating_pow(watched.failures.min(8) - 1)).min(RESYNC)
        };
        watched.due = Some(Instant::now() + pause);
        watched.facts = look.facts;
        if let Some(remote) = look.remote {
            watched.remote = Arc::new(remote);
        }
        self.server.inner().measured.api_service_available(&look.name, look.available, look.reason);
        let mut object = watched.object.clone();
        let status = if look.available { "True" } else { "False" };
        let now = crate::registry::timestamp();
        crate::custom::set_condition(
            object.entry(&["status"]),
            ("Available", status),
            look.reason,
            &look.message,
            &now,
        );
        if object != watched.object {
            match self.writer.update_status(&api_services_resource(), object).await {
                // It comes back as a change, too.
                Ok(written) => watched.object = written,
                Err(status) => {
                    watched.due = None;
                    if !matches!(status.code, 404 | 409) {
                        tracing::warn!(name = look.name, %status, "the status of an APIService cannot be written");
                    }
                }
            }
        }
        self.serve(&look.name);
    }
}

/// Returns that it has to be tried again.
fn logged(gv: &GroupVersion, status: &Status) -> bool {
    tracing::warn!(%gv, %status, "an APIService could not be made");
    false
}

/// What is there of the Service and endpoints of an APIService.
fn facts_of(api_service: &Value, lister: &dyn Lister) -> String {
    let (service, slices) = behind(api_service, lister);
    let mut facts = service.map(|s| s.resource_version().to_owned()).unwrap_or_default();
    for slice in slices {
        facts.push('/');
        facts.push_str(slice.resource_version());
    }
    facts
}

fn behind(api_service: &Value, lister: &dyn Lister) -> (Option<Arc<Value>>, Vec<Arc<Value>>) {
    let reference = api_service.at(&["spec", "service"]);
    let (namespace, name) = (reference.str_at(&["namespace"]), reference.str_at(&["name"]));
    let slices = lister.list("endpointslices.discovery.k8s.io", namespace);
    let of_service = |slice: &Arc<Value>| slice.label("kubernetes.io/service-name") == Some(name);
    (lister.get("services", namespace, name), slices.into_iter().filter(of_service).collect())
}

async fn look_at(
    name: String,
    api_service: Value,
    facts: String,
    before: Arc<Remote>,
    identity: Option<trust::Identity>,
    lister: &dyn Lister,
) -> Look {
    let (service, slices) = behind(&api_service, lister);
    if let Some((reason, message)) = availability::obstacle(&api_service, service.as_deref(), &slices) {
        return Look { name, facts, available: false, reason, message, remote: None };
    }
    match ask(&api_service, &before, identity, lister).await {
        Ok(remote) => Look {
            name,
            facts,
            available: true,
            reason: "Passed",
            message: "all checks passed".to_owned(),
            remote: Some(remote),
        },
        Err(message) => Look { name, facts, available: false, reason: "FailedDiscoveryCheck", message, remote: None },
    }
}

/// Asks an aggregated server what it serves. Its certificate is not looked at: nothing secret is said.
async fn ask(
    api_service: &Value,
    before: &Remote,
    identity: Option<trust::Identity>,
    lister: &dyn Lister,
) -> Result<Remote, String> {
    let gv = group_version_of(api_service);
    let tls = trust::verified(trust::Roots::Anyone, identity)?;
    let reference = api_service.at(&["spec", "service"]);
    let (namespace, service) = (reference.str_at(&["namespace"]), reference.str_at(&["name"]));
    let port = reference["port"].as_i64().unwrap_or(443);
    let dial = service_address(namespace, service, port, lister)?;
    let get = async |path: &str, accept: &'static str| -> Result<Answer, String> {
        let endpoint = Endpoint {
            url: format!("https://{}:{}{path}", dial.0, dial.1),
            host: format!("{service}.{namespace}.svc"),
            port: u16::try_from(port).unwrap_or(443),
            path_and_query: path.to_owned(),
            dial: dial.clone(),
        };
        let mut headers = HeaderMap::new();
        let user = UserInfo {
            name: "system:kube-aggregator".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..UserInfo::default()
        };
        proxy::speak_for(&user, &mut headers);
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        let missing = |why: String| format!("failing or missing response from {}: {why}", endpoint.url);
        let answer = endpoint.get(Some(Arc::clone(&tls)), headers, TIMEOUT).await.map_err(missing)?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(missing(format!("bad status from {}: {}", endpoint.url, answer.status.as_u16())))
    };
    let json = |answer: &Answer| serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let plain = get(&format!("/apis/{}/{}", gv.group, gv.version), "application/json").await?;
    let aggregated = get("/apis", AGGREGATED).await.ok().and_then(|a| documents::of_aggregated(&json(&a), &gv));
    let openapi = get("/openapi/v3", "application/json").await.ok();
    let openapi = openapi.and_then(|answer| documents::openapi_hash(&json(&answer), &gv));
    // The whole document is asked for only when something about it has changed.
    let openapi_v2 = if openapi.is_some() && openapi == before.openapi && before.openapi_v2.is_some() {
        before.openapi_v2.clone()
    } else {
        let document = get("/openapi/v2", "application/json").await.ok();
        document.and_then(|answer| documents::openapi_v2_part(&answer.body, &gv))
    };
    let resources = aggregated.unwrap_or_else(|| documents::of_plain(&json(&plain), &gv));
    Ok(Remote { resources, openapi, openapi_v2 })
}
