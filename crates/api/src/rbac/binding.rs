//! RoleBinding and ClusterRoleBinding.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::GROUP;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_subdomain, path_segment};
use crate::validation::{Checks, same, text};

pub(crate) struct BindingStrategy {
    pub namespaced: bool,
}

fn validate_subject(subject: &Cursor<'_>, namespaced: bool, errs: &mut FieldErrors) {
    let (name, group) = (subject.field("name"), subject.field("apiGroup"));
    errs.present(&name, "");
    match subject.str_at(&["kind"]) {
        "ServiceAccount" => {
            if !text(&name).is_empty() {
                errs.each(&name, dns_subdomain(text(&name)));
            }
            errs.one_of(&group, &[""]);
            if !namespaced {
                errs.present(&subject.field("namespace"), "");
            }
        }
        kind @ ("User" | "Group") => {
            if text(&name).is_empty() {
                errs.invalid_text(&name, format!("{} name cannot be empty", kind.to_lowercase()));
            }
            errs.one_of(&group, &[GROUP]);
        }
        _ => {
            errs.one_of(&subject.field("kind"), &["ServiceAccount", "User", "Group"]);
        }
    }
}

impl Strategy for BindingStrategy {
    fn default(&self, binding: &mut Value) {
        if binding.str_at(&["roleRef", "apiGroup"]).is_empty() {
            binding.set(&["roleRef", "apiGroup"], GROUP);
        }
        if let Some(subjects) = binding.get_mut("subjects") {
            for subject in subjects.items_mut() {
                let user = matches!(subject.str_at(&["kind"]), "User" | "Group");
                if user && subject.str_at(&["apiGroup"]).is_empty() {
                    subject.set(&["apiGroup"], GROUP);
                }
            }
        }
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        path_segment(name)
    }

    fn validate(&self, binding: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let root = Cursor::root(binding);
        let role = root.field("roleRef");
        errs.one_of(&role.field("apiGroup"), &[GROUP]);
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        errs.one_of(&role.field("kind"), kinds);
        let name = role.field("name");
        if errs.present(&name, "") {
            errs.each(&name, path_segment(text(&name)));
        }
        for subject in root.field("subjects").elements() {
            validate_subject(&subject, self.namespaced, &mut errs);
        }
        errs
    }

    fn validate_update(&self, binding: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(binding);
        let role = Cursor::root(binding).field("roleRef");
        if !same(role.value, &old["roleRef"]) {
            errs.invalid_struct(&role, "cannot change roleRef");
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn row(&self, binding: &Value, now: Now) -> Option<Vec<Cell>> {
        let role = format!("{}/{}", binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
        let named = |kind: &str| {
            let of_kind = binding["subjects"].items().iter().filter(|s| s.str_at(&["kind"]) == kind);
            let names: Vec<String> = of_kind
                .map(|s| match s.str_at(&["namespace"]) {
                    "" => s.str_at(&["name"]).to_owned(),
                    ns => format!("{ns}/{}", s.str_at(&["name"])),
                })
                .collect();
            Value::from(names.join(", "))
        };
        let age = table_cells::created(binding, now);
        Some(vec![binding.name().into(), role.into(), age, named("User"), named("Group"), named("ServiceAccount")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn subjects_and_roles_are_named() {
        let binding = serde_json::from_str(
            r#"{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":""},"subjects":[{"kind":"ServiceAccount","name":"a"},{"kind":"Robot","name":"r"}]}"#,
        )
        .unwrap();
        assert_findings(
            &BindingStrategy { namespaced: false }.validate(&binding),
            &[
                r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#,
                "roleRef.name: Required value",
                "subjects[0].namespace: Required value",
                r#"subjects[1].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group""#,
            ],
        );
    }
}
