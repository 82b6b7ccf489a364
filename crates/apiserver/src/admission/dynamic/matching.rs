//! Which requests a policy or a webhook is for.

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::selector::LabelSelector;
use apimachinery::status::Status;

use crate::admission::{Operation, Request};
use crate::lister::Lister;

const GROUP: &str = "admissionregistration.k8s.io";
/// What configures admission is not admitted by it: nobody could repair a mistake.
const EXEMPT: &[&str] = &[
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];
/// Questions, which policies do not see.
const QUESTIONS: &[(&str, &str)] = &[
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// What configures admission itself.
pub(in crate::admission) fn is_exempt(request: &Request) -> bool {
    request.gvr.group == GROUP && EXEMPT.contains(&request.gvr.resource.as_str())
}

/// Asked, not stored.
pub(in crate::admission) fn is_question(request: &Request) -> bool {
    QUESTIONS.iter().any(|(group, resource)| request.gvr.group == *group && request.gvr.resource == *resource)
}

pub(in crate::admission) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// A `MatchResources`, or a webhook with its selectors and `rules`.
pub(in crate::admission) struct Matcher<'a> {
    pub rules: &'a Value,
    pub exclude: &'a Value,
    pub namespace_selector: &'a Value,
    pub object_selector: &'a Value,
    /// `Equivalent`: a rule for one version of a resource is for all of them.
    pub equivalent: bool,
}

impl<'a> Matcher<'a> {
    pub(in crate::admission) fn of_policy(resources: &'a Value) -> Self {
        Matcher {
            rules: &resources["resourceRules"],
            exclude: &resources["excludeResourceRules"],
            namespace_selector: &resources["namespaceSelector"],
            object_selector: &resources["objectSelector"],
            equivalent: resources.str_at(&["matchPolicy"]) != "Exact",
        }
    }

    pub(in crate::admission) fn of_webhook(webhook: &'a Value) -> Self {
        Matcher {
            rules: &webhook["rules"],
            exclude: &Value::Null,
            namespace_selector: &webhook["namespaceSelector"],
            object_selector: &webhook["objectSelector"],
            equivalent: webhook.str_at(&["matchPolicy"]) != "Exact",
        }
    }

    /// `rules_optional`: no rules at all mean everything, as for bindings.
    ///
    /// # Errors
    /// When the namespace of the request is not known, or a selector is not valid.
    pub(in crate::admission) fn matches(
        &self,
        request: &Request,
        lister: &dyn Lister,
        rules_optional: bool,
    ) -> Result<bool, Status> {
        let named = |rules: &Value| rules.items().iter().any(|rule| rule_matches(rule, request, self.equivalent));
        let is_meant = (rules_optional && self.rules.items().is_empty()) || named(self.rules);
        if !is_meant || named(self.exclude) {
            return Ok(false);
        }
        Ok(namespace_matches(self.namespace_selector, request, lister)?
            && object_matches(self.object_selector, request)?)
    }
}

fn selector(value: &Value) -> Result<Option<LabelSelector>, Status> {
    let parsed = LabelSelector::from_value(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(parsed.filter(|s| !s.is_empty()))
}

fn namespace_matches(selecting: &Value, request: &Request, lister: &dyn Lister) -> Result<bool, Status> {
    let Some(selector) = selector(selecting)? else { return Ok(true) };
    if request.is_core("namespaces") {
        let subject = if request.object.is_null() { &request.old_object } else { &request.object };
        return Ok(selector.matches_object(subject));
    }
    if request.namespace.is_empty() || (request.gvr.group.is_empty() && request.gvr.resource == "namespaces") {
        return Ok(true);
    }
    match lister.get("namespaces", "", &request.namespace) {
        Some(namespace) => Ok(selector.matches_object(&namespace)),
        None => Err(Status::not_found(&Gvr::new("", "v1", "namespaces"), &request.namespace)),
    }
}

fn object_matches(selecting: &Value, request: &Request) -> Result<bool, Status> {
    let Some(selector) = selector(selecting)? else { return Ok(true) };
    let matches = |object: &Value| object["metadata"].as_object().is_some() && selector.matches_object(object);
    Ok(matches(&request.object) || matches(&request.old_object))
}

fn rule_matches(rule: &Value, request: &Request, equivalent: bool) -> bool {
    let has = |field: &str, wanted: &str| {
        rule[field].items().iter().filter_map(|v| v.as_str()).any(|v| v == "*" || v == wanted)
    };
    let scope = match rule.str_at(&["scope"]) {
        "Cluster" => request.namespace.is_empty() || request.gvr.resource == "namespaces",
        "Namespaced" => !request.namespace.is_empty() && request.gvr.resource != "namespaces",
        _ => true,
    };
    let names = rule["resourceNames"].items();
    let is_named = names.is_empty() || names.iter().any(|n| n.as_str() == Some(request.name.as_str()));
    if !has("operations", operation_name(request.operation)) || !scope || !is_named {
        return false;
    }
    let resources = || rule["resources"].items().iter().filter_map(|v| v.as_str());
    let serves = |group: &str, version: &str| {
        has("apiGroups", group) && has("apiVersions", version) && resources().any(|r| resource_matches(r, request))
    };
    let gvr = &request.gvr;
    serves(&gvr.group, &gvr.version)
        || (equivalent && equivalents(gvr).iter().any(|other| serves(&other.group, &other.version)))
}

/// The same objects under other groups and versions.
fn equivalents(gvr: &Gvr) -> Vec<Gvr> {
    let events = |group: &str| gvr.resource == "events" && (group.is_empty() || group == "events.k8s.io");
    let same_group = |other: &Gvr| other.group == gvr.group || (events(&gvr.group) && events(&other.group));
    let others = api::resources().iter().map(|def| &def.gvr);
    others.filter(|other| other.resource == gvr.resource && same_group(other) && *other != gvr).cloned().collect()
}

/// `pods`, `pods/status`, `*`, `*/*`, `pods/*`, `*/scale`.
fn resource_matches(pattern: &str, request: &Request) -> bool {
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    let is = |pattern: &str, actual: &str| pattern == "*" || pattern == actual;
    is(resource, &request.gvr.resource)
        && (subresource == request.subresource || (subresource == "*" && pattern.contains('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::request;
    use crate::lister::fixture::MapLister;

    #[track_caller]
    fn check(resources: &str, subresource: &str, want: bool) {
        let mut request = request(Operation::Create, "pods", r#"{"metadata":{"labels":{"a":"b"}}}"#);
        request.subresource = subresource.to_owned();
        let lister = MapLister::default();
        let namespace = r#"{"metadata":{"name":"ns","labels":{"team":"x"}}}"#;
        lister.put("namespaces", serde_json::from_str(namespace).unwrap());
        let resources: Value = serde_json::from_str(resources).unwrap();
        assert_eq!(Matcher::of_policy(&resources).matches(&request, &lister, false), Ok(want));
    }

    fn rule(groups: &str, resources: &str, rest: &str) -> String {
        format!(
            r#"{{"resourceRules":[{{"apiGroups":["{groups}"],"apiVersions":["*"],"operations":["CREATE"],"resources":["{resources}"]}}]{rest}}}"#
        )
    }

    #[test]
    fn rules_name_resources_and_parts_of_them() {
        for (pattern, part, want) in [
            ("pods", "", true),
            ("pods", "status", false),
            ("pods/*", "status", true),
            ("pods/*", "", true),
            ("*", "", true),
            ("*", "status", false),
            ("*/*", "status", true),
            ("*/status", "status", true),
            ("pods/status", "", false),
        ] {
            check(&rule("", pattern, ""), part, want);
        }
        check(&rule("apps", "pods", ""), "", false);
    }

    #[test]
    fn selectors_look_at_namespaces_and_objects() {
        check(&rule("", "pods", r#","namespaceSelector":{"matchLabels":{"team":"x"}}"#), "", true);
        check(&rule("", "pods", r#","namespaceSelector":{"matchLabels":{"team":"y"}}"#), "", false);
        check(&rule("", "pods", r#","objectSelector":{"matchLabels":{"a":"b"}}"#), "", true);
        check(&rule("", "pods", r#","objectSelector":{"matchLabels":{"a":"c"}}"#), "", false);
        let excluded = r#","excludeResourceRules":[{"apiGroups":["*"],"apiVersions":["*"],"operations":["*"],"resources":["pods"]}]"#;
        check(&rule("", "pods", excluded), "", false);
    }
}
