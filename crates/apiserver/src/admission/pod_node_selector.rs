//! PodNodeSelector: the pods of a namespace run on its nodes only.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";

type Labels = BTreeMap<String, String>;

pub(super) struct PodNodeSelector {
    pub lister: Arc<dyn Lister>,
    /// `podNodeSelectorPluginConfig`: `clusterDefaultNodeSelector`, and what each namespace may ask for.
    pub config: Labels,
}

pub(super) fn parse_config(config: &Value) -> Labels {
    let entries = config["podNodeSelectorPluginConfig"].entries().iter();
    entries.filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.to_owned()))).collect()
}

#[async_trait]
impl Plugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is_core("pods")
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let own = self.of_namespace(request)?;
        let given = selector_of(&request.object);
        if own.iter().any(|(k, v)| given.get(k).is_some_and(|other| other != v)) {
            return Err(request.forbidden("pod node label selector conflicts with its namespace node label selector"));
        }
        for (key, value) in own {
            request.object.set(&["spec", "nodeSelector", &key], value);
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let given = selector_of(&request.object);
        let own = self.of_namespace(request)?;
        if own.iter().any(|(k, v)| given.get(k).is_some_and(|other| other != v)) {
            return Err(request.forbidden("pod node label selector conflicts with its namespace node label selector"));
        }
        let allowed = self.config.get(&request.namespace).and_then(|text| parse(text)).unwrap_or_default();
        if !allowed.is_empty() && given.iter().any(|(k, v)| allowed.get(k) != Some(v)) {
            return Err(request.forbidden("pod node label selector labels conflict with its namespace whitelist"));
        }
        Ok(())
    }
}

impl PodNodeSelector {
    /// What the namespace says, or what holds for those that say nothing.
    fn of_namespace(&self, request: &Request) -> Result<Labels, Status> {
        let namespace = self.lister.get("namespaces", "", &request.namespace);
        let annotated = namespace.as_ref().and_then(|n| n.annotation(ANNOTATION));
        let text = annotated.or_else(|| self.config.get("clusterDefaultNodeSelector").map(String::as_str));
        parse(text.unwrap_or_default())
            .ok_or_else(|| Status::internal(format!("invalid selector: {:?}", text.unwrap_or_default())))
    }
}

fn selector_of(pod: &Value) -> Labels {
    let entries = pod.at(&["spec", "nodeSelector"]).entries().iter();
    entries.filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.to_owned()))).collect()
}

/// `a=b,c=d`.
fn parse(text: &str) -> Option<Labels> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))).collect()
}
