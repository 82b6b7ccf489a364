//! The ways to be somebody else, and what each demands. Pure: questions out, nobody asked.
//!
//! The constrained modes (KEP-5284) each cover one sort of user and ask twice: for the right to do this request in the mode
//! (`impersonate-on:MODE:VERB`), and for the right to be that user (`impersonate:MODE`). The old mode asks for `impersonate`
//! alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::meta::Gvr;
use apimachinery::status::Status;

use super::{Attributes, RequestInfo, UserInfo};
use crate::authz::forbidden;

/// From so many values on, one question for all of them comes first.
const MANY: usize = 4;
const NODE_PREFIX: &str = "system:node:";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The node that the requestor, a pod, runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Everybody who is neither a node nor a service account.
    UserInfo,
    Legacy,
}

/// All modes, in the order in which they are tried.
pub(super) const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

/// What must go well, in order.
#[derive(Debug)]
pub(super) enum Check {
    /// The authorizers must allow the question about everything, or else each of the others.
    Ask { all_at_once: Option<Attributes>, each: Vec<Attributes> },
    /// 403: no constrained mode allows this to anybody.
    Never(Status),
}

#[derive(Debug)]
pub(super) struct Plan {
    pub checks: Vec<Check>,
    /// Who the request goes on as.
    pub user: UserInfo,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "legacy",
        }
    }

    fn verb(self) -> String {
        match self {
            Mode::Legacy => "impersonate".to_owned(),
            constrained => format!("impersonate:{}", constrained.name()),
        }
    }

    fn covers(self, requestor: &UserInfo, wanted: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_of(&wanted.name);
        match self {
            Mode::AssociatedNode => {
                let own = requestor.extra.get(NODE_NAME).map(Vec::as_slice);
                let is_pod = service_account_of(&requestor.name).is_some();
                only_name && is_pod && matches!((node, own), (Some(node), Some([own])) if node == own)
            }
            Mode::ArbitraryNode => only_name && node.is_some(),
            Mode::ServiceAccount => only_name && service_account_of(&wanted.name).is_some(),
            Mode::UserInfo => node.is_none() && service_account_of(&wanted.name).is_none(),
            Mode::Legacy => true,
        }
    }
}

fn node_of(user: &str) -> Option<&str> {
    let name = user.strip_prefix(NODE_PREFIX)?;
    api::strategy::dns_subdomain(name, false).is_empty().then_some(name)
}

/// Namespace and name of a service account.
fn service_account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let good =
        api::strategy::dns_label(namespace, false).is_empty() && api::strategy::dns_subdomain(name, false).is_empty();
    good.then_some((namespace, name))
}

/// What the requestor must be allowed to in a mode; `None`: the mode is not for such a user.
pub(super) fn plan(
    mode: Mode,
    requestor: &Arc<UserInfo>,
    wanted: &UserInfo,
    request: &Arc<RequestInfo>,
) -> Option<Plan> {
    mode.covers(requestor, wanted).then(|| Asking::new(mode, requestor).plan(wanted, request))
}

/// Questions of one requestor in one mode.
struct Asking {
    mode: Mode,
    requestor: Arc<UserInfo>,
}

impl Asking {
    fn new(mode: Mode, requestor: &Arc<UserInfo>) -> Self {
        let mut requestor = Arc::clone(requestor);
        if mode == Mode::AssociatedNode {
            // Which node it is has been checked; the rules are about any.
            let keys: Vec<String> = requestor.extra.keys().cloned().collect();
            let extra = BTreeMap::from([("authentication.kubernetes.io/associated-node-keys".to_owned(), keys)]);
            requestor = Arc::new(UserInfo { extra, ..UserInfo::clone(&requestor) });
        }
        Asking { mode, requestor }
    }

    fn is_constrained(&self) -> bool {
        self.mode != Mode::Legacy
    }

    fn plan(&self, wanted: &UserInfo, request: &RequestInfo) -> Plan {
        let mut user = wanted.clone();
        let mut checks = Vec::new();
        if self.is_constrained() {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), request.verb);
            checks.push(self.one(RequestInfo { verb, ..request.clone() }));
        }
        checks.push(self.one(self.name_question(wanted, &mut user)));
        if !wanted.uid.is_empty() {
            checks.push(self.one(self.question(Gvr::new("authentication.k8s.io", "v1", "uids"), &wanted.uid)));
        }
        checks.extend(self.groups(&wanted.groups));
        checks.extend(self.extra(&wanted.extra));
        let group = match user.name.as_str() {
            "system:anonymous" => Some("system:unauthenticated"),
            _ if user.is_in("system:unauthenticated") => None,
            _ => Some("system:authenticated"),
        };
        if let Some(group) = group.filter(|group| !user.is_in(group)) {
            user.groups.push(group.to_owned());
        }
        Plan { checks, user }
    }

    /// May they be the user of that name? Nodes and service accounts are always in the same groups.
    fn name_question(&self, wanted: &UserInfo, user: &mut UserInfo) -> RequestInfo {
        if self.is_constrained()
            && let Some(node) = node_of(&wanted.name)
        {
            user.groups = vec!["system:nodes".to_owned()];
            let name = if self.mode == Mode::AssociatedNode { "*" } else { node };
            return self.question(self.of_users("nodes"), name);
        }
        if let Some((namespace, name)) = service_account_of(&wanted.name) {
            if wanted.groups.is_empty() {
                user.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
            let question = self.question(self.of_users("serviceaccounts"), name);
            return RequestInfo { namespace: namespace.to_owned(), ..question };
        }
        self.question(self.of_users("users"), &wanted.name)
    }

    fn groups(&self, groups: &[String]) -> Option<Check> {
        if groups.is_empty() {
            return None;
        }
        let resource = self.of_users("groups");
        if self.is_constrained() {
            for (group, why) in [
                ("", "impersonating the empty string group is not allowed"),
                ("system:masters", "impersonating the system:masters group is not allowed"),
            ] {
                if groups.iter().any(|g| g == group) {
                    return Some(Check::Never(forbidden(&self.requestor, &self.question(resource, group), why)));
                }
            }
        }
        let ask = |group: &str| self.attributes(self.question(resource.clone(), group));
        let all_at_once = (self.is_constrained() && groups.len() >= MANY).then(|| ask("*"));
        Some(Check::Ask { all_at_once, each: groups.iter().map(|g| ask(g)).collect() })
    }

    fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Option<Check> {
        if extra.is_empty() {
            return None;
        }
        let resource = Gvr::new("authentication.k8s.io", "v1", "userextras");
        if self.is_constrained()
            && let Some(why) = wrong_extra(extra)
        {
            return Some(Check::Never(forbidden(&self.requestor, &self.question(resource, ""), &why)));
        }
        let ask = |key: &str, value: &str| {
            let question = self.question(resource.clone(), value);
            self.attributes(RequestInfo { subresource: key.to_owned(), ..question })
        };
        let many = extra.len() >= MANY || extra.values().map(Vec::len).sum::<usize>() >= MANY;
        let each = extra.iter().flat_map(|(key, values)| values.iter().map(|value| ask(key, value))).collect();
        Some(Check::Ask { all_at_once: (self.is_constrained() && many).then(|| ask("*", "*")), each })
    }

    /// Users, groups and service accounts: their group was the core one once.
    fn of_users(&self, resource: &str) -> Gvr {
        Gvr::new(if self.is_constrained() { "authentication.k8s.io" } else { "" }, "v1", resource)
    }

    fn question(&self, gvr: Gvr, name: &str) -> RequestInfo {
        RequestInfo { is_resource: true, verb: self.mode.verb(), gvr, name: name.to_owned(), ..RequestInfo::default() }
    }

    fn attributes(&self, request: RequestInfo) -> Attributes {
        Attributes { user: Arc::clone(&self.requestor), request: Arc::new(request) }
    }

    fn one(&self, request: RequestInfo) -> Check {
        Check::Ask { all_at_once: None, each: vec![self.attributes(request)] }
    }
}

/// What constrained modes have against extra values.
fn wrong_extra(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    extra.iter().find_map(|(key, values)| {
        let is_prefixed = matches!(key.split_once('/'), Some((domain, path))
            if !path.is_empty() && api::strategy::dns_subdomain(domain, false).is_empty());
        let why = if key.is_empty() {
            "impersonating the empty string key in extra is not allowed".to_owned()
        } else if !is_prefixed {
            format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {key:?}: must be a \
                 domain-prefixed path (such as \"acme.io/foo\")"
            )
        } else if *key != key.to_lowercase() {
            format!("impersonating a non-lowercase key in extra is not allowed: {key:?}")
        } else if values.iter().any(String::is_empty) {
            "impersonating the empty string value in extra is not allowed".to_owned()
        } else {
            return None;
        };
        Some(why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserInfo {
        UserInfo { name: name.into(), ..UserInfo::default() }
    }

    fn shown(question: &Attributes) -> String {
        let r = &question.request;
        let resource = [r.gvr.resource.as_str(), &r.subresource].join("/");
        format!("{} {resource} in {:?} {:?} {:?}", r.verb, r.gvr.group.as_str(), r.namespace, r.name)
    }

    fn lines(check: &Check) -> Vec<String> {
        match check {
            Check::Ask { all_at_once, each } => {
                all_at_once.iter().map(|q| format!("all: {}", shown(q))).chain(each.iter().map(shown)).collect()
            }
            Check::Never(status) => vec![format!("never: {}", status.message)],
        }
    }

    #[track_caller]
    fn check(mode: Mode, wanted: &UserInfo, want: &[&str]) -> Vec<String> {
        let requestor = Arc::new(UserInfo {
            extra: BTreeMap::from([(NODE_NAME.to_owned(), vec!["n1".to_owned()])]),
            ..user("system:serviceaccount:kube-system:agent")
        });
        let request = Arc::new(RequestInfo {
            is_resource: true,
            verb: "list".into(),
            gvr: Gvr::new("", "v1", "pods"),
            ..RequestInfo::default()
        });
        match plan(mode, &requestor, wanted, &request) {
            None => assert_eq!(["not covered"], want),
            Some(plan) => {
                let questions: Vec<String> = plan.checks.iter().flat_map(lines).collect();
                assert_eq!(questions, want);
                return plan.user.groups;
            }
        }
        Vec::new()
    }

    #[test]
    fn a_pod_may_ask_to_be_its_own_node() {
        let groups = check(
            Mode::AssociatedNode,
            &user("system:node:n1"),
            &[
                r#"impersonate-on:associated-node:list pods/ in "" "" """#,
                r#"impersonate:associated-node nodes/ in "authentication.k8s.io" "" "*""#,
            ],
        );
        assert_eq!(groups, ["system:nodes", "system:authenticated"]);
        check(Mode::AssociatedNode, &user("system:node:n2"), &["not covered"]);
        check(
            Mode::ArbitraryNode,
            &user("system:node:n2"),
            &[
                r#"impersonate-on:arbitrary-node:list pods/ in "" "" """#,
                r#"impersonate:arbitrary-node nodes/ in "authentication.k8s.io" "" "n2""#,
            ],
        );
        check(Mode::UserInfo, &user("system:node:n2"), &["not covered"]);
    }

    #[test]
    fn service_accounts_are_in_their_groups() {
        let bot = user("system:serviceaccount:dev:bot");
        let groups = check(Mode::Legacy, &bot, &[r#"impersonate serviceaccounts/ in "" "dev" "bot""#]);
        assert_eq!(groups, ["system:serviceaccounts", "system:serviceaccounts:dev", "system:authenticated"]);
        check(
            Mode::ServiceAccount,
            &bot,
            &[
                r#"impersonate-on:serviceaccount:list pods/ in "" "" """#,
                r#"impersonate:serviceaccount serviceaccounts/ in "authentication.k8s.io" "dev" "bot""#,
            ],
        );
        check(Mode::ServiceAccount, &UserInfo { uid: "1".into(), ..bot }, &["not covered"]);
    }

    #[test]
    fn every_part_of_a_user_is_asked_for() {
        let zoe = UserInfo {
            uid: "42".into(),
            groups: ["a", "b", "c", "d"].map(str::to_owned).into(),
            extra: BTreeMap::from([("example.com/why".to_owned(), vec!["test".to_owned()])]),
            ..user("zoe")
        };
        check(
            Mode::UserInfo,
            &zoe,
            &[
                r#"impersonate-on:user-info:list pods/ in "" "" """#,
                r#"impersonate:user-info users/ in "authentication.k8s.io" "" "zoe""#,
                r#"impersonate:user-info uids/ in "authentication.k8s.io" "" "42""#,
                r#"all: impersonate:user-info groups/ in "authentication.k8s.io" "" "*""#,
                r#"impersonate:user-info groups/ in "authentication.k8s.io" "" "a""#,
                r#"impersonate:user-info groups/ in "authentication.k8s.io" "" "b""#,
                r#"impersonate:user-info groups/ in "authentication.k8s.io" "" "c""#,
                r#"impersonate:user-info groups/ in "authentication.k8s.io" "" "d""#,
                r#"impersonate:user-info userextras/example.com/why in "authentication.k8s.io" "" "test""#,
            ],
        );
        let masters = UserInfo { groups: vec!["system:masters".into()], ..user("zoe") };
        check(
            Mode::UserInfo,
            &masters,
            &[
                r#"impersonate-on:user-info:list pods/ in "" "" """#,
                r#"impersonate:user-info users/ in "authentication.k8s.io" "" "zoe""#,
                "never: groups.authentication.k8s.io \"system:masters\" is forbidden: User \"system:serviceaccount:kube-system:agent\" cannot impersonate:user-info resource \"groups\" in API group \"authentication.k8s.io\" at the cluster scope: impersonating the system:masters group is not allowed",
            ],
        );
        check(
            Mode::Legacy,
            &masters,
            &[r#"impersonate users/ in "" "" "zoe""#, r#"impersonate groups/ in "" "" "system:masters""#],
        );
    }

    #[test]
    fn the_anonymous_user_is_not_authenticated() {
        let groups =
            check(Mode::Legacy, &user("system:anonymous"), &[r#"impersonate users/ in "" "" "system:anonymous""#]);
        assert_eq!(groups, ["system:unauthenticated"]);
    }
}
