//! What kinds the API server serves now, for the controllers that work on all of them.

use kube::{
    Client,
    core::{ApiResource, discovery::v2::APIGroupDiscoveryList},
};

/// A resource in the version that the server prefers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) is_namespaced: bool,
    pub(crate) verbs: Vec<String>,
    /// Whether it has a `scale` subresource.
    pub(crate) has_scale: bool,
}

impl Resource {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// `deployments.apps`, or `pods` for the core group.
    pub(crate) fn name(&self) -> String {
        if self.api.group.is_empty() {
            self.api.plural.clone()
        } else {
            format!("{}.{}", self.api.plural, self.api.group)
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Discovered {
    pub(crate) resources: Vec<Resource>,
    /// Group versions whose server does not answer: what is known of them may be old.
    pub(crate) stale: Vec<String>,
}

pub(crate) async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let mut found = Discovered::default();
    collect(client.list_core_api_versions_aggregated().await?, &mut found);
    collect(client.list_api_groups_aggregated().await?, &mut found);
    Ok(found)
}

/// Takes each resource from the first version that has it: versions come in order of preference.
fn collect(list: APIGroupDiscoveryList, found: &mut Discovered) {
    for group in list.items {
        let name = group.metadata.and_then(|meta| meta.name).unwrap_or_default();
        let first = found.resources.len();
        for version in group.versions {
            let version_name = version.version.unwrap_or_default();
            let api_version = if name.is_empty() { version_name.clone() } else { format!("{name}/{version_name}") };
            if version.freshness.as_deref() == Some("Stale") {
                found.stale.push(api_version.clone());
            }
            for resource in version.resources {
                let plural = resource.resource.unwrap_or_default();
                if found.resources[first..].iter().any(|known| known.api.plural == plural) {
                    continue;
                }
                // A kind may be of another group than the one that it is served in, as Scale is.
                let kind = resource.response_kind.and_then(|gvk| gvk.kind).unwrap_or_default();
                found.resources.push(Resource {
                    api: ApiResource {
                        group: name.clone(),
                        version: version_name.clone(),
                        api_version: api_version.clone(),
                        kind,
                        plural,
                    },
                    is_namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    has_scale: resource.subresources.iter().any(|sub| sub.subresource.as_deref() == Some("scale")),
                    verbs: resource.verbs,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_version_of_each_resource_counts() {
        let list = serde_json::from_value(serde_json::json!({
            "items": [{
                "metadata": { "name": "autoscaling" },
                "versions": [
                    { "version": "v2", "resources": [
                        { "resource": "hpas", "responseKind": { "kind": "HPA" }, "scope": "Namespaced", "verbs": ["get", "list"] },
                    ]},
                    { "version": "v1", "freshness": "Stale", "resources": [
                        { "resource": "hpas", "responseKind": { "kind": "HPA" }, "scope": "Namespaced", "verbs": ["get"] },
                        { "resource": "old", "responseKind": { "kind": "Old" }, "scope": "Cluster", "verbs": [],
                          "subresources": [{ "subresource": "scale", "verbs": [] }] },
                    ]},
                ],
            }],
        }))
        .unwrap();
        let mut found = Discovered::default();
        collect(list, &mut found);
        let names: Vec<_> = found.resources.iter().map(|r| format!("{} {}", r.name(), r.api.version)).collect();
        assert_eq!(names, ["hpas.autoscaling v2", "old.autoscaling v1"]);
        assert!(found.resources[0].can("list") && found.resources[0].is_namespaced && found.resources[1].has_scale);
        assert_eq!(found.stale, ["autoscaling/v1"]);
    }
}
