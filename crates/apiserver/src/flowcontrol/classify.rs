//! Which flow a request belongs to: FlowSchemas, in order of their precedence.

use apimachinery::Value;

use crate::attributes::{RequestInfo, UserInfo};

/// A FlowSchema.
#[derive(Debug)]
pub(super) struct Schema {
    pub name: String,
    pub uid: String,
    /// The priority level that it leads to.
    pub level: String,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// What tells the flows of a schema apart.
#[derive(Debug, PartialEq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster: bool,
    namespaces: Vec<String>,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

impl Schema {
    pub(super) fn parse(object: &Value) -> Self {
        let spec = &object["spec"];
        Schema {
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            level: spec.str_at(&["priorityLevelConfiguration", "name"]).to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: match spec.str_at(&["distinguisherMethod", "type"]) {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec["rules"].items().iter().map(Rule::parse).collect(),
        }
    }

    /// In the order in which they are tried.
    pub(super) fn sort(schemas: &mut [Schema]) {
        schemas.sort_by(|a, b| a.precedence.cmp(&b.precedence).then_with(|| a.name.cmp(&b.name)));
    }

    pub(super) fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// Which of the schema's flows a request belongs to.
    pub(super) fn flow<'r>(&self, user: &'r UserInfo, info: &'r RequestInfo) -> &'r str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn any(wanted: &[String], is: &str) -> bool {
    wanted.iter().any(|w| w == "*" || w == is)
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let subject = |subject: &Value| {
            let text = |path: &[&str]| subject.at(path).as_str().unwrap_or_default().to_owned();
            match subject.str_at(&["kind"]) {
                "User" => Some(Subject::User(text(&["user", "name"]))),
                "Group" => Some(Subject::Group(text(&["group", "name"]))),
                "ServiceAccount" => Some(Subject::ServiceAccount {
                    namespace: text(&["serviceAccount", "namespace"]),
                    name: text(&["serviceAccount", "name"]),
                }),
                _ => None,
            }
        };
        let resource = |rule: &Value| ResourceRule {
            verbs: strings(&rule["verbs"]),
            groups: strings(&rule["apiGroups"]),
            resources: strings(&rule["resources"]),
            cluster: rule["clusterScope"].as_bool() == Some(true),
            namespaces: strings(&rule["namespaces"]),
        };
        let path = |rule: &Value| PathRule { verbs: strings(&rule["verbs"]), paths: strings(&rule["nonResourceURLs"]) };
        Rule {
            subjects: rule["subjects"].items().iter().filter_map(subject).collect(),
            resources: rule["resourceRules"].items().iter().map(resource).collect(),
            paths: rule["nonResourceRules"].items().iter().map(path).collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(user)) {
            return false;
        }
        if info.is_resource {
            self.resources.iter().any(|rule| rule.matches(info))
        } else {
            self.paths.iter().any(|rule| rule.matches(info))
        }
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.is_in(name),
            Subject::ServiceAccount { namespace, name } => {
                let account = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(ns, n)| ns == namespace && (name == "*" || n == name))
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = match info.subresource.as_str() {
            "" => info.gvr.resource.to_string(),
            sub => format!("{}/{sub}", info.gvr.resource),
        };
        let scope = if info.namespace.is_empty() { self.cluster } else { any(&self.namespaces, &info.namespace) };
        scope && any(&self.verbs, &info.verb) && any(&self.groups, &info.gvr.group) && any(&self.resources, &resource)
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let fits = |wanted: &String| {
            wanted == "*" || *wanted == info.path || wanted.strip_suffix('*').is_some_and(|p| info.path.starts_with(p))
        };
        any(&self.verbs, &info.verb) && self.paths.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(precedence: i64, name: &str, rule: &str) -> Schema {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}"}},"spec":{{"matchingPrecedence":{precedence},"distinguisherMethod":{{"type":"ByUser"}},"priorityLevelConfiguration":{{"name":"l"}},"rules":[{rule}]}}}}"#
        );
        Schema::parse(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn schemas_are_tried_in_order() {
        let everybody = r#"{"subjects":[{"kind":"Group","group":{"name":"*"}}],"resourceRules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"],"clusterScope":true,"namespaces":["*"]}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["/healthz*"]}]}"#;
        let account = r#"{"subjects":[{"kind":"ServiceAccount","serviceAccount":{"namespace":"kube-system","name":"*"}}],"resourceRules":[{"verbs":["list"],"apiGroups":[""],"resources":["pods","nodes/status"],"namespaces":["a"]}]}"#;
        let mut all = [schema(9, "all", everybody), schema(1, "accounts", account)];
        Schema::sort(&mut all);
        let pods = |verb: &str, namespace: &str| RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            gvr: apimachinery::meta::Gvr::new("", "v1", "pods"),
            namespace: namespace.to_owned(),
            ..RequestInfo::default()
        };
        let user = |name: &str| UserInfo { name: name.to_owned(), groups: vec!["g".to_owned()], ..UserInfo::default() };
        let found = |user: &UserInfo, info: &RequestInfo| {
            all.iter().find(|schema| schema.matches(user, info)).map(|schema| schema.name.as_str())
        };
        let account = user("system:serviceaccount:kube-system:x");
        assert_eq!(found(&account, &pods("list", "a")), Some("accounts"));
        assert_eq!(found(&account, &pods("list", "b")), Some("all"));
        assert_eq!(found(&account, &pods("list", "")), Some("all"));
        assert_eq!(found(&user("jane"), &pods("list", "a")), Some("all"));
        let path = |path: &str| RequestInfo { verb: "get".to_owned(), path: path.to_owned(), ..RequestInfo::default() };
        assert_eq!(found(&user("jane"), &path("/healthz/x")), Some("all"));
        assert_eq!(found(&user("jane"), &path("/metrics")), None);
        assert_eq!(all[0].flow(&account, &pods("list", "a")), "system:serviceaccount:kube-system:x");
    }
}
