//! `metadata.managedFields`: who owns what.

use compact_str::CompactString;

use super::fields::FieldSet;
use crate::Value;

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Apply,
    Update,
}

/// Who a manager is. One that applies is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerId {
    pub manager: CompactString,
    pub operation: Operation,
    /// Empty for those that apply.
    pub api_version: CompactString,
    pub subresource: CompactString,
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) id: ManagerId,
    /// In which version the fields are meant.
    pub(super) version: CompactString,
    pub(super) fields: FieldSet,
    pub(super) time: Option<CompactString>,
}

/// The managers of an object, each once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managers(pub(super) Vec<Entry>);

impl ManagerId {
    pub(super) fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        ManagerId {
            manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
            operation,
            api_version: if operation == Operation::Apply { CompactString::default() } else { api_version.into() },
            subresource: subresource.into(),
        }
    }

    /// As messages name it: `"kubectl" using v1`.
    pub(super) fn shown(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Managers {
    /// From `metadata.managedFields`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(managed_fields: &Value) -> Result<Self, String> {
        let mut managers = Managers::default();
        for entry in managed_fields.items() {
            let operation = match entry.str_at(&["operation"]) {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("error decoding manager from managed fields: operation is none".to_owned()),
            };
            match entry.str_at(&["fieldsType"]) {
                "FieldsV1" => {}
                "" => return Err("missing fieldsType in managed fields entry".to_owned()),
                other => return Err(format!("invalid fieldsType \"{other}\" in managed fields entry")),
            }
            let fields = match &entry["fieldsV1"] {
                Value::Null => FieldSet::default(),
                fields => {
                    FieldSet::from_value(fields).ok_or_else(|| "error decoding set from managed fields".to_owned())?
                }
            };
            let text = |name| CompactString::from(entry.str_at(&[name]));
            managers.put(Entry {
                id: ManagerId::new(entry.str_at(&["manager"]), operation, &text("apiVersion"), &text("subresource")),
                version: text("apiVersion"),
                fields,
                time: entry["time"].as_str().map(CompactString::from),
            });
        }
        Ok(managers)
    }

    /// As `metadata.managedFields`: appliers first, then by time.
    pub(super) fn encode(mut self) -> Value {
        self.0.sort_by(|a, b| {
            let key = |e: &Entry| (e.id.operation, e.time.clone().unwrap_or_default());
            key(a).cmp(&key(b)).then_with(|| {
                (&a.id.manager, &a.version, &a.id.subresource).cmp(&(&b.id.manager, &b.version, &b.id.subresource))
            })
        });
        Value::Array(self.0.into_iter().map(Entry::encode).collect())
    }

    pub(super) fn get(&self, id: &ManagerId) -> Option<&Entry> {
        self.0.iter().find(|e| e.id == *id)
    }

    pub(super) fn put(&mut self, entry: Entry) {
        match self.0.iter_mut().find(|e| e.id == entry.id) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    pub(super) fn drop_empty(&mut self) {
        self.0.retain(|e| !e.fields.is_empty());
    }
}

impl Entry {
    fn encode(self) -> Value {
        let mut value = Value::from([
            ("apiVersion", Value::String(self.version)),
            ("fieldsType", "FieldsV1".into()),
            ("fieldsV1", self.fields.to_value()),
            ("manager", Value::String(self.id.manager)),
            ("operation", if self.id.operation == Operation::Apply { "Apply" } else { "Update" }.into()),
        ]);
        if let Some(time) = self.time {
            value.set(&["time"], time);
        }
        if !self.id.subresource.is_empty() {
            value.set(&["subresource"], self.id.subresource);
        }
        value
    }
}
