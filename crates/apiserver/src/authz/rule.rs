//! A policy rule as RBAC's objects hold it, compiled for matching.

use apimachinery::Value;

use crate::attributes::RequestInfo;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    #[must_use]
    pub fn parse(rule: &Value) -> Self {
        let list = |key: &str| rule[key].items().iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Rule {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// Whether the rule allows the request, whatever its namespace.
    #[must_use]
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => request.path.starts_with(prefix),
                None => *url == request.path,
            });
        }
        has(&self.api_groups, &request.gvr.group)
            && self.covers_resource(&request.gvr.resource, &request.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|r| {
            if r == "*" {
                return true;
            }
            match (r.split_once('/'), subresource) {
                (None, "") => r == resource,
                (Some(("*", sub)), s) if !s.is_empty() => sub == s,
                (Some((res, sub)), s) if !s.is_empty() => res == resource && (sub == s),
                _ => false,
            }
        })
    }

    /// Whether this rule grants all that `asked` (of one verb, group, resource …) grants. For escalation checks.
    #[must_use]
    pub fn covers(&self, asked: &Rule) -> bool {
        let all =
            |have: &[String], want: &[String]| have.iter().any(|h| h == "*") || want.iter().all(|w| have.contains(w));
        let resources = |want: &String| {
            let (resource, sub) = want.split_once('/').map_or((want.as_str(), ""), |(r, s)| (r, s));
            self.resources.contains(want) || (want != "*" && self.covers_resource(resource, sub))
        };
        let names = self.resource_names.is_empty()
            || (!asked.resource_names.is_empty()
                && asked.resource_names.iter().all(|n| self.resource_names.contains(n)));
        let urls = asked.non_resource_urls.iter().all(|want| {
            self.non_resource_urls.iter().any(|have| match have.strip_suffix('*') {
                Some(prefix) => want.starts_with(prefix),
                None => have == want,
            })
        });
        all(&self.verbs, &asked.verbs)
            && all(&self.api_groups, &asked.api_groups)
            && (self.resources.iter().any(|r| r == "*") || asked.resources.iter().all(resources))
            && names
            && urls
    }

    /// The rule as many rules of one verb, one group, one resource and one name each (upstream's `BreakdownRule`).
    #[must_use]
    pub fn split(&self) -> Vec<Rule> {
        let one = |s: &String| vec![s.clone()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let base =
                        Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.resource_names.is_empty() {
                        out.push(base.clone());
                    }
                    out.extend(self.resource_names.iter().map(|n| Rule { resource_names: one(n), ..base.clone() }));
                }
            }
            let urls = self.non_resource_urls.iter();
            out.extend(urls.map(|u| Rule { verbs: one(verb), non_resource_urls: one(u), ..Rule::default() }));
        }
        out
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|v| v == "*" || v == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::meta::Gvr;

    fn rule(text: &str) -> Rule {
        Rule::parse(&serde_json::from_str(text).unwrap())
    }

    fn request(verb: &str, group: &str, resource: &str, sub: &str, name: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            gvr: Gvr::new(group, "v1", resource),
            subresource: sub.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn resources_and_subresources_match_apart() {
        let pods = rule(r#"{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}"#);
        assert!(pods.allows(&request("get", "", "pods", "", "a")));
        assert!(!pods.allows(&request("get", "", "pods", "log", "a")));
        assert!(!pods.allows(&request("list", "", "pods", "", "")));
        let scales = rule(r#"{"verbs":["*"],"apiGroups":["*"],"resources":["*/scale"]}"#);
        assert!(scales.allows(&request("update", "apps", "deployments", "scale", "a")));
        assert!(!scales.allows(&request("update", "apps", "deployments", "", "a")));
        let named = rule(r#"{"verbs":["get"],"apiGroups":[""],"resources":["secrets"],"resourceNames":["a"]}"#);
        assert!(named.allows(&request("get", "", "secrets", "", "a")));
        assert!(!named.allows(&request("get", "", "secrets", "", "b")));
    }

    #[test]
    fn urls_match_by_prefix_only_with_a_star() {
        let get = |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
        let r = rule(r#"{"verbs":["get"],"nonResourceURLs":["/healthz","/api/*"]}"#);
        assert!(r.allows(&get("/healthz")) && r.allows(&get("/api/v1")));
        assert!(!r.allows(&get("/healthz/x")) && !r.allows(&get("/apis")));
    }

    #[test]
    fn a_rule_covers_what_it_grants_itself() {
        let admin = rule(r#"{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}"#);
        let pods = rule(r#"{"verbs":["get","list"],"apiGroups":[""],"resources":["pods","pods/log"]}"#);
        assert!(pods.split().iter().all(|r| admin.covers(r)));
        assert!(pods.split().iter().all(|r| pods.covers(r)));
        assert!(!admin.split().iter().all(|r| pods.covers(r)));
        assert_eq!(pods.split().len(), 4);
    }
}
