//! Role and ClusterRole.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::validation::Checks;
use crate::validation::labels::label_selector;
use crate::validation::names::path_segment;

pub(crate) struct RoleStrategy {
    pub namespaced: bool,
}

fn validate_rule(rule: &Cursor<'_>, namespaced: bool, errs: &mut FieldErrors) {
    errs.present(&rule.field("verbs"), "verbs must contain at least one value");
    let (urls, groups, resources) = (rule.field("nonResourceURLs"), rule.field("apiGroups"), rule.field("resources"));
    if !urls.items().is_empty() {
        if namespaced {
            errs.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|f| !rule[f].items().is_empty()) {
            errs.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    errs.present(&groups, "resource rules must supply at least one api group");
    errs.present(&resources, "resource rules must supply at least one resource");
}

impl Strategy for RoleStrategy {
    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        path_segment(name)
    }

    fn validate(&self, role: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(role);
        for rule in root.field("rules").elements() {
            validate_rule(&rule, self.namespaced, &mut errs);
        }
        let aggregation = root.field("aggregationRule");
        if !aggregation.is_absent() {
            let selectors = aggregation.field("clusterRoleSelectors");
            errs.present(&selectors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
            for selector in selectors.elements() {
                label_selector(&mut errs, &selector, true);
            }
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn row(&self, role: &Value, _: Now) -> Option<Vec<Cell>> {
        Some(vec![role.name().into(), role.meta("creationTimestamp").clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn rules_are_of_one_kind() {
        let role = serde_json::from_str(r#"{"rules":[{"nonResourceURLs":["/x"],"resources":["pods"]},{}]}"#).unwrap();
        assert_findings(
            &RoleStrategy { namespaced: true }.validate(&role),
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                r#"rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs"#,
                r#"rules[0].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and non-resource URLs"#,
                "rules[1].verbs: Required value: verbs must contain at least one value",
                "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].resources: Required value: resource rules must supply at least one resource",
            ],
        );
    }
}
