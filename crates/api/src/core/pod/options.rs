//! What older servers let through, and an object may therefore keep.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::{resources, scheduling, security, volumes};
use crate::validation::labels::selector_is_valid;

/// How strict the rules for a pod's spec are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// The object is a Pod, not something that holds a template of one.
    pub(crate) is_pod: bool,
    pub(crate) any_deletion_cost: bool,
    /// Label values in the selectors of affinities.
    pub(crate) any_selector_values: bool,
    /// Label values of a required node affinity.
    pub(crate) any_node_values: bool,
    pub(crate) any_spread_selectors: bool,
    /// `matchLabelKeys` of spread constraints by the rules before they were merged into selectors.
    pub(crate) legacy_match_label_keys: bool,
    pub(crate) indivisible_huge_pages: bool,
    pub(crate) any_token_path: bool,
    pub(crate) any_sysctls: bool,
    pub(crate) any_selinux_policy: bool,
    pub(crate) devices_in_user_namespace: bool,
}

impl Options {
    /// For a new object.
    pub(crate) fn strict(is_pod: bool) -> Self {
        Options { is_pod, ..Options::default() }
    }

    /// For a change of an object that has that pod (or template): what it breaks already it may go on to break.
    pub(crate) fn keeping(is_pod: bool, old: &Value) -> Self {
        let strict = Options::strict(is_pod);
        let spec = Cursor::root(old).field("spec");
        let breaks = |rule: &dyn Fn(&mut FieldErrors)| {
            let mut errs = FieldErrors::new();
            rule(&mut errs);
            !errs.is_empty()
        };
        let spread = spec.field("topologySpreadConstraints");
        let user_namespace = spec.value["hostUsers"].as_bool() == Some(false);
        Options {
            is_pod,
            any_deletion_cost: super::annotations::has_bad_deletion_cost(old.at(&["metadata", "annotations"])),
            any_selector_values: breaks(&|errs| scheduling::pod_affinities(errs, &spec.field("affinity"), strict)),
            any_node_values: breaks(&|errs| scheduling::node_affinity(errs, &spec.field("affinity"), strict)),
            any_spread_selectors: spread.elements().any(|c| !selector_is_valid(&c.field("labelSelector"))),
            legacy_match_label_keys: breaks(&|errs| scheduling::match_label_keys_of_spread(errs, &spread)),
            indivisible_huge_pages: resources::has_indivisible_huge_pages(spec.value),
            any_token_path: volumes::has_token_outside(spec.value),
            any_sysctls: breaks(&|errs| security::host_sysctls(errs, &spec)),
            any_selinux_policy: !spec.value.at(&["securityContext", "seLinuxChangePolicy"]).is_null(),
            devices_in_user_namespace: user_namespace
                && super::containers_of(&spec).any(|c| !c.value["volumeDevices"].items().is_empty()),
        }
    }
}
