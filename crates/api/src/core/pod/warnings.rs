//! What is accepted of a pod and is not what its author may think.

use apimachinery::Value;
use apimachinery::field::{Cursor, Path};

use super::{containers_of, scheduling};
use crate::validation::deprecated_labels;
use crate::validation::names::dns_label;
use crate::validation::resources::quantity;
use crate::validation::{int, text};

/// Kinds of volumes that are no more, or soon will not be.
const VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// About a new or changed pod.
pub(super) fn of_pod(pod: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() {
        all.extend(name(pod, "the Pod's hostname"));
    }
    if old.is_none_or(|old| old["spec"] != pod["spec"]) {
        all.extend(of_spec(&Cursor::root(pod).field("spec")));
    }
    all
}

/// About a template at a path of a workload, unless it is as it was; and about a new workload's name, which its pods'
/// names begin with.
pub(crate) fn of_template(object: &Value, old: Option<&Value>, path: &[&str], names_pods: bool) -> Vec<String> {
    let mut all = Vec::new();
    if old.is_none() && names_pods {
        all.extend(name(object, "Pod names and hostnames"));
    }
    if old.is_none_or(|old| old.at(path) != object.at(path)) {
        all.extend(of_spec(&Cursor::root(object).fields(path).field("spec")));
    }
    all
}

fn name(object: &Value, used_in: &str) -> Option<String> {
    let wrong = dns_label(object.name());
    (!wrong.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            wrong.join(" ")
        )
    })
}

fn of_spec(spec: &Cursor<'_>) -> Vec<String> {
    let mut all = Vec::new();
    let selector = spec.field("nodeSelector");
    for (key, at) in selector.map_entries() {
        all.extend(deprecated_labels::message(key).map(|what| format!("{}: {what}", at.path)));
    }
    for constraint in spec.field("topologySpreadConstraints").elements() {
        let key = constraint.field("topologyKey");
        all.extend(
            deprecated_labels::message(text(&key)).map(|what| format!("{}: {} is {what}", key.path, text(&key))),
        );
        all.extend(null_selector(&constraint));
    }
    for term in scheduling::pod_terms(&spec.field("affinity")) {
        all.extend(null_selector(&term));
    }
    for volume in spec.field("volumes").elements() {
        let held = VOLUMES.iter().filter(|(kind, _)| !volume.value[*kind].is_null());
        all.extend(held.map(|(kind, what)| format!("{}: {what}", volume.path.child(kind))));
    }
    twice(&mut all, &spec.field("hostAliases"), "ip", |at, value| format!("{at}: duplicate ip {value:?}"));
    let secrets = spec.field("imagePullSecrets");
    for secret in secrets.elements().filter(|s| s.value.str_at(&["name"]).is_empty()) {
        all.push(format!("{}: invalid empty name \"\"", secret.path.child("name")));
    }
    twice(&mut all, &secrets, "name", |at, value| format!("{at}: duplicate name {value:?}"));
    let grace = spec.field("terminationGracePeriodSeconds");
    if int(grace.value) < 0 {
        all.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", grace.path));
    }
    for container in containers_of(spec) {
        for list in ["limits", "requests"] {
            for (name, amount) in container.fields(&["resources", list]).map_entries() {
                let is_bytes = matches!(name, "memory" | "ephemeral-storage");
                if is_bytes && quantity(&amount).milli_value() % 1000 != 0 {
                    let shown = text(&amount);
                    all.push(format!(
                        "{}: fractional byte value {shown:?} is invalid, must be an integer",
                        amount.path
                    ));
                }
            }
        }
        let env = container.field("env");
        let mut seen: Vec<&str> = Vec::new();
        for variable in env.elements() {
            let name = variable.value.str_at(&["name"]);
            if seen.contains(&name) {
                all.push(format!(
                    "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                    variable.path
                ));
            }
            seen.push(name);
        }
    }
    all
}

fn null_selector(term: &Cursor<'_>) -> Option<String> {
    let selector = term.field("labelSelector");
    selector.is_absent().then(|| format!("{}: a null labelSelector results in matching no pod", selector.path))
}

fn twice(all: &mut Vec<String>, list: &Cursor<'_>, field: &str, say: impl Fn(&Path, &str) -> String) {
    let mut seen: Vec<&str> = Vec::new();
    for at in list.elements().map(|item| item.field(field)) {
        if seen.contains(&text(&at)) && !text(&at).is_empty() {
            all.push(say(&at.path, text(&at)));
        }
        seen.push(text(&at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pod: &str, want: &[&str]) {
        assert_eq!(of_pod(&serde_json::from_str(pod).unwrap(), None), want);
    }

    #[test]
    fn odd_pods_are_warned_of() {
        check(
            r#"{"metadata":{"name":"p"},"spec":{"nodeSelector":{"beta.kubernetes.io/os":"linux"},"containers":[
                {"name":"c","env":[{"name":"A"},{"name":"A"}],"resources":{"limits":{"memory":"100m"}}}],
                "volumes":[{"name":"v","rbd":{}}]}}"#,
            &[
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.volumes[0].rbd: deprecated in v1.28, non-functional in v1.31+",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            ],
        );
    }
}
