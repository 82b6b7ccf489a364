//! Extenders: HTTP services that have a say in decisions. They are asked one after the other while a decision waits, on a
//! thread of their own, as decisions themselves know no I/O.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};

use client::config::{ClientOptions, from_kubeconfig_text};
use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NodeIdx, NodeRef};
use crate::config::ExtenderConfig;
use crate::framework::{FilterStatus, MAX_NODE_SCORE};
use crate::pod::PodInfo;

/// As what extenders stand in a diagnosis.
pub(crate) const NAME: &str = "Extender";
/// The best score that an extender gives.
const BEST: i64 = 10;

/// One extender; clones share its connection.
#[derive(Clone)]
pub(crate) struct Extender {
    config: Arc<ExtenderConfig>,
    calls: mpsc::Sender<Call>,
}

struct Call {
    verb: String,
    body: Value,
    answer: mpsc::SyncSender<Result<Value, String>>,
}

/// What an extender leaves of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Filtered {
    pub(crate) nodes: Vec<NodeIdx>,
    pub(crate) turned_down: Vec<(NodeIdx, FilterStatus)>,
}

/// A node on which room can be made: its name, the pods that would have to go, and how many of them a budget protects.
pub(crate) type Room = (Arc<str>, Vec<Arc<PodInfo>>, usize);

impl Extender {
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn start(config: &ExtenderConfig) -> std::io::Result<Self> {
        let (calls, receiver) = mpsc::channel();
        let config = Arc::new(config.clone());
        let own = config.clone();
        std::thread::Builder::new().name("extender".to_owned()).spawn(move || serve(&own, &receiver))?;
        Ok(Self { config, calls })
    }

    /// Whether it is to be asked about the pod.
    pub(crate) fn is_interested(&self, pod: &PodInfo) -> bool {
        let managed = &self.config.managed_resources;
        let asks = |container: &Container| {
            let Some(resources) = &container.resources else { return false };
            let names = resources.requests.iter().chain(&resources.limits).flat_map(|list| list.keys());
            names.into_iter().any(|name| managed.iter().any(|own| own.name == *name))
        };
        let Some(spec) = pod.spec() else { return false };
        managed.is_empty() || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(asks)
    }

    pub(crate) fn is_ignorable(&self) -> bool {
        self.config.ignorable
    }

    pub(crate) fn binds(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    fn ask(&self, verb: &str, body: Value) -> Result<Value, String> {
        let (answer, answered) = mpsc::sync_channel(1);
        let gone = || "the extender's thread is gone".to_owned();
        self.calls.send(Call { verb: verb.to_owned(), body, answer }).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    fn args(&self, pod: &PodInfo, nodes: &[NodeRef<'_>]) -> Value {
        if self.config.node_cache_capable {
            let names: Vec<&str> = nodes.iter().map(|node| &**node.name()).collect();
            json!({ "Pod": *pod.object, "Nodes": null, "NodeNames": names })
        } else {
            let items: Vec<_> = nodes.iter().map(|node| &**node.object()).collect();
            json!({ "Pod": *pod.object, "Nodes": { "metadata": {}, "items": items }, "NodeNames": null })
        }
    }

    /// Which of the nodes can do.
    pub(crate) fn filter(&self, pod: &PodInfo, cluster: &Cluster, nodes: &[NodeIdx]) -> Result<Filtered, String> {
        let all: Vec<NodeRef<'_>> = nodes.iter().filter_map(|at| cluster.nodes().get(*at)).collect();
        if self.config.filter_verb.is_empty() {
            return Ok(Filtered { nodes: nodes.to_vec(), turned_down: Vec::new() });
        }
        let answer = self.ask(&self.config.filter_verb, self.args(pod, &all))?;
        if let Some(error) = field(&answer, "Error").and_then(Value::as_str).filter(|error| !error.is_empty()) {
            return Err(error.to_owned());
        }
        let names: Vec<&str> = match field(&answer, "NodeNames").and_then(Value::as_array) {
            Some(names) => names.iter().filter_map(Value::as_str).collect(),
            None => {
                let items = field(&answer, "Nodes").and_then(|list| field(list, "items")).and_then(Value::as_array);
                items.into_iter().flatten().filter_map(|node| node["metadata"]["name"].as_str()).collect()
            }
        };
        let mut filtered = Filtered::default();
        for name in names {
            let known = all.iter().find(|node| &**node.name() == name);
            let unknown = || {
                format!(
                    "extender {:?} claims a filtered node {name:?} which is not found in the input node list",
                    self.config.url_prefix
                )
            };
            filtered.nodes.push(known.ok_or_else(unknown)?.idx());
        }
        let why = |map: &str, name: &str| Some(field(&answer, map)?.get(name)?.as_str().unwrap_or_default().to_owned());
        for node in all.iter().filter(|node| !filtered.nodes.contains(&node.idx())) {
            let status = match why("FailedAndUnresolvableNodes", node.name()) {
                Some(why) => FilterStatus::unresolvable(why),
                None => FilterStatus::unschedulable(why("FailedNodes", node.name()).unwrap_or_default()),
            };
            filtered.turned_down.push((node.idx(), status));
        }
        Ok(filtered)
    }

    /// Adds what it thinks of the nodes to `scores`.
    pub(crate) fn prioritize(&self, pod: &PodInfo, cluster: &Cluster, nodes: &[NodeIdx], scores: &mut [i64]) {
        if self.config.prioritize_verb.is_empty() {
            return;
        }
        let all: Vec<NodeRef<'_>> = nodes.iter().filter_map(|at| cluster.nodes().get(*at)).collect();
        let answer = match self.ask(&self.config.prioritize_verb, self.args(pod, &all)) {
            Ok(answer) => answer,
            // Its opinion is not vital.
            Err(error) => return tracing::warn!(pod = %pod.key, error, "an extender gave no scores"),
        };
        let entry = |own: &Value| Some((field(own, "Host")?.as_str()?.to_owned(), field(own, "Score")?.as_i64()?));
        let given: HashMap<String, i64> = answer.as_array().into_iter().flatten().filter_map(entry).collect();
        for (at, score) in nodes.iter().zip(scores) {
            let name = cluster.nodes().get(*at).map(NodeRef::name);
            let own = name.and_then(|name| given.get(&**name)).copied().unwrap_or(0);
            *score += own * self.config.weight * (MAX_NODE_SCORE / BEST);
        }
    }

    /// Which of the rooms can be made, as far as it knows.
    pub(crate) fn preempt(&self, pod: &PodInfo, rooms: Vec<Room>) -> Result<Vec<Room>, String> {
        if self.config.preempt_verb.is_empty() || !self.is_interested(pod) {
            return Ok(rooms);
        }
        let victims = |whole: bool| -> serde_json::Map<String, Value> {
            let each = rooms.iter().map(|(node, victims, violations)| {
                let pods: Vec<Value> = victims
                    .iter()
                    .map(|victim| if whole { json!(*victim.object) } else { json!({ "UID": victim.uid.as_str() }) })
                    .collect();
                (node.to_string(), json!({ "Pods": pods, "NumPDBViolations": violations }))
            });
            each.collect()
        };
        let body = if self.config.node_cache_capable {
            json!({ "Pod": *pod.object, "NodeNameToVictims": null, "NodeNameToMetaVictims": victims(false) })
        } else {
            json!({ "Pod": *pod.object, "NodeNameToVictims": victims(true), "NodeNameToMetaVictims": null })
        };
        let answer = match self.ask(&self.config.preempt_verb, body) {
            Ok(answer) => answer,
            Err(_) if self.config.ignorable => return Ok(rooms),
            Err(error) => return Err(error),
        };
        let left = field(&answer, "NodeNameToMetaVictims");
        let of_node = |(node, victims, _): Room| {
            let own = left?.get(&*node)?;
            let pods = field(own, "Pods").and_then(Value::as_array);
            let uids: Vec<&str> = pods.into_iter().flatten().filter_map(|pod| field(pod, "UID")?.as_str()).collect();
            let victims = victims.into_iter().filter(|victim| uids.contains(&victim.uid.as_str())).collect();
            let violations = field(own, "NumPDBViolations").and_then(Value::as_u64).unwrap_or(0);
            Some((node, victims, usize::try_from(violations).unwrap_or_default()))
        };
        Ok(rooms.into_iter().filter_map(of_node).collect())
    }

    /// Binds the pod.
    pub(crate) async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let body = json!({
            "PodName": pod.name(), "PodNamespace": pod.namespace(), "PodUID": pod.uid.as_str(), "Node": node,
        });
        let own = self.clone();
        let asked = tokio::task::spawn_blocking(move || own.ask(&own.config.bind_verb, body)).await;
        let answer = asked.map_err(|err| err.to_string())??;
        match field(&answer, "Error").and_then(Value::as_str) {
            None | Some("") => Ok(()),
            Some(error) => Err(error.to_owned()),
        }
    }
}

/// A field by its name in any case, as upstream's own reading has it.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let found = value.as_object()?.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value).filter(|value| !value.is_null())
}

fn serve(config: &ExtenderConfig, calls: &mpsc::Receiver<Call>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "an extender cannot be asked"),
    };
    runtime.block_on(async {
        let client = from_kubeconfig_text(&kubeconfig(config), &ClientOptions::unlimited("kube-scheduler")).await;
        while let Ok(call) = calls.recv() {
            let answer = match &client {
                Ok(client) => {
                    let asked = tokio::time::timeout(config.timeout, post(client, config, &call)).await;
                    asked.unwrap_or_else(|_| Err(format!("Post {:?}: context deadline exceeded", call.verb)))
                }
                Err(error) => Err(error.to_string()),
            };
            // Nobody waits for the answer any more: the scheduler ends.
            drop(call.answer.send(answer));
        }
    });
}

async fn post(client: &kube::Client, config: &ExtenderConfig, call: &Call) -> Result<Value, String> {
    let path = path_of(&config.url_prefix);
    let request = http::Request::post(format!("{path}/{}", call.verb))
        .header("Content-Type", "application/json")
        .body(call.body.to_string().into_bytes())
        .map_err(|err| err.to_string())?;
    client.request(request).await.map_err(|err| err.to_string())
}

/// The path after scheme and host.
fn path_of(url: &str) -> &str {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    after_scheme.find('/').map_or("", |at| after_scheme[at..].trim_end_matches('/'))
}

/// The extender as a server that the client library knows how to reach.
fn kubeconfig(config: &ExtenderConfig) -> String {
    let path = path_of(&config.url_prefix);
    let server = config.url_prefix.trim_end_matches('/').strip_suffix(path).unwrap_or(&config.url_prefix);
    let mut cluster = json!({ "server": server });
    let mut user = json!({});
    if let Some(tls) = &config.tls {
        cluster["insecure-skip-tls-verify"] = json!(tls.insecure);
        if let Some(name) = &tls.server_name {
            cluster["tls-server-name"] = json!(name);
        }
        if let Some(ca) = &tls.ca {
            cluster["certificate-authority"] = json!(ca);
        }
        if let Some((certificate, key)) = &tls.certificate {
            user = json!({ "client-certificate": certificate, "client-key": key });
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": cluster }],
        "users": [{ "name": "x", "user": user }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_server_and_a_path() {
        for (url, want) in [
            ("http://127.0.0.1:8888", ""),
            ("http://127.0.0.1:8888/", ""),
            ("https://host/a/b/", "/a/b"),
            ("host:80/x", "/x"),
        ] {
            assert_eq!(path_of(url), want, "{url}");
        }
    }

    #[test]
    fn fields_are_read_in_any_case() {
        let answer = json!({ "nodenames": ["a"], "Error": null });
        assert_eq!(field(&answer, "NodeNames"), Some(&json!(["a"])));
        assert_eq!(field(&answer, "Error"), None);
    }
}
