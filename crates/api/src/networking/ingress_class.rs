//! IngressClass.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::typed_reference;
use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_label, dns_subdomain};
use crate::validation::{Checks, text};

pub(crate) struct IngressClassStrategy;

const MAX_CONTROLLER: usize = 250;

/// `example.com/path`.
pub(crate) fn domain_prefixed_path(at: &Cursor<'_>, errs: &mut FieldErrors) {
    let Some((domain, path)) = text(at).split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        errs.invalid_text(at, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    for message in dns_subdomain(domain) {
        errs.invalid_value(&at.path, domain, message);
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(good) {
        errs.invalid_value(
            &at.path,
            path,
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        );
    }
}

impl Strategy for IngressClassStrategy {
    fn default(&self, class: &mut Value) {
        if !class.at(&["spec", "parameters"]).is_null() {
            class.set_default(&["spec", "parameters", "scope"], "Cluster");
        }
    }

    fn validate(&self, class: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(class).field("spec");
        let controller = spec.field("controller");
        if errs.present(&controller, "") {
            if text(&controller).len() > MAX_CONTROLLER {
                errs.too_long(&controller.path, MAX_CONTROLLER);
            }
            domain_prefixed_path(&controller, &mut errs);
        }
        let parameters = spec.field("parameters");
        if parameters.is_absent() {
            return errs;
        }
        typed_reference(&parameters, &mut errs);
        let (scope, namespace) = (parameters.field("scope"), parameters.field("namespace"));
        match text(&scope) {
            "Namespace" if namespace.is_absent() => {
                errs.required(&namespace.path, "`parameters.scope` is set to 'Namespace'");
            }
            "Namespace" => errs.each(&namespace, dns_label(text(&namespace))),
            "Cluster" => {
                if !namespace.is_absent() {
                    errs.forbidden(&namespace.path, "`parameters.scope` is set to 'Cluster'");
                }
            }
            _ => {
                errs.one_of(&scope, &["Cluster", "Namespace"]);
            }
        }
        errs
    }

    fn validate_update(&self, class: &Value, old: &Value) -> FieldErrors {
        let controller = |v| Cursor::root(v).fields(&["spec", "controller"]);
        let mut errs = FieldErrors::new();
        errs.immutable(&controller(class), &controller(old));
        errs.extend(self.validate(class));
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, class: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &class["spec"];
        let parameters = &spec["parameters"];
        let shown = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            let kind = parameters.str_at(&["kind"]);
            let kind = match parameters.str_at(&["apiGroup"]) {
                "" => kind.to_owned(),
                group => format!("{kind}.{group}"),
            };
            format!("{kind}/{}", parameters.str_at(&["name"]))
        };
        let controller = spec.str_at(&["controller"]);
        Some(vec![class.name().into(), controller.into(), shown.into(), table_cells::created(class, now)])
    }
}
