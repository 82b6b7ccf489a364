//! Nobody grants what they do not have: writes of roles and bindings are refused unless their author has every right in
//! them, or the right to `escalate` roles or to `bind` that role.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::rbac::Rbac;
use super::rule::Rule;
use super::{Authorizer, decide};
use crate::admission::{Operation, Plugin, Request};
use crate::attributes::{Attributes, RequestInfo, UserInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) struct NoEscalation {
    pub rbac: Arc<Rbac>,
    pub authorizers: Vec<Arc<dyn Authorizer>>,
}

impl NoEscalation {
    async fn may(&self, request: &Request, verb: &str, resource: &str, name: &str) -> bool {
        let asked = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            gvr: Gvr::new(GROUP, "*", resource),
            namespace: request.namespace.clone(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        let asked = Attributes { user: Arc::clone(&request.user), request: Arc::new(asked) };
        decide(&self.authorizers, &asked).await.is_ok()
    }

    fn confirm(&self, request: &Request, rules: &[Rule]) -> Result<(), Status> {
        let missing = self.rbac.missing(&request.user, &request.namespace, rules);
        if missing.is_empty() { Ok(()) } else { Err(request.forbidden(attempt(&request.user, &missing))) }
    }

    async fn check_role(&self, request: &Request) -> Result<(), Status> {
        if self.may(request, "escalate", &request.gvr.resource, &request.name).await {
            return Ok(());
        }
        let rules: Vec<Rule> = request.object["rules"].items().iter().map(Rule::parse).collect();
        self.confirm(request, &rules)?;
        // An aggregated role can come to hold anything.
        let aggregates = |role: &Value| !role["aggregationRule"].is_null();
        if (aggregates(&request.object) || aggregates(&request.old_object))
            && !self.rbac.missing(&request.user, &request.namespace, &everything()).is_empty()
        {
            return Err(request.forbidden("must have cluster-admin privileges to use the aggregationRule"));
        }
        Ok(())
    }

    async fn check_binding(&self, request: &Request) -> Result<(), Status> {
        let role = &request.object["roleRef"];
        let name = role.str_at(&["name"]);
        let (resource, shown) =
            if role.str_at(&["kind"]) == "ClusterRole" { ("clusterroles", "clusterrole") } else { ("roles", "role") };
        if self.may(request, "bind", resource, name).await {
            return Ok(());
        }
        let rules = self.rbac.rules_of(role, &request.namespace);
        let rules = rules.map_err(|_| Status::not_found(&Gvr::new(GROUP, "v1", shown), name))?;
        self.confirm(request, &rules)
    }
}

#[async_trait]
impl Plugin for NoEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, request: &Request) -> bool {
        request.gvr.group == GROUP && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        if request.user.is_in("system:masters") || changes_only_who_deletes(&request.object, &request.old_object) {
            return Ok(());
        }
        match request.gvr.resource.as_str() {
            "roles" | "clusterroles" => self.check_role(request).await,
            _ => self.check_binding(request).await,
        }
    }
}

/// The garbage collector needs no rights to orphan an object or to let it go.
fn changes_only_who_deletes(new: &Value, old: &Value) -> bool {
    let rest_of = |object: &Value| {
        let mut rest = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields"] {
            rest.remove(&["metadata", field]);
        }
        rest
    };
    !old.is_null() && rest_of(new) == rest_of(old)
}

fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// Upstream's words for a refusal, with the rights that lack.
fn attempt(user: &UserInfo, missing: &[Rule]) -> String {
    let lines: Vec<String> = described(missing).into_iter().collect();
    let (name, groups) = (&user.name, quoted(&user.groups));
    format!(
        "user {name:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{}",
        lines.join("\n")
    )
}

/// Rules that differ only in their verbs on one line each, sorted.
fn described(rules: &[Rule]) -> BTreeSet<String> {
    let mut by_what: BTreeMap<[&[String]; 4], Vec<String>> = BTreeMap::new();
    for rule in rules {
        let what =
            [&rule.api_groups, &rule.resources, &rule.non_resource_urls, &rule.resource_names].map(Vec::as_slice);
        by_what.entry(what).or_default().extend(rule.verbs.iter().cloned());
    }
    let line = |(what, verbs): ([&[String]; 4], Vec<String>)| {
        let [groups, resources, urls, names] = what;
        let parts = [
            ("APIGroups", groups),
            ("Resources", resources),
            ("NonResourceURLs", urls),
            ("ResourceNames", names),
            ("Verbs", &verbs),
        ];
        let shown = parts.into_iter().filter(|(_, list)| !list.is_empty());
        let shown: Vec<String> = shown.map(|(key, list)| format!("{key}:{}", quoted(list))).collect();
        format!("{{{}}}", shown.join(", "))
    };
    by_what.into_iter().map(line).collect()
}

fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use apimachinery::meta::Gvk;

    use super::*;
    use crate::lister::fixture::MapLister;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    async fn refusal(resource: &str, object: &str, old: &str) -> String {
        let lister = MapLister::default();
        for (name, verbs) in [("view", r#""get""#), ("edit", r#""get","delete""#)] {
            let role = format!(
                r#"{{"metadata":{{"name":"{name}"}},"rules":[{{"verbs":[{verbs}],"apiGroups":[""],"resources":["pods"]}}]}}"#
            );
            lister.put("clusterroles.rbac.authorization.k8s.io", json(&role));
        }
        lister.put(
            "clusterrolebindings.rbac.authorization.k8s.io",
            json(r#"{"metadata":{"name":"v"},"roleRef":{"kind":"ClusterRole","name":"view"},"subjects":[{"kind":"User","name":"bob"}]}"#),
        );
        let rbac = Arc::new(Rbac::new(Arc::new(lister)));
        let plugin = NoEscalation { rbac: Arc::clone(&rbac), authorizers: vec![rbac] };
        let user = UserInfo { name: "bob".into(), groups: vec!["ops".into(), "x".into()], ..UserInfo::default() };
        let object = json(object);
        let mut request = Request {
            operation: if old == "null" { Operation::Create } else { Operation::Update },
            gvr: Gvr::new(GROUP, "v1", resource),
            gvk: Gvk::new(GROUP, "v1", "Any"),
            subresource: String::new(),
            namespace: String::new(),
            name: object.name().to_owned(),
            user: Arc::new(user),
            dry_run: false,
            options: Value::Null,
            object,
            old_object: json(old),
            warnings: Vec::new(),
            audit_annotations: BTreeMap::new(),
            reinvoke: false,
            again: false,
            asked: Vec::new(),
        };
        assert!(plugin.handles(&request));
        plugin.validate(&mut request).await.err().map_or_else(|| "allowed".to_owned(), |status| status.message)
    }

    #[tokio::test]
    async fn a_role_may_hold_only_what_its_author_has() {
        let role = |verbs: &str| {
            format!(
                r#"{{"metadata":{{"name":"r"}},"rules":[{{"verbs":[{verbs}],"apiGroups":[""],"resources":["pods"]}}]}}"#
            )
        };
        assert_eq!(refusal("roles", &role(r#""get""#), "null").await, "allowed");
        assert_eq!(
            refusal("roles", &role(r#""get","list","watch""#), "null").await,
            "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"bob\" (groups=[\"ops\" \"x\"]) is attempting to grant \
             RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}"
        );
        let unowned = role(r#""list""#).replace(r#""name":"r""#, r#""name":"r","finalizers":["x"]"#);
        assert_eq!(refusal("roles", &role(r#""list""#), &unowned).await, "allowed");
    }

    #[tokio::test]
    async fn an_aggregated_role_needs_all_rights() {
        assert_eq!(
            refusal("clusterroles", r#"{"metadata":{"name":"r"},"aggregationRule":{}}"#, "null").await,
            "clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
    }

    #[tokio::test]
    async fn a_role_may_be_bound_only_by_who_has_it() {
        let binding = |role: &str| {
            format!(r#"{{"metadata":{{"name":"b"}},"roleRef":{{"kind":"ClusterRole","name":"{role}"}},"subjects":[]}}"#)
        };
        assert_eq!(refusal("clusterrolebindings", &binding("view"), "null").await, "allowed");
        let refused = refusal("clusterrolebindings", &binding("edit"), "null").await;
        assert!(refused.ends_with("{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"), "{refused}");
        assert_eq!(
            refusal("clusterrolebindings", &binding("none"), "null").await,
            "clusterrole.rbac.authorization.k8s.io \"none\" not found"
        );
    }
}
