//! The options that come with a request: `CreateOptions`, `ListOptions`, `DeleteOptions` …, read and checked.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use apimachinery::meta::Gvk;
use apimachinery::status::Status;

use crate::query::Query;

/// What to do with fields that nobody knows, and with fields that come twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// As given, or derived from the user agent.
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Apply only: take over fields of other managers.
    pub force: bool,
    /// As sent, for admission.
    pub sent: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Preconditions,
    pub orphan_dependents: Option<bool>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
    /// As sent, for admission.
    pub sent: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// Options of list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub version_match: Option<VersionMatch>,
    pub limit: usize,
    pub continue_token: String,
    pub timeout_seconds: Option<u64>,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// Which kind of options a write carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    Create,
    Update,
    Patch,
    Apply,
}

impl WriteKind {
    fn options_kind(self) -> &'static str {
        match self {
            WriteKind::Create => "CreateOptions",
            WriteKind::Update => "UpdateOptions",
            WriteKind::Patch | WriteKind::Apply => "PatchOptions",
        }
    }
}

impl WriteOptions {
    /// # Errors
    /// 422 for values that upstream refuses.
    pub fn parse(query: &Query, kind: WriteKind, user_agent: &str) -> Result<Self, Status> {
        let mut errs = FieldErrors::new();
        let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        check_dry_run(&dry_run, &mut errs);
        let manager = query.get("fieldManager").unwrap_or_default();
        check_manager(manager, kind, &mut errs);
        let sent_validation = query.get("fieldValidation").unwrap_or_default();
        let field_validation = match sent_validation {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let value = Value::from(other);
                let at = Cursor::new(Path::new("fieldValidation"), &value);
                errs.not_supported(&at, &["", "Ignore", "Strict", "Warn"]);
                FieldValidation::default()
            }
        };
        let force = query.get("force").map(|v| !matches!(v, "false" | "0" | ""));
        if force.is_some() && kind == WriteKind::Patch {
            errs.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
        }
        invalid_unless_empty(kind.options_kind(), &errs)?;

        let mut sent = Value::from([("kind", kind.options_kind().into()), ("apiVersion", "meta.k8s.io/v1".into())]);
        if !dry_run.is_empty() {
            sent.set(&["dryRun"], vec![Value::from("All")]);
        }
        for (key, value) in [("fieldManager", manager), ("fieldValidation", sent_validation)] {
            if !value.is_empty() {
                sent.set(&[key], value);
            }
        }
        if let Some(force) = force {
            sent.set(&["force"], force);
        }
        let field_manager = if manager.is_empty() { manager_of_agent(user_agent) } else { manager.to_owned() };
        let force = force.unwrap_or_default();
        Ok(WriteOptions { dry_run: !dry_run.is_empty(), field_manager, field_validation, force, sent })
    }
}

/// The manager of a client that names none: its user agent up to the first slash, as far as it can be printed.
fn manager_of_agent(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let printable: String = name.chars().filter(|c| !c.is_control()).collect();
    let end = printable.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= 128).last();
    printable[..end.unwrap_or(0)].to_owned()
}

fn check_dry_run(values: &[&str], errs: &mut FieldErrors) {
    if values.iter().any(|v| *v != "All") {
        let value = Value::from(values.iter().map(|v| Value::from(*v)).collect::<Vec<_>>());
        errs.not_supported(&Cursor::new(Path::new("dryRun"), &value), &["All"]);
    }
}

fn check_manager(manager: &str, kind: WriteKind, errs: &mut FieldErrors) {
    const MAX: usize = 128;
    let path = Path::new("fieldManager");
    if manager.len() > MAX {
        errs.too_long(&path, MAX);
    }
    if let Some(position) = manager.chars().position(char::is_control) {
        errs.invalid_value(
            &path,
            manager,
            format!("should not contain the unprintable character at position {position}"),
        );
    }
    if manager.is_empty() && kind == WriteKind::Apply {
        errs.required(&path, "is required for apply patch");
    }
}

fn invalid_unless_empty(kind: &str, errs: &FieldErrors) -> Result<(), Status> {
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid(&Gvk::new("meta.k8s.io", "v1", kind), "", errs)) }
}

impl DeleteOptions {
    /// From the query alone, when the request has no body.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for values that upstream refuses.
    pub fn from_query(query: &Query) -> Result<Self, Status> {
        let mut sent = Value::from([("kind", "DeleteOptions".into()), ("apiVersion", "meta.k8s.io/v1".into())]);
        if let Some(text) = query.get("gracePeriodSeconds").filter(|v| !v.is_empty()) {
            sent.set(&["gracePeriodSeconds"], parse_int("gracePeriodSeconds", text)?);
        }
        if let Some(text) = query.get("orphanDependents").filter(|v| !v.is_empty()) {
            sent.set(&["orphanDependents"], !matches!(text, "false" | "0"));
        }
        if let Some(policy) = query.get("propagationPolicy").filter(|v| !v.is_empty()) {
            sent.set(&["propagationPolicy"], policy);
        }
        let dry_run: Vec<Value> = query.all("dryRun").filter(|v| !v.is_empty()).map(Value::from).collect();
        if !dry_run.is_empty() {
            sent.set(&["dryRun"], dry_run);
        }
        DeleteOptions::from_value(sent)
    }

    /// From a `DeleteOptions` object.
    ///
    /// # Errors
    /// 422 for values that upstream refuses.
    pub fn from_value(sent: Value) -> Result<Self, Status> {
        let mut errs = FieldErrors::new();
        let orphan_dependents = sent["orphanDependents"].as_bool();
        let policy = &sent["propagationPolicy"];
        let at = Cursor::new(Path::new("propagationPolicy"), policy);
        if orphan_dependents.is_some() && !policy.is_null() {
            errs.invalid(&at, "orphanDependents and deletionPropagation cannot be both set");
        }
        let propagation = match policy.as_str() {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(_) => {
                errs.not_supported(&at, &["Foreground", "Background", "Orphan", "nil"]);
                None
            }
        };
        let dry_run: Vec<&str> = sent["dryRun"].items().iter().filter_map(Value::as_str).collect();
        check_dry_run(&dry_run, &mut errs);
        invalid_unless_empty("DeleteOptions", &errs)?;
        let text = |key: &str| sent["preconditions"][key].as_str().map(str::to_owned);
        Ok(DeleteOptions {
            // A negative period means one second, as upstream has it.
            grace_period_seconds: sent["gracePeriodSeconds"].as_i64().map(|s| if s < 0 { 1 } else { s }),
            preconditions: Preconditions { uid: text("uid"), resource_version: text("resourceVersion") },
            orphan_dependents,
            propagation,
            dry_run: !dry_run.is_empty(),
            sent,
        })
    }
}

impl ListOptions {
    /// # Errors
    /// 400 for what cannot be read, 422 for combinations that upstream refuses.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let text = |key: &str| query.get(key).unwrap_or_default().to_owned();
        let limit = query.get("limit").filter(|v| !v.is_empty()).map_or(Ok(0), |v| parse_int("limit", v))?;
        let timeout = query.get("timeoutSeconds").filter(|v| !v.is_empty());
        let timeout_seconds = timeout.map(|v| parse_int("timeoutSeconds", v)).transpose()?;
        let mut options = ListOptions {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            resource_version: text("resourceVersion"),
            version_match: None,
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: text("continue"),
            timeout_seconds: timeout_seconds.and_then(|s| u64::try_from(s).ok()),
            allow_bookmarks: query.is_true("allowWatchBookmarks"),
            send_initial_events: query.get("sendInitialEvents").map(|v| !matches!(v, "false" | "0")),
        };
        let mut errs = FieldErrors::new();
        let wanted = query.get("resourceVersionMatch").unwrap_or_default();
        options.check_match(wanted, watch, &mut errs);
        options.version_match = match wanted {
            "Exact" => Some(VersionMatch::Exact),
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            _ => None,
        };
        invalid_unless_empty("ListOptions", &errs)?;
        Ok(options)
    }

    fn check_match(&self, wanted: &str, watch: bool, errs: &mut FieldErrors) {
        const SUPPORTED: [&str; 3] = ["Exact", "NotOlderThan", ""];
        let path = Path::new("resourceVersionMatch");
        let sends_initial = Path::new("sendInitialEvents");
        let value = Value::from(wanted);
        let at = Cursor::new(path.clone(), &value);
        if watch {
            if self.send_initial_events.is_some() && wanted.is_empty() {
                errs.forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if !wanted.is_empty() {
                if self.send_initial_events.is_none() {
                    errs.forbidden(
                        &path,
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                if wanted != "NotOlderThan" {
                    errs.not_supported(&at, &["NotOlderThan"]);
                }
                if !self.continue_token.is_empty() {
                    errs.forbidden(&path, "resourceVersionMatch is forbidden with continue");
                }
            }
            return;
        }
        if self.send_initial_events.is_some() {
            errs.forbidden(&sends_initial, "sendInitialEvents is forbidden for list");
        }
        if wanted.is_empty() {
            return;
        }
        if self.resource_version.is_empty() {
            errs.forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !self.continue_token.is_empty() {
            errs.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !SUPPORTED.contains(&wanted) {
            errs.not_supported(&at, &SUPPORTED);
        }
        if wanted == "Exact" && self.resource_version == "0" {
            errs.forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
}

fn parse_int(_name: &str, text: &str) -> Result<i64, Status> {
    text.parse().map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn message<T: std::fmt::Debug>(parsed: Result<T, Status>) -> String {
        parsed.unwrap_err().message
    }

    #[test]
    fn write_options_are_checked() {
        let parse = |q: &str, kind| WriteOptions::parse(&Query::parse(q), kind, "kubectl/v1.33 (linux)");
        let options = parse("dryRun=All&fieldValidation=Strict", WriteKind::Create).unwrap();
        assert!(options.dry_run);
        assert_eq!((options.field_manager.as_str(), options.field_validation), ("kubectl", FieldValidation::Strict));
        assert_eq!(
            message(parse("dryRun=Some", WriteKind::Create)),
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#
        );
        assert_eq!(
            message(parse("", WriteKind::Apply)),
            r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
        );
    }

    #[test]
    fn list_options_are_checked() {
        let parse = |q: &str| ListOptions::parse(&Query::parse(q), false);
        assert_eq!(parse("limit=-1").unwrap().limit, 0);
        assert_eq!(message(parse("limit=many")), r#"strconv.ParseInt: parsing "many": invalid syntax"#);
        assert_eq!(
            message(parse("resourceVersionMatch=Exact")),
            r#"ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"#
        );
    }

    #[test]
    fn a_negative_grace_period_is_a_second() {
        let options = DeleteOptions::from_query(&Query::parse("gracePeriodSeconds=-5")).unwrap();
        assert_eq!(options.grace_period_seconds, Some(1));
    }
}
