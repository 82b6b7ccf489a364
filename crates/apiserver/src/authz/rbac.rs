//! RBAC: roles and bindings, compiled into an index by subject that is made again only when one of them has changed.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use async_trait::async_trait;
use parking_lot::RwLock;

use super::rule::Rule;
use super::{Authorizer, Decision, Verdict};
use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::lister::Lister;

const ROLES: &str = "roles.rbac.authorization.k8s.io";
const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";

pub struct Rbac {
    lister: Arc<dyn Lister>,
    index: RwLock<Option<(Generations, Arc<Index>)>>,
}

type Generations = [u64; 4];

/// What a binding gives to one subject.
struct Grant {
    /// `None`: in the whole cluster.
    namespace: Option<String>,
    /// `Err`: the role does not exist (yet), and the binding grants nothing.
    rules: Result<Arc<[Rule]>, String>,
    /// The words of the decision's reason.
    why: String,
}

impl Grant {
    fn rules(&self) -> &[Rule] {
        self.rules.as_deref().unwrap_or_default()
    }

    fn holds_in(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|ns| !namespace.is_empty() && ns == namespace)
    }
}

#[derive(Default)]
struct Index {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Rbac {
    #[must_use]
    pub fn new(lister: Arc<dyn Lister>) -> Self {
        Rbac { lister, index: RwLock::new(None) }
    }

    fn index(&self) -> Arc<Index> {
        let now = [ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS].map(|r| self.lister.generation(r));
        if let Some((then, index)) = &*self.index.read()
            && *then == now
        {
            return Arc::clone(index);
        }
        let index = Arc::new(Index::build(&*self.lister));
        *self.index.write() = Some((now, Arc::clone(&index)));
        index
    }

    /// Every rule that holds for a user in a namespace (the empty one: in the whole cluster).
    #[must_use]
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        let grants = index.grants(user).filter(|g| g.holds_in(namespace));
        grants.flat_map(|g| g.rules().iter().cloned()).collect()
    }

    /// What of `asked` the user does not have, for the refusal of an escalation.
    #[must_use]
    pub fn missing(&self, user: &UserInfo, namespace: &str, asked: &[Rule]) -> Vec<Rule> {
        let have = self.rules_for(user, namespace);
        asked.iter().flat_map(Rule::split).filter(|want| !have.iter().any(|h| h.covers(want))).collect()
    }

    /// The rules of a role that a binding refers to; `Err` names the role that does not exist.
    ///
    /// # Errors
    /// When there is no such role.
    pub fn rules_of(&self, role_ref: &Value, namespace: &str) -> Result<Arc<[Rule]>, String> {
        rules_of(&*self.lister, role_ref, namespace)
    }
}

fn rules_of(lister: &dyn Lister, role_ref: &Value, namespace: &str) -> Result<Arc<[Rule]>, String> {
    let name = role_ref.str_at(&["name"]);
    // Upstream's message has the resource in the singular.
    let (resource, namespace, shown) = match role_ref.str_at(&["kind"]) {
        "ClusterRole" => (CLUSTER_ROLES, "", "clusterrole.rbac.authorization.k8s.io"),
        _ => (ROLES, namespace, "role.rbac.authorization.k8s.io"),
    };
    let role = lister.get(resource, namespace, name).ok_or_else(|| format!("{shown} \"{name}\" not found"))?;
    Ok(role["rules"].items().iter().map(Rule::parse).collect())
}

impl Index {
    fn build(lister: &dyn Lister) -> Self {
        let mut index = Index::default();
        for binding in lister.list(CLUSTER_ROLE_BINDINGS, "") {
            index.add(lister, &binding, None);
        }
        for binding in lister.list(ROLE_BINDINGS, "") {
            index.add(lister, &binding, Some(binding.namespace().to_owned()));
        }
        index
    }

    fn add(&mut self, lister: &dyn Lister, binding: &Value, namespace: Option<String>) {
        let role = &binding["roleRef"];
        let rules = rules_of(lister, role, namespace.as_deref().unwrap_or_default());
        let (kind, name) = (role.str_at(&["kind"]), role.str_at(&["name"]));
        for subject in binding["subjects"].items() {
            let subject_name = subject.str_at(&["name"]);
            let (map, key, shown) = match subject.str_at(&["kind"]) {
                "Group" => (&mut self.groups, subject_name.to_owned(), format!("Group \"{subject_name}\"")),
                "ServiceAccount" => {
                    let given = subject.str_at(&["namespace"]);
                    let ns = if given.is_empty() { namespace.as_deref().unwrap_or_default() } else { given };
                    let key = format!("system:serviceaccount:{ns}:{subject_name}");
                    (&mut self.users, key, format!("ServiceAccount \"{subject_name}/{ns}\""))
                }
                _ => (&mut self.users, subject_name.to_owned(), format!("User \"{subject_name}\"")),
            };
            let why = match &namespace {
                None => format!(
                    "RBAC: allowed by ClusterRoleBinding \"{}\" of {kind} \"{name}\" to {shown}",
                    binding.name()
                ),
                Some(ns) => {
                    format!("RBAC: allowed by RoleBinding \"{}/{ns}\" of {kind} \"{name}\" to {shown}", binding.name())
                }
            };
            map.entry(key).or_default().push(Grant { namespace: namespace.clone(), rules: rules.clone(), why });
        }
    }

    fn grants<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Grant> {
        let of_groups = user.groups.iter().filter_map(|g| self.groups.get(g)).flatten();
        self.users.get(&user.name).into_iter().flatten().chain(of_groups)
    }

    fn decide(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        let namespace = if request.is_resource { request.namespace.as_str() } else { "" };
        let mut missing: Vec<&str> = Vec::new();
        for grant in self.grants(user).filter(|g| g.holds_in(namespace)) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|r| r.allows(request)) => {
                    return Verdict { decision: Decision::Allow, reason: grant.why.clone() };
                }
                Err(role) if !missing.contains(&role.as_str()) => missing.push(role),
                Ok(_) | Err(_) => {}
            }
        }
        let reason = match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        Verdict { decision: Decision::NoOpinion, reason }
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes) -> Verdict {
        self.index().decide(&attributes.user, &attributes.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;
    use apimachinery::meta::Gvr;

    fn lister() -> Arc<MapLister> {
        let lister = MapLister::default();
        let put = |resource: &str, text: &str| lister.put(resource, serde_json::from_str(text).unwrap());
        put(
            CLUSTER_ROLES,
            r#"{"metadata":{"name":"view"},"rules":[{"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}]}"#,
        );
        put(
            CLUSTER_ROLE_BINDINGS,
            r#"{"metadata":{"name":"ops-view"},"roleRef":{"kind":"ClusterRole","name":"view"},
            "subjects":[{"kind":"Group","name":"ops"}]}"#,
        );
        put(
            ROLE_BINDINGS,
            r#"{"metadata":{"name":"dev-view","namespace":"dev"},"roleRef":{"kind":"ClusterRole","name":"view"},
            "subjects":[{"kind":"User","name":"alice"},{"kind":"ServiceAccount","name":"bot"}]}"#,
        );
        Arc::new(lister)
    }

    async fn verdict(rbac: &Rbac, user: UserInfo, namespace: &str) -> Verdict {
        let request = RequestInfo {
            is_resource: true,
            verb: "list".into(),
            gvr: Gvr::new("", "v1", "pods"),
            namespace: namespace.into(),
            ..RequestInfo::default()
        };
        rbac.authorize(&Attributes { user: Arc::new(user), request: Arc::new(request) }).await
    }

    fn user(name: &str, group: &str) -> UserInfo {
        UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() }
    }

    #[tokio::test]
    async fn bindings_grant_where_they_stand() {
        let rbac = Rbac::new(lister());
        let ops = verdict(&rbac, user("bob", "ops"), "").await;
        assert_eq!(
            ops.reason,
            "RBAC: allowed by ClusterRoleBinding \"ops-view\" of ClusterRole \"view\" to Group \"ops\""
        );
        assert_eq!(verdict(&rbac, user("alice", ""), "dev").await.decision, Decision::Allow);
        assert_eq!(verdict(&rbac, user("alice", ""), "prod").await.decision, Decision::NoOpinion);
        assert_eq!(verdict(&rbac, user("alice", ""), "").await.decision, Decision::NoOpinion);
        assert_eq!(verdict(&rbac, user("system:serviceaccount:dev:bot", ""), "dev").await.decision, Decision::Allow);
    }

    #[tokio::test]
    async fn a_binding_to_a_missing_role_is_named() {
        let lister = lister();
        lister.put(
            ROLE_BINDINGS,
            serde_json::from_str(
                r#"{"metadata":{"name":"dangling","namespace":"dev"},"roleRef":{"kind":"Role","name":"none"},
                "subjects":[{"kind":"User","name":"carol"}]}"#,
            )
            .unwrap(),
        );
        let rbac = Rbac::new(lister);
        let verdict = verdict(&rbac, user("carol", ""), "dev").await;
        assert_eq!(verdict.decision, Decision::NoOpinion);
        assert_eq!(verdict.reason, "RBAC: role.rbac.authorization.k8s.io \"none\" not found");
    }

    #[tokio::test]
    async fn a_change_of_a_role_counts_at_once() {
        let lister = lister();
        let rbac = Rbac::new(Arc::clone(&lister) as Arc<dyn Lister>);
        assert_eq!(verdict(&rbac, user("bob", "ops"), "").await.decision, Decision::Allow);
        lister.put(CLUSTER_ROLES, serde_json::from_str(r#"{"metadata":{"name":"view"},"rules":[]}"#).unwrap());
        assert_eq!(verdict(&rbac, user("bob", "ops"), "").await.decision, Decision::NoOpinion);
    }

    #[test]
    fn what_a_user_lacks_is_found() {
        let rbac = Rbac::new(lister());
        let asked = Rule::parse(
            &serde_json::from_str(r#"{"verbs":["get","delete"],"apiGroups":[""],"resources":["pods"]}"#).unwrap(),
        );
        let missing = rbac.missing(&user("bob", "ops"), "", &[asked]);
        assert_eq!(missing.iter().map(|r| r.verbs[0].as_str()).collect::<Vec<_>>(), ["delete"]);
    }
}
