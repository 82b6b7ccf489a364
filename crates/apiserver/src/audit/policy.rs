//! `audit.k8s.io/v1 Policy`: how much of which requests is written down.

use std::path::Path;

use serde::Deserialize;

use crate::attributes::{RequestInfo, UserInfo};

const VERSIONS: &[&str] = &["audit.k8s.io/v1"];
const KIND: &str = "Policy";

/// How much is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// When it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

pub(super) struct Policy {
    rules: Vec<Rule>,
    omitted: Vec<Stage>,
    omit_managed_fields: bool,
}

struct Rule {
    level: Level,
    file: RuleFile,
    omitted: Vec<Stage>,
}

/// What a policy says about a request.
#[derive(Debug, PartialEq)]
pub(super) struct Decided {
    pub level: Level,
    pub omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PolicyFile {
    #[serde(rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    rules: Vec<RuleFile>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RuleFile {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Level {
    const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    pub(super) fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

impl Stage {
    const ALL: [Stage; 4] = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

fn stages(names: &[String], at: &str, wrong: &mut Vec<String>) -> Vec<Stage> {
    let mut found = Vec::new();
    for (i, name) in names.iter().enumerate() {
        match Stage::ALL.iter().find(|stage| stage.name() == name) {
            Some(stage) => found.push(*stage),
            None => wrong.push(format!(
                "{at}[{i}]: Invalid value: {name:?}: allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic"
            )),
        }
    }
    found
}

impl Policy {
    /// # Errors
    /// All that is wrong with it, in upstream's words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let path = Path::new(KIND);
        let file: PolicyFile =
            component_base::config_file::parse(text, path, VERSIONS, KIND).map_err(|e| e.to_string())?;
        let mut wrong = Vec::new();
        let omitted = stages(&file.omit_stages, "omitStages", &mut wrong);
        if file.rules.is_empty() {
            wrong.push("loaded illegal policy with 0 rules".to_owned());
        }
        let mut rules = Vec::new();
        for (i, file) in file.rules.into_iter().enumerate() {
            let at = format!("rules[{i}]");
            let level = match Level::ALL.iter().find(|level| level.name() == file.level) {
                Some(level) => *level,
                None if file.level.is_empty() => {
                    wrong.push(format!("{at}.level: Required value"));
                    Level::None
                }
                None => {
                    wrong.push(format!("{at}.level: Unsupported value: {:?}: supported values: \"Metadata\", \"None\", \"Request\", \"RequestResponse\"", file.level));
                    Level::None
                }
            };
            if !file.non_resource_urls.is_empty() && (!file.resources.is_empty() || !file.namespaces.is_empty()) {
                wrong.push(format!("{at}.nonResourceURLs: Invalid value: {:?}: rules cannot apply to both regular resources and non-resource URLs", file.non_resource_urls));
            }
            for (j, group) in file.resources.iter().enumerate() {
                if !group.resource_names.is_empty() && group.resources.is_empty() {
                    wrong.push(format!("{at}.resources[{j}].resourceNames: Invalid value: {:?}: using resourceNames requires at least one resource", group.resource_names));
                }
            }
            let omitted = stages(&file.omit_stages, &format!("{at}.omitStages"), &mut wrong);
            rules.push(Rule { level, file, omitted });
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        Ok(Policy { rules, omitted, omit_managed_fields: file.omit_managed_fields })
    }

    /// The first rule that matches decides; without one nothing is written down.
    pub(super) fn decide(&self, user: &UserInfo, info: &RequestInfo) -> Decided {
        let Some(rule) = self.rules.iter().find(|rule| rule.file.matches(user, info)) else {
            return Decided { level: Level::None, omitted: Vec::new(), omit_managed_fields: false };
        };
        Decided {
            level: rule.level,
            omitted: self.omitted.iter().chain(&rule.omitted).copied().collect(),
            omit_managed_fields: rule.file.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl RuleFile {
    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let any = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|w| w == is);
        if !any(&self.users, &user.name) || !any(&self.verbs, &info.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !self.user_groups.iter().any(|group| user.is_in(group)) {
            return false;
        }
        if info.is_resource {
            let about_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
            if about_resources {
                return any(&self.namespaces, &info.namespace)
                    && (self.resources.is_empty() || self.resources.iter().any(|group| group.matches(info)));
            }
            return self.non_resource_urls.is_empty();
        }
        if !self.non_resource_urls.is_empty() {
            return self.non_resource_urls.iter().any(|pattern| path_matches(&info.path, pattern));
        }
        self.resources.is_empty() && self.namespaces.is_empty()
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.gvr.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let combined = match info.subresource.as_str() {
            "" => info.gvr.resource.to_string(),
            sub => format!("{}/{sub}", info.gvr.resource),
        };
        let of_any = |wanted: &String| wanted.strip_prefix("*/").is_some_and(|sub| sub == info.subresource);
        let of_one = |wanted: &String| wanted.strip_suffix("/*").is_some_and(|resource| resource == info.gvr.resource);
        let named = self.resource_names.is_empty() || self.resource_names.contains(&info.name);
        named && self.resources.iter().any(|w| *w == combined || w == "*" || of_any(w) || of_one(w))
    }
}

fn path_matches(path: &str, pattern: &str) -> bool {
    pattern == "*" || pattern == path || pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rest: &str) -> Result<Policy, String> {
        Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rest}"))
    }

    fn resource(verb: &str, group: &str, resource: &str, subresource: &str, namespace: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            gvr: apimachinery::meta::Gvr::new(group, "v1", resource),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]\nrules:\n- {level: None, users: [system:kube-proxy], verbs: [watch]}\n- {level: None, nonResourceURLs: [/healthz*, /version]}\n- {level: Metadata, resources: [{group: '', resources: [secrets, pods/log]}], omitStages: [Panic]}\n- {level: RequestResponse, namespaces: [kube-system], userGroups: [ops]}\n- {level: Request, resources: [{group: apps, resources: ['*/status']}]}\n",
        )
        .unwrap();
        let jane = UserInfo { name: "jane".to_owned(), groups: vec!["ops".to_owned()], ..UserInfo::default() };
        let proxy = UserInfo { name: "system:kube-proxy".to_owned(), ..UserInfo::default() };
        let level = |user: &UserInfo, info: &RequestInfo| policy.decide(user, info).level;
        assert_eq!(level(&proxy, &resource("watch", "", "secrets", "", "a")), Level::None);
        let secret = policy.decide(&jane, &resource("get", "", "secrets", "", "a"));
        assert_eq!((secret.level, secret.omitted), (Level::Metadata, vec![Stage::RequestReceived, Stage::Panic]));
        assert_eq!(level(&jane, &resource("get", "", "pods", "log", "a")), Level::Metadata);
        assert_eq!(level(&jane, &resource("get", "", "pods", "", "kube-system")), Level::RequestResponse);
        assert_eq!(level(&jane, &resource("patch", "apps", "deployments", "status", "a")), Level::Request);
        assert_eq!(level(&jane, &resource("patch", "apps", "deployments", "", "a")), Level::None);
        let health = RequestInfo { path: "/healthz/etcd".to_owned(), verb: "get".to_owned(), ..RequestInfo::default() };
        assert_eq!(level(&jane, &health), Level::None);
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |rest| policy(rest).err().unwrap_or_default();
        assert_eq!(wrong("rules: []\n"), "loaded illegal policy with 0 rules");
        assert!(wrong("rules:\n- {level: All}\n").starts_with("rules[0].level: Unsupported value: \"All\""));
        assert!(
            wrong("rules:\n- {level: None, omitStages: [x]}\n")
                .starts_with("rules[0].omitStages[0]: Invalid value: \"x\"")
        );
    }
}
