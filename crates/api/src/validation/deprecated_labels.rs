//! Labels of nodes that have newer names.

use apimachinery::field::{Cursor, Path};

use super::text;

const DEPRECATED: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// What to say of a label, if it has a newer name.
pub(crate) fn message(label: &str) -> Option<&'static str> {
    DEPRECATED.iter().find(|(old, _)| *old == label).map(|(_, what)| *what)
}

/// About a list of expressions, each with a `key`.
pub(crate) fn in_expressions(list: &Cursor<'_>) -> Vec<String> {
    let keys = list.elements().map(|expression| expression.field("key"));
    keys.filter_map(|key| message(text(&key)).map(|what| format!("{}: {} is {what}", key.path, text(&key)))).collect()
}

/// About the keys of a map of labels; `with_key`: the path ends with the label.
pub(crate) fn in_map(labels: &Cursor<'_>, with_key: bool) -> Vec<String> {
    let path = |key: &str| if with_key { labels.path.child(key) } else { Path::clone(&labels.path) };
    let keys = labels.entries().keys();
    keys.filter_map(|key| message(key).map(|what| format!("{}: {what}", path(key)))).collect()
}
