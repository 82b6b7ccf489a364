//! ValidatingWebhookConfiguration and MutatingWebhookConfiguration.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::match_conditions;
use super::match_rules::{default_rules, validate_rule};
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::labels::{label_selector, selector_is_valid};
use crate::validation::names::{dns_1035_label, dns_subdomain};
use crate::validation::{Checks, int, text};

pub(crate) struct WebhookConfigurationStrategy {
    pub mutating: bool,
}

const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
const NO_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const FORM: &str = "; desired format: https://host[/path]";

/// What an old configuration already breaks, the new one may go on breaking.
struct Strict {
    effects: bool,
    versions: bool,
    names: bool,
    labels: bool,
}

impl Strict {
    fn for_change_of(old: &Value) -> Self {
        let hooks: Vec<Cursor<'_>> = Cursor::root(old).field("webhooks").elements().collect();
        let names: Vec<&str> = hooks.iter().map(|h| h.value.str_at(&["name"])).collect();
        let known = |h: &Cursor<'_>| {
            let versions = h["admissionReviewVersions"].items();
            versions.is_empty() || versions.iter().any(|v| REVIEW_VERSIONS.contains(&v.as_str().unwrap_or_default()))
        };
        Strict {
            effects: hooks.iter().all(|h| NO_EFFECTS.contains(&h.str_at(&["sideEffects"]))),
            versions: hooks.iter().all(known),
            names: names.iter().enumerate().all(|(i, name)| !names[..i].contains(name)),
            labels: hooks
                .iter()
                .all(|h| ["namespaceSelector", "objectSelector"].iter().all(|f| selector_is_valid(&h.field(f)))),
        }
    }
}

/// A name with at least three segments.
fn qualified(name: &Cursor<'_>, errs: &mut FieldErrors) {
    if !errs.present(name, "") {
        return;
    }
    let wrong = dns_subdomain(text(name));
    if !wrong.is_empty() {
        errs.each(name, wrong);
    } else if text(name).split('.').count() < 3 {
        errs.invalid(name, "should be a domain with at least three segments separated by dots");
    }
}

/// Where a webhook is: a URL or a Service.
pub(crate) fn validate_client_config(client: &Cursor<'_>, errs: &mut FieldErrors) {
    let (url, service) = (client.field("url"), client.field("service"));
    match (url.is_absent(), service.is_absent()) {
        (false, true) => validate_url(&url, errs),
        (true, false) => validate_service(&service, errs),
        _ => errs.required(&client.path, "exactly one of url or service is required"),
    }
}

fn validate_url(at: &Cursor<'_>, errs: &mut FieldErrors) {
    let url = text(at);
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut finding = |bad: bool, part: &str, why: String| {
        if bad {
            errs.invalid_value(&at.path, part, why);
        }
    };
    finding(scheme != "https", scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    finding(host.is_empty(), host, format!("host must be specified{FORM}"));
    finding(!user.is_empty(), user, "user information is not permitted in the URL".to_owned());
    finding(!fragment.is_empty(), fragment, "fragments are not permitted in the URL".to_owned());
    finding(!query.is_empty(), query, "query parameters are not permitted in the URL".to_owned());
}

fn validate_service(service: &Cursor<'_>, errs: &mut FieldErrors) {
    errs.present(&service.field("name"), "service name is required");
    errs.present(&service.field("namespace"), "service namespace is required");
    let port = service.field("port");
    if !(1..=65535).contains(&int(&port)) {
        errs.invalid_int(&port, "port is not valid: must be between 1 and 65535, inclusive");
    }
    let path = service.field("path");
    match text(&path) {
        "" | "/" => {}
        "//" => errs.invalid(&path, "segment[0] may not be empty"),
        given => {
            if !given.starts_with('/') {
                errs.invalid(&path, "must start with a '/'");
            }
            let inner = given.get(1..).unwrap_or_default();
            for (i, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
                if step.is_empty() {
                    errs.invalid(&path, format!("segment[{i}] may not be empty"));
                    continue;
                }
                for message in dns_subdomain(step) {
                    errs.invalid(&path, format!("segment[{i}]: {message}"));
                }
            }
        }
    }
}

fn validate_versions(list: &Cursor<'_>, strict: &Strict, errs: &mut FieldErrors) {
    let all = REVIEW_VERSIONS.join(", ");
    if list.items().is_empty() {
        errs.required(&list.path, format!("must specify one of {all}"));
        return;
    }
    for (i, version) in list.elements().enumerate() {
        if list.items()[..i].contains(version.value) {
            errs.invalid(&version, "duplicate version");
        } else {
            errs.each(&version, dns_1035_label(text(&version)));
        }
    }
    if strict.versions && !list.elements().any(|v| REVIEW_VERSIONS.contains(&text(&v))) {
        errs.invalid(list, format!("must include at least one of {all}"));
    }
}

fn validate_hook(hook: &Cursor<'_>, mutating: bool, strict: &Strict, errs: &mut FieldErrors) {
    qualified(&hook.field("name"), errs);
    for rule in hook.field("rules").elements() {
        validate_rule(&rule, errs);
    }
    let mut choices: Vec<(&str, &[&str])> =
        vec![("failurePolicy", &["Fail", "Ignore"]), ("matchPolicy", &["Equivalent", "Exact"])];
    if mutating {
        choices.push(("reinvocationPolicy", &["IfNeeded", "Never"]));
    }
    for (field, known) in choices {
        let choice = hook.field(field);
        if !choice.is_absent() {
            errs.one_of(&choice, known);
        }
    }
    let effects = hook.field("sideEffects");
    let known: &[&str] = if strict.effects { NO_EFFECTS } else { &["None", "NoneOnDryRun", "Some", "Unknown"] };
    if effects.is_absent() {
        errs.required(&effects.path, format!("must specify one of {}", known.join(", ")));
    } else {
        errs.one_of(&effects, known);
    }
    let timeout = hook.field("timeoutSeconds");
    if !timeout.is_absent() && !(1..=30).contains(&int(&timeout)) {
        errs.invalid(&timeout, "the timeout value must be between 1 and 30 seconds");
    }
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(errs, &hook.field(field), strict.labels);
    }
    validate_client_config(&hook.field("clientConfig"), errs);
    match_conditions(&hook.field("matchConditions"), errs);
    validate_versions(&hook.field("admissionReviewVersions"), strict, errs);
}

impl WebhookConfigurationStrategy {
    fn validate_strictly(&self, configuration: &Value, strict: &Strict) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let mut names: Vec<&str> = Vec::new();
        for hook in Cursor::root(configuration).field("webhooks").elements() {
            validate_hook(&hook, self.mutating, strict, &mut errs);
            let name = hook.field("name");
            if strict.names && !text(&name).is_empty() {
                if names.contains(&text(&name)) {
                    errs.duplicate(&name.path, text(&name));
                }
                names.push(text(&name));
            }
        }
        errs
    }
}

impl Strategy for WebhookConfigurationStrategy {
    fn default(&self, configuration: &mut Value) {
        let Some(hooks) = configuration.get_mut("webhooks") else { return };
        for hook in hooks.items_mut() {
            hook.set_default(&["failurePolicy"], "Fail");
            hook.set_default(&["matchPolicy"], "Equivalent");
            hook.set_default(&["namespaceSelector"], Value::object());
            hook.set_default(&["objectSelector"], Value::object());
            hook.set_default(&["timeoutSeconds"], 10);
            if self.mutating {
                hook.set_default(&["reinvocationPolicy"], "Never");
            }
            if !hook.at(&["clientConfig", "service"]).is_null() {
                hook.set_default(&["clientConfig", "service", "port"], 443);
            }
            default_rules(hook, "rules");
        }
    }

    fn validate(&self, configuration: &Value) -> FieldErrors {
        self.validate_strictly(configuration, &Strict { effects: true, versions: true, names: true, labels: true })
    }

    fn validate_update(&self, configuration: &Value, old: &Value) -> FieldErrors {
        self.validate_strictly(configuration, &Strict::for_change_of(old))
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn generation_changed(&self, new: &Value, old: &Value) -> bool {
        new["webhooks"] != old["webhooks"]
    }

    fn row(&self, configuration: &Value, now: Now) -> Option<Vec<Cell>> {
        let hooks = i64::try_from(configuration["webhooks"].items().len()).unwrap_or_default();
        Some(vec![configuration.name().into(), hooks.into(), table_cells::created(configuration, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn webhooks_are_reachable_and_named() {
        let configuration = serde_json::from_str(
            r#"{"webhooks":[{"name":"a.b","clientConfig":{"url":"http://u@h?q#f"},"admissionReviewVersions":["v2"],"sideEffects":"Some"}]}"#,
        )
        .unwrap();
        assert_findings(
            &WebhookConfigurationStrategy { mutating: false }.validate(&configuration),
            &[
                r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
                r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
                r#"webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
                r#"webhooks[0].clientConfig.url: Invalid value: "u": user information is not permitted in the URL"#,
                r#"webhooks[0].clientConfig.url: Invalid value: "f": fragments are not permitted in the URL"#,
                r#"webhooks[0].clientConfig.url: Invalid value: "q": query parameters are not permitted in the URL"#,
                r#"webhooks[0].admissionReviewVersions: Invalid value: ["v2"]: must include at least one of v1, v1beta1"#,
            ],
        );
    }
}
