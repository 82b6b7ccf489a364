//! APIService.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::names::{dns_1035_label, dns_subdomain, path_segment};
use crate::validation::{Checks, int, text};

pub(crate) struct ApiServiceStrategy;

const MAX_GROUP_PRIORITY: i64 = 20_000;
const MAX_VERSION_PRIORITY: i64 = 1000;

impl Strategy for ApiServiceStrategy {
    fn default(&self, service: &mut Value) {
        if !service.at(&["spec", "service"]).is_null() {
            service.set_default(&["spec", "service", "port"], 443);
        }
    }

    fn prepare_for_create(&self, service: &mut Value) {
        service.set(&["status"], Value::object());
        if service.at(&["spec", "service"]).is_null() {
            // What this server serves itself is there from the start.
            let mut available = Value::from([
                ("type", "Available".into()),
                ("status", "True".into()),
                ("reason", "Local".into()),
                ("message", "Local APIServices are always available".into()),
            ]);
            let now = service.meta("creationTimestamp").clone();
            available.set(&["lastTransitionTime"], now);
            service.set(&["status", "conditions"], vec![available]);
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        if prefix { Vec::new() } else { path_segment(name) }
    }

    fn validate(&self, service: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(service).field("spec");
        let (group, version) = (spec.field("group"), spec.field("version"));
        let wanted = format!("{}.{}", text(&version), text(&group));
        if service.name() != wanted {
            let path = Path::new("metadata.name");
            errs.invalid_value(&path, service.name(), format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
        }
        if !text(&group).is_empty() {
            let wrong = dns_subdomain(text(&group));
            if !wrong.is_empty() {
                errs.invalid(&group, wrong.join(","));
            }
        }
        let wrong = dns_1035_label(text(&version));
        if !wrong.is_empty() {
            errs.invalid_text(&version, wrong.join(","));
        }
        for (field, max) in [("groupPriorityMinimum", MAX_GROUP_PRIORITY), ("versionPriority", MAX_VERSION_PRIORITY)] {
            let priority = spec.field(field);
            if !(1..=max).contains(&int(&priority)) {
                errs.invalid_int(&priority, format!("must be positive and less than {max}"));
            }
        }
        let (server, bundle, insecure) =
            (spec.field("service"), spec.field("caBundle"), spec.field("insecureSkipTLSVerify"));
        let skips = insecure.as_bool() == Some(true);
        let bundled = !text(&bundle).is_empty();
        if server.is_absent() {
            if bundled {
                let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text(&bundle));
                let size = bytes.map_or(0, |b| b.len());
                errs.invalid_value(&bundle.path, format!("{size} bytes"), "local APIServices may not have a caBundle");
            }
            if skips {
                errs.invalid(&insecure, "local APIServices may not have insecureSkipTLSVerify");
            }
            return errs;
        }
        errs.present(&server.field("namespace"), "");
        errs.present(&server.field("name"), "");
        let port = server.field("port");
        if !(1..=65535).contains(&int(&port)) {
            errs.invalid_int(&port, "port is not valid: must be between 1 and 65535, inclusive");
        }
        if skips && bundled {
            errs.invalid(&insecure, "may not be true if caBundle is present");
        }
        errs
    }

    fn validate_status_update(&self, service: &Value, _: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        for condition in Cursor::root(service).fields(&["status", "conditions"]).elements() {
            let status = Cursor::new(Path::new("status.conditions").child("status"), &condition.value["status"]);
            errs.one_of(&status, &["True", "False", "Unknown"]);
        }
        errs
    }

    fn row(&self, service: &Value, now: Now) -> Option<Vec<Cell>> {
        let backend = service.at(&["spec", "service"]);
        let server = if backend.is_null() {
            "Local".to_owned()
        } else {
            format!("{}/{}", backend.str_at(&["namespace"]), backend.str_at(&["name"]))
        };
        let conditions = service.at(&["status", "conditions"]).items();
        let available = match conditions.iter().find(|c| c.str_at(&["type"]) == "Available") {
            None => "Unknown".to_owned(),
            Some(c) if c.str_at(&["status"]) == "True" => "True".to_owned(),
            Some(c) => format!("{} ({})", c.str_at(&["status"]), c.str_at(&["reason"])),
        };
        Some(vec![service.name().into(), server.into(), available.into(), table_cells::created(service, now)])
    }
}
