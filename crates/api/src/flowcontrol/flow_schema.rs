//! FlowSchema.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::conditions;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, int, same, text};

pub(crate) struct FlowSchemaStrategy;

const DEFAULT_PRECEDENCE: i64 = 1000;
const MAX_PRECEDENCE: i64 = 10_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const NAMESPACE_INTRO: &str = "each member of this list must be '*' or a DNS-1123 label; ";

/// What each kind of subject is described by, in upstream's order.
const SUBJECTS: &[(&str, &str)] = &[("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

fn has_wildcard(list: &Cursor<'_>) -> bool {
    list.items().iter().any(|v| v.as_str() == Some("*"))
}

fn validate_subject(subject: &Cursor<'_>, errs: &mut FieldErrors) {
    let kind = subject.str_at(&["kind"]);
    let Some((_, own)) = SUBJECTS.iter().find(|(name, _)| *name == kind) else {
        errs.one_of(&subject.field("kind"), &["Group", "ServiceAccount", "User"]);
        return;
    };
    let described = subject.field(own);
    if described.is_absent() {
        errs.required(&described.path, format!("{own} is required when subject kind is '{kind}'"));
    } else {
        let (name, namespace) = (described.field("name"), described.field("namespace"));
        if errs.present(&name, "") && *own == "serviceAccount" && text(&name) != "*" {
            errs.each(&name, dns_subdomain(text(&name)));
        }
        if *own == "serviceAccount" && errs.present(&namespace, "must specify namespace for service account") {
            errs.each(&namespace, dns_label(text(&namespace)));
        }
    }
    for (other, field) in SUBJECTS.iter().filter(|(_, field)| field != own) {
        if !subject[field].is_null() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errs.forbidden(&subject.path.child(field), why);
        }
    }
}

fn validate_verbs(rule: &Cursor<'_>, errs: &mut FieldErrors) {
    let verbs = rule.field("verbs");
    if !errs.present(&verbs, "verbs must contain at least one value") {
        return;
    }
    if has_wildcard(&verbs) {
        if verbs.items().len() > 1 {
            errs.invalid(&verbs, "if '*' is present, must not specify other verbs");
        }
    } else if !verbs.items().iter().all(|v| VERBS.contains(&v.as_str().unwrap_or_default())) {
        errs.not_supported(&verbs, VERBS);
    }
}

fn validate_resource_rule(rule: &Cursor<'_>, errs: &mut FieldErrors) {
    validate_verbs(rule, errs);
    let (groups, resources) = (rule.field("apiGroups"), rule.field("resources"));
    for (list, none, others) in [
        (&groups, "resource rules must supply at least one api group", "api groups"),
        (&resources, "resource rules must supply at least one resource", "resources"),
    ] {
        if errs.present(list, none) && list.items().len() > 1 && has_wildcard(list) {
            errs.invalid(list, format!("if '*' is present, must not specify other {others}"));
        }
    }
    let namespaces = rule.field("namespaces");
    if namespaces.items().is_empty() {
        if rule["clusterScope"].as_bool() != Some(true) {
            errs.required(
                &namespaces.path,
                "resource rules that are not cluster scoped must supply at least one namespace",
            );
        }
    } else if has_wildcard(&namespaces) {
        if namespaces.items().len() > 1 {
            errs.invalid(&namespaces, "if '*' is present, must not specify other namespaces");
        }
    } else {
        for namespace in namespaces.elements() {
            let wrong = dns_label(text(&namespace)).into_iter().map(|m| format!("{NAMESPACE_INTRO}{m}"));
            errs.each(&namespace, wrong.collect());
        }
    }
}

/// Why a path cannot be matched.
fn bad_url(path: &str) -> Option<&'static str> {
    match path {
        "" => return Some("must not be empty"),
        "/" => return None,
        _ => {}
    }
    let stars = path.matches('*').count();
    [
        (!path.starts_with('/'), "must start with slash"),
        (path.contains(' '), "must not contain white-space"),
        (path.contains("//"), "must not contain double slash"),
        (stars > 1 || (stars == 1 && !path.ends_with("/*")), "wildcard can only do suffix matching"),
    ]
    .into_iter()
    .find(|(bad, _)| *bad)
    .map(|(_, why)| why)
}

fn validate_url_rule(rule: &Cursor<'_>, errs: &mut FieldErrors) {
    validate_verbs(rule, errs);
    let urls = rule.field("nonResourceURLs");
    if !errs.present(&urls, "nonResourceURLs must contain at least one value") {
        return;
    }
    if has_wildcard(&urls) {
        if urls.items().len() > 1 {
            errs.invalid(&urls, "if '*' is present, must not specify other non-resource URLs");
        }
        return;
    }
    for url in urls.elements() {
        if let Some(why) = bad_url(text(&url)) {
            errs.invalid(&url, why);
        }
    }
}

fn validate_spec(schema: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(schema).field("spec");
    let precedence = spec.field("matchingPrecedence");
    let given = int(&precedence);
    if given <= 0 {
        errs.invalid_int(&precedence, "must be a positive value");
    }
    if given > MAX_PRECEDENCE {
        errs.invalid(&precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if given == 1 && schema.name() != "exempt" {
        errs.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.field("distinguisherMethod");
    let known = ["ByNamespace", "ByUser"];
    if !method.is_absent() && !known.contains(&method.str_at(&["type"])) {
        let shown = crate::validation::go_struct(method.value);
        errs.not_supported(&Cursor::new(method.path.child("type"), &shown), &known);
    }
    let level = spec.fields(&["priorityLevelConfiguration", "name"]);
    if errs.present(&level, "must reference a priority level") {
        errs.each(&level, dns_subdomain(text(&level)));
    }
    for rule in spec.field("rules").elements() {
        let subjects = rule.field("subjects");
        errs.present(&subjects, "subjects must contain at least one value");
        for subject in subjects.elements() {
            validate_subject(&subject, &mut errs);
        }
        let (resources, urls) = (rule.field("resourceRules"), rule.field("nonResourceRules"));
        if resources.items().is_empty() && urls.items().is_empty() {
            errs.required(&rule.path, "at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        for resource in resources.elements() {
            validate_resource_rule(&resource, &mut errs);
        }
        for url in urls.elements() {
            validate_url_rule(&url, &mut errs);
        }
    }
    errs
}

/// The schemas that every server has, whose specs are fixed.
fn mandatory(name: &str) -> Option<Value> {
    let everything = |groups: &[&str]| {
        let subjects: Vec<Value> = groups
            .iter()
            .map(|g| Value::from([("kind", "Group".into()), ("group", Value::from([("name", (*g).into())]))]))
            .collect();
        let star = || Value::from(vec![Value::from("*")]);
        let resources = Value::from([
            ("verbs", star()),
            ("apiGroups", star()),
            ("resources", star()),
            ("clusterScope", true.into()),
            ("namespaces", star()),
        ]);
        let urls = Value::from([("verbs", star()), ("nonResourceURLs", star())]);
        Value::from([
            ("subjects", subjects.into()),
            ("resourceRules", vec![resources].into()),
            ("nonResourceRules", vec![urls].into()),
        ])
    };
    let (level, precedence, method, groups): (_, i64, _, &[&str]) = match name {
        "exempt" => ("exempt", 1, None, &["system:masters"]),
        "catch-all" => ("catch-all", 10_000, Some("ByUser"), &["system:unauthenticated", "system:authenticated"]),
        _ => return None,
    };
    let mut spec = Value::from([
        ("priorityLevelConfiguration", Value::from([("name", level.into())])),
        ("matchingPrecedence", precedence.into()),
        ("rules", vec![everything(groups)].into()),
    ]);
    if let Some(method) = method {
        spec.set(&["distinguisherMethod", "type"], method);
    }
    Some(spec)
}

impl Strategy for FlowSchemaStrategy {
    fn default(&self, schema: &mut Value) {
        let precedence = schema.entry(&["spec", "matchingPrecedence"]);
        if int(precedence) == 0 {
            *precedence = DEFAULT_PRECEDENCE.into();
        }
    }

    fn prepare_for_create(&self, schema: &mut Value) {
        schema.set(&["status"], Value::object());
    }

    fn validate(&self, schema: &Value) -> FieldErrors {
        let mut errs = validate_spec(schema);
        let root = Cursor::root(schema);
        if let Some(fixed) = mandatory(schema.name())
            && !same(&schema["spec"], &fixed)
        {
            let why = format!("spec of '{}' must equal the fixed value", schema.name());
            errs.invalid_struct(&root.field("spec"), why);
        }
        conditions(&root.fields(&["status", "conditions"]), &mut errs);
        errs
    }

    fn validate_status_update(&self, schema: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        conditions(&Cursor::root(schema).fields(&["status", "conditions"]), &mut errs);
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, schema: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &schema["spec"];
        let conditions = schema.at(&["status", "conditions"]).items();
        let dangling = conditions.iter().find(|c| c.str_at(&["type"]) == "Dangling");
        Some(vec![
            schema.name().into(),
            spec.str_at(&["priorityLevelConfiguration", "name"]).into(),
            int(&spec["matchingPrecedence"]).into(),
            spec.at(&["distinguisherMethod", "type"]).as_str().unwrap_or("<none>").into(),
            table_cells::created(schema, now),
            dangling.map_or("?", |c| c.str_at(&["status"])).into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_match_by_suffix() {
        assert_eq!(bad_url("/healthz/*"), None);
        assert_eq!(bad_url("/a*"), Some("wildcard can only do suffix matching"));
        assert_eq!(bad_url("a"), Some("must start with slash"));
    }

    #[test]
    fn what_every_server_has_is_fixed() {
        let schema = Value::from([
            ("metadata", Value::from([("name", "catch-all".into())])),
            ("spec", mandatory("catch-all").unwrap()),
        ]);
        assert!(FlowSchemaStrategy.validate(&schema).is_empty());
        let mut other = schema.clone();
        other.set(&["spec", "matchingPrecedence"], 9000);
        assert_eq!(FlowSchemaStrategy.validate(&other).0.len(), 1);
    }
}
