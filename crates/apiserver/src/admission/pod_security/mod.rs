//! PodSecurity: pods keep to the level that their namespace asks for (KEP-2579). What is decided is pure: levels and labels
//! in `policy`, the rules in `checks`, `baseline` and `restricted`.

mod baseline;
mod checks;
mod policy;
mod restricted;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::FieldErrors;
use apimachinery::status::Status;
use async_trait::async_trait;

use self::baseline::{SECCOMP_CONTAINER_ANNOTATION, SECCOMP_POD_ANNOTATION};
use self::checks::{Pod, details, evaluate, reasons};
use self::policy::{BAD_LEVEL, BAD_VERSION, Level, LevelVersion, Policy, Version};
use super::{Operation, Plugin, Request};
use crate::lister::Lister;

const PREFIX: &str = "pod-security.kubernetes.io";
/// Their subresources do not change what is checked.
const IGNORED_PARTS: &[&str] = &["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
/// How many pods of a namespace are looked at when its level changes.
const MAX_PODS: usize = 3000;
/// Where the kinds that make pods keep what they make them of.
const TEMPLATES: &[(&str, &str, &[&str])] = &[
    ("", "replicationcontrollers", &["spec", "template"]),
    ("", "podtemplates", &["template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
];

/// `PodSecurityConfiguration`: what holds for namespaces without labels, and whom nothing holds for.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    defaults: Policy,
    usernames: HashSet<String>,
    namespaces: HashSet<String>,
    runtime_classes: HashSet<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let none = HashSet::new;
        Settings { defaults: Policy::PRIVILEGED, usernames: none(), namespaces: none(), runtime_classes: none() }
    }
}

impl Settings {
    /// # Errors
    /// In upstream's words, for a level or a version that does not exist.
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let mut defaults = Policy::PRIVILEGED;
        let modes = [("enforce", &mut defaults.enforce), ("audit", &mut defaults.audit), ("warn", &mut defaults.warn)];
        for (mode, at) in modes {
            let read = |key: &str| config.at(&["defaults", key]).as_str().filter(|text| !text.is_empty());
            if let Some(text) = read(mode) {
                at.level = Level::parse(text)
                    .ok_or_else(|| format!("defaults.{mode}: Invalid value: {text:?}: {BAD_LEVEL}"))?;
            }
            let key = format!("{mode}-version");
            if let Some(text) = read(&key) {
                at.version = Version::parse(text)
                    .ok_or_else(|| format!("defaults.{key}: Invalid value: {text:?}: {BAD_VERSION}"))?;
            }
        }
        let names = |key: &str| {
            let list = config.at(&["exemptions", key]).items();
            list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Ok(Settings {
            defaults,
            usernames: names("usernames"),
            namespaces: names("namespaces"),
            runtime_classes: names("runtimeClasses"),
        })
    }
}

pub(super) struct PodSecurity {
    pub lister: Arc<dyn Lister>,
    pub settings: Settings,
}

/// What a request is about, as far as it is checked.
enum Subject {
    Namespace,
    Pod,
    Workload(&'static [&'static str]),
}

fn subject_of(request: &Request) -> Option<Subject> {
    if request.gvr.group.is_empty() && request.gvr.resource == "pods" {
        return (!IGNORED_PARTS.contains(&request.subresource.as_str())).then_some(Subject::Pod);
    }
    if !request.subresource.is_empty() {
        return None;
    }
    if request.is_core("namespaces") {
        return Some(Subject::Namespace);
    }
    let is = |(group, resource, _): &&(&str, &str, _)| request.gvr.group == *group && request.gvr.resource == *resource;
    TEMPLATES.iter().find(is).map(|(_, _, path)| Subject::Workload(path))
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update) && subject_of(request).is_some()
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        match subject_of(request) {
            None => Ok(()),
            Some(Subject::Namespace) => self.check_namespace(request),
            Some(Subject::Pod) => self.check_pod(request),
            Some(Subject::Workload(template)) => {
                self.check_workload(request, template);
                Ok(())
            }
        }
    }
}

impl PodSecurity {
    fn check_namespace(&self, request: &mut Request) -> Result<(), Status> {
        let defaults = self.settings.defaults;
        let (policy, errs) = Policy::of_labels(&request.object, defaults);
        let (old, old_errs) = match request.operation {
            Operation::Update => Policy::of_labels(&request.old_object, defaults),
            _ => (policy, FieldErrors::new()),
        };
        if !errs.is_empty() && errs != old_errs {
            return Err(Status::invalid(&request.gvk, request.object.name(), &errs));
        }
        let is_exempt = self.settings.namespaces.contains(request.object.name());
        let is_change = request.operation == Operation::Update && policy != old;
        if is_exempt
            && !policy.is_privileged()
            && policy != defaults
            && (is_change || request.operation == Operation::Create)
        {
            request.warnings.push(format!(
                "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
                request.object.name(),
                policy.compact()
            ));
        }
        let (new, old) = (policy.enforce, old.enforce);
        let is_stricter =
            new != old && new.level != Level::Privileged && !(new.version == old.version && new.level <= old.level);
        if is_stricter && !is_exempt {
            let mut warnings = self.look_at_pods(request.object.name(), new);
            request.warnings.append(&mut warnings);
        }
        Ok(())
    }

    /// What the pods that are there already would be refused for.
    fn look_at_pods(&self, namespace: &str, enforce: LevelVersion) -> Vec<String> {
        let mut pods = self.lister.list("pods", namespace);
        pods.retain(|pod| !self.is_exempt_class(&pod["spec"]));
        let total = pods.len();
        let pods = one_of_each_controller_first(pods);
        let mut by_reasons: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.iter().take(MAX_PODS) {
            let findings = evaluate(enforce, Pod { metadata: &pod["metadata"], spec: &pod["spec"] });
            if !findings.is_empty() {
                let (name, count) = by_reasons.entry(reasons(&findings)).or_insert((pod.name().to_owned(), 0));
                if pod.name() < name.as_str() {
                    pod.name().clone_into(name);
                }
                *count += 1;
            }
        }
        let mut warnings = Vec::new();
        if total > MAX_PODS {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {total} existing pods"
            ));
        }
        if !by_reasons.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut of_pods: Vec<_> = by_reasons
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                more => format!("{name} (and {} other pods): {reasons}", more - 1),
            })
            .collect();
        of_pods.sort();
        warnings.append(&mut of_pods);
        warnings
    }

    fn check_pod(&self, request: &mut Request) -> Result<(), Status> {
        if self.is_exempt(request) {
            return Ok(());
        }
        let Some(namespace) = self.lister.get("namespaces", "", &request.namespace) else {
            return Err(Status::internal(format!("failed to lookup namespace {}", request.namespace)));
        };
        let (policy, errs) = Policy::of_labels(&namespace, self.settings.defaults);
        if errs.is_empty() && policy.is_privileged() {
            note(request, "enforce-policy", "privileged:latest".to_owned());
            return Ok(());
        }
        if request.operation == Operation::Update && !is_significant(&request.object, &request.old_object) {
            return Ok(());
        }
        let object = std::mem::take(&mut request.object);
        let checked = Pod { metadata: &object["metadata"], spec: &object["spec"] };
        let refusal = self.check(request, policy, &errs, checked, true);
        request.object = object;
        match refusal {
            None => Ok(()),
            Some(why) => Err(request.forbidden(why)),
        }
    }

    fn check_workload(&self, request: &mut Request, template: &[&str]) {
        if self.is_exempt(request) {
            return;
        }
        let Some(namespace) = self.lister.get("namespaces", "", &request.namespace) else {
            let why = format!("failed to lookup namespace {}", request.namespace);
            note(request, "error", why);
            return;
        };
        let (policy, errs) = Policy::of_labels(&namespace, self.settings.defaults);
        let tells = policy.warn.level != Level::Privileged || policy.audit.level != Level::Privileged;
        let object = std::mem::take(&mut request.object);
        let template = object.at(template);
        if (tells || !errs.is_empty()) && !template.is_null() {
            let checked = Pod { metadata: &template["metadata"], spec: &template["spec"] };
            self.check(request, policy, &errs, checked, false);
        }
        request.object = object;
    }

    /// Evaluates the policy; gives the reason for a refusal if it is enforced.
    fn check(
        &self,
        request: &mut Request,
        policy: Policy,
        errs: &FieldErrors,
        pod: Pod<'_>,
        enforces: bool,
    ) -> Option<String> {
        if self.is_exempt_class(pod.spec) {
            note(request, "exempt", "runtimeClass".to_owned());
            return None;
        }
        if !errs.is_empty() {
            let texts: Vec<_> = errs.0.iter().map(ToString::to_string).collect();
            note(request, "error", format!("Failed to parse policy: {}", texts.join(", ")));
        }
        let would = |at: LevelVersion| {
            let findings = evaluate(at, pod);
            (!findings.is_empty()).then(|| format!("would violate PodSecurity \"{at}\": {}", details(&findings)))
        };
        let mut refusal = None;
        if enforces {
            note(request, "enforce-policy", policy.enforce.to_string());
            let findings = evaluate(policy.enforce, pod);
            if !findings.is_empty() {
                refusal = Some(format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&findings)));
            }
        }
        if let Some(told) = would(policy.audit) {
            note(request, "audit-violations", told);
        }
        if refusal.is_none() {
            request.warnings.extend(would(policy.warn));
        }
        refusal
    }

    fn is_exempt(&self, request: &mut Request) -> bool {
        let why = if self.settings.namespaces.contains(&request.namespace) {
            "namespace"
        } else if self.settings.usernames.contains(&request.user.name) {
            "user"
        } else {
            return false;
        };
        note(request, "exempt", why.to_owned());
        true
    }

    fn is_exempt_class(&self, spec: &Value) -> bool {
        self.settings.runtime_classes.contains(spec.str_at(&["runtimeClassName"]))
    }
}

fn note(request: &mut Request, key: &str, value: String) {
    request.audit_annotations.insert(format!("{PREFIX}/{key}"), value);
}

/// Pods of one controller are alike: one of each tells the most.
fn one_of_each_controller_first(pods: Vec<Arc<Value>>) -> Vec<Arc<Value>> {
    let mut seen = HashSet::new();
    let is_first = |pod: &Arc<Value>| {
        let owners = pod.meta("ownerReferences").items();
        let controller = owners.iter().find(|owner| owner["controller"].as_bool() == Some(true));
        controller.is_none_or(|owner| seen.insert(owner.str_at(&["uid"]).to_owned()))
    };
    let (mut first, mut rest): (Vec<_>, Vec<_>) = pods.into_iter().partition(is_first);
    first.append(&mut rest);
    first
}

/// An update that changes something that checks look at: most of a pod cannot change.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let annotation = |key: &str| pod.annotation(key) != old.annotation(key);
    let differs = |new: &Value, old: &Value| {
        new.str_at(&["image"]) != old.str_at(&["image"])
            || annotation(&format!("{SECCOMP_CONTAINER_ANNOTATION}{}", new.str_at(&["name"])))
    };
    let list = |pod: &'_ Value, of: &str| pod["spec"][of].items().to_vec();
    let changed = |of: &str| {
        let (new, old) = (list(pod, of), list(old, of));
        new.len() != old.len() || new.iter().zip(&old).any(|(new, old)| differs(new, old))
    };
    let added = list(pod, "ephemeralContainers").iter().any(|new| {
        let before = list(old, "ephemeralContainers");
        let before = before.iter().find(|old| old["name"] == new["name"]);
        before.is_none_or(|old| differs(new, old))
    });
    annotation(SECCOMP_POD_ANNOTATION) || changed("containers") || changed("initContainers") || added
}
