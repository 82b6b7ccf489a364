//! The authorizers that the configuration names, in order; they may be exchanged while the server runs.

use std::sync::Arc;

use async_trait::async_trait;
use component_base::metrics::prometheus_client;
use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Authorizer, Decision, Verdict};
use crate::attributes::{Attributes, UserInfo};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    r#type: String,
    name: String,
    decision: &'static str,
}

/// An authorizer with the kind and the name that metrics know it by.
pub(crate) struct Link {
    pub kind: &'static str,
    pub name: String,
    pub authorizer: Arc<dyn Authorizer>,
}

/// Asks its links in turn; the first that has an opinion decides.
#[derive(Default)]
pub(crate) struct Chain {
    links: RwLock<Arc<Vec<Link>>>,
    decisions: Family<DecisionLabels, Counter>,
}

impl Chain {
    pub(crate) fn set(&self, links: Vec<Link>) {
        *self.links.write() = Arc::new(links);
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "apiserver_authorization_decisions",
            "Terminal decisions of authorizers, by their type and name",
            self.decisions.clone(),
        );
    }

    /// Why not all rights of a user can be listed, if that is so.
    #[must_use]
    pub(crate) fn unlisted(&self, user: &UserInfo) -> Option<String> {
        let links = self.links.read();
        let reasons: Vec<&str> = links
            .iter()
            .filter_map(|link| match link.kind {
                "Webhook" => Some("webhook authorizer does not support user rule resolution"),
                "Node" if super::node::name_of(user).is_some() => {
                    Some("node authorizer does not support user rule resolution")
                }
                _ => None,
            })
            .collect();
        match reasons.as_slice() {
            [] => None,
            [one] => Some((*one).to_owned()),
            many => Some(format!("[{}]", many.join(", "))),
        }
    }

    fn count(&self, link: &Link, decision: &'static str) {
        let labels = DecisionLabels { r#type: link.kind.to_owned(), name: link.name.clone(), decision };
        self.decisions.get_or_create(&labels).inc();
    }
}

#[async_trait]
impl Authorizer for Chain {
    async fn authorize(&self, attributes: &Attributes) -> Verdict {
        let links = Arc::clone(&self.links.read());
        let (verdict, decided) =
            super::first_opinion(links.iter().map(|link| link.authorizer.as_ref()), attributes).await;
        if let Some(link) = decided.and_then(|nth| links.get(nth)) {
            self.count(link, if verdict.decision == Decision::Allow { "allowed" } else { "denied" });
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::super::modes::AlwaysDeny;
    use super::*;

    #[test]
    fn who_cannot_list_rights_says_so() {
        let chain = Chain::default();
        let link = |kind| Link { kind, name: String::new(), authorizer: Arc::new(AlwaysDeny) };
        let node = UserInfo {
            name: "system:node:n".to_owned(),
            groups: vec!["system:nodes".to_owned()],
            ..UserInfo::default()
        };
        chain.set(vec![link("Node"), link("RBAC")]);
        assert_eq!(chain.unlisted(&UserInfo::default()), None);
        let why = "node authorizer does not support user rule resolution";
        assert_eq!(chain.unlisted(&node).as_deref(), Some(why));
        chain.set(vec![link("Webhook"), link("Node")]);
        let both = format!("[webhook authorizer does not support user rule resolution, {why}]");
        assert_eq!(chain.unlisted(&node), Some(both));
    }
}
