//! The hooks in which a kind states its own rules; each has a default, so that a kind states nothing else.
//!
//! The registry calls them in this order. Create: `default`, mutating admission, `default` again, `prepare_for_create`,
//! `validate`, `canonicalize`. Update: the same with `prepare_for_update` and `validate_update`; of `status`: with
//! `prepare_for_status_update` and `validate_status_update`.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};
use compact_str::CompactString;

/// A column of a kind's Table. `priority` 0 is shown always, 1 with `-o wide`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `date`, …
    pub kind: String,
    pub format: String,
    pub priority: i64,
}

/// A cell: a string, a number or `null`. Ages are computed from the time that is handed in.
pub type Cell = Value;

/// Seconds since 1970, handed in because this crate reads no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub i64);

/// How a graceful deletion starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The object goes at once (unless finalizers keep it).
    Immediate,
    /// The object gets `deletionTimestamp` and this grace period in seconds, and somebody else finishes the deletion.
    Graceful(i64),
}

pub trait Strategy: Send + Sync {
    /// Fills what the client left out, for the version that is served.
    fn default(&self, _obj: &mut Value) {}

    /// Defaults that need the old object (an update that leaves out what the server had assigned).
    fn default_on_update(&self, _obj: &mut Value, _old: &Value) {}

    /// Drops what a client may not set at creation. The default drops `status` of a kind that has the subresource; the
    /// registry itself sets uid, creationTimestamp and `generation: 1` (see [`Strategy::has_generation`]).
    fn prepare_for_create(&self, _obj: &mut Value) {}

    /// Keeps what a client may not change with an update of the main resource. The registry has already carried over
    /// `metadata` of the system, and `status` of a kind that has the subresource; it raises `generation` itself when
    /// [`Strategy::generation_changed`] says so.
    fn prepare_for_update(&self, _obj: &mut Value, _old: &Value) {}

    /// Before an update of `status`: the registry has already carried over everything but `status` and the parts of
    /// `metadata` that upstream lets through.
    fn prepare_for_status_update(&self, _obj: &mut Value, _old: &Value) {}

    /// Writes the time (RFC 3339, seconds) where a kind records when something changed. Called after the hooks that
    /// prepare, for every write; `old` is `None` at creation.
    fn stamp(&self, _obj: &mut Value, _old: Option<&Value>, _now: &str) {}

    fn validate(&self, _obj: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Rules for a change; includes the rules for the new object where upstream applies them.
    fn validate_update(&self, obj: &Value, _old: &Value) -> FieldErrors {
        self.validate(obj)
    }

    fn validate_status_update(&self, _obj: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::new()
    }

    /// Rules of `metadata.name`: upstream's message for a bad one, one for each rule broken. `prefix`: it is a
    /// `generateName`.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::strategy::dns_subdomain(name, prefix)
    }

    /// Warnings for the client, in `Warning` headers.
    fn warnings(&self, _obj: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// The last normalisation before storing.
    fn canonicalize(&self, _obj: &mut Value) {}

    /// Whether `metadata.generation` is kept for this kind.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether a change raises `metadata.generation`.
    fn generation_changed(&self, obj: &Value, old: &Value) -> bool {
        obj["spec"] != old["spec"]
    }

    /// Paths that field selectors may name besides `metadata.name` and `metadata.namespace`: the label that clients use
    /// and where the value stands.
    fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[]
    }

    /// The value of a selectable field; an absent one reads as the empty string.
    fn selectable_field(&self, obj: &Value, label: &str) -> Option<CompactString> {
        let (_, path) = self.selectable_fields().iter().find(|(name, _)| *name == label)?;
        Some(match obj.at(path) {
            Value::String(s) => s.clone(),
            Value::Bool(b) => CompactString::from(if *b { "true" } else { "false" }),
            Value::Int(i) => CompactString::from(i.to_string()),
            _ => CompactString::default(),
        })
    }

    /// May an update create the object if it does not exist?
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// May an update come without `resourceVersion`?
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// How a deletion starts; `asked` is the client's `gracePeriodSeconds`.
    fn deletion(&self, _obj: &Value, _asked: Option<i64>) -> Deletion {
        Deletion::Immediate
    }

    /// Without a propagation policy of the client: are dependents orphaned? (Upstream: only for a few old versions.)
    fn orphans_dependents_by_default(&self) -> bool {
        false
    }

    /// A warning for the client that deletes an object and leaves the propagation to the server.
    fn deletion_warning(&self) -> Option<&'static str> {
        None
    }

    /// Converts an object of this version into the storage version, and back.
    fn to_storage(&self, _obj: &mut Value) {}

    fn to_served(&self, _obj: &mut Value) {}

    /// The cells of the Table's row, one for each column of the kind. `None`: name and age, by the generic columns.
    fn row(&self, _obj: &Value, _now: Now) -> Option<Vec<Cell>> {
        None
    }
}

/// The strategy of a kind that has no rules of its own.
pub struct Plain;

impl Strategy for Plain {}

/// Upstream's check of a DNS subdomain (RFC 1123), the usual rule for names.
#[must_use]
pub fn dns_subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name =
        if prefix { name.strip_suffix('-').map_or_else(|| name.to_owned(), |n| format!("{n}a")) } else { name.into() };
    let mut wrong = Vec::new();
    if name.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(l.chars().next())
            && edge(l.chars().next_back())
            && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if !name.split('.').all(label) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
             and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .to_owned(),
        );
    }
    wrong
}

/// Upstream's check of a DNS label (RFC 1123).
#[must_use]
pub fn dns_label(name: &str, prefix: bool) -> Vec<String> {
    let name =
        if prefix { name.strip_suffix('-').map_or_else(|| name.to_owned(), |n| format!("{n}a")) } else { name.into() };
    let mut wrong = Vec::new();
    if name.len() > 63 {
        wrong.push("must be no more than 63 characters".to_owned());
    }
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !(edge(name.chars().next()) && edge(name.chars().next_back()) && name.chars().all(inner)) {
        wrong.push(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
             with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .to_owned(),
        );
    }
    wrong
}

/// A required field of a list of checks; the usual first line of a `validate`.
pub fn require(errs: &mut FieldErrors, at: &Cursor<'_>) -> bool {
    let missing = at.is_empty_value();
    if missing {
        errs.required(&Path::new(at.path.as_str()), "");
    }
    !missing
}
