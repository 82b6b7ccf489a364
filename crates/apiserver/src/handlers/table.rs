//! Tables: what `kubectl get` shows.

use api::ResourceDef;
use api::strategy::Now;
use apimachinery::Value;
use apimachinery::status::Status;
use jiff::Timestamp;

use super::respond::metadata_of;
use crate::query::Query;

/// What of the object comes with each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IncludeObject {
    None,
    Metadata,
    Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub include: IncludeObject,
}

impl Options {
    /// # Errors
    /// 400 for a choice that there is not.
    pub(super) fn parse(query: &Query) -> Result<Self, Status> {
        let include = match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other => {
                return Err(Status::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                     'Object', 'None', or empty"
                )));
            }
        };
        Ok(Options { include })
    }
}

/// A Table of a resource without rows.
#[must_use]
pub(super) fn empty(def: &ResourceDef, version: &str) -> Value {
    let column = |name: &str, kind: &str, format: &str, priority: i64| {
        Value::from([
            ("name", name.into()),
            ("type", kind.into()),
            ("format", format.into()),
            ("description", "".into()),
            ("priority", priority.into()),
        ])
    };
    let columns = if def.columns.is_empty() {
        vec![column("Name", "string", "name", 0), column("Created At", "date", "", 0)]
    } else {
        def.columns.iter().map(|c| column(&c.name, &c.kind, &c.format, c.priority)).collect()
    };
    Value::from([
        ("kind", "Table".into()),
        ("apiVersion", format!("meta.k8s.io/{version}").into()),
        ("metadata", Value::object()),
        ("columnDefinitions", columns.into()),
    ])
}

/// The row of an object (in the version that is served).
#[must_use]
pub(super) fn row(def: &ResourceDef, object: &Value, options: Options, version: &str) -> Value {
    let now = Now(Timestamp::now().as_second());
    let cells = def.strategy.row(object, now).unwrap_or_else(|| generic_cells(def, object));
    row_of(cells, object, options, version)
}

/// A Table of one object that is not stored.
///
/// # Errors
/// 400 for wrong options.
pub(crate) fn of_one(
    def: &ResourceDef,
    (cells, object): (Vec<Value>, &Value),
    query: &Query,
    version: &str,
) -> Result<Value, Status> {
    let options = Options::parse(query)?;
    let mut table = empty(def, version);
    table.set(&["rows"], vec![row_of(cells, object, options, version)]);
    Ok(table)
}

fn row_of(cells: Vec<Value>, object: &Value, options: Options, version: &str) -> Value {
    let shown = match options.include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => metadata_of(object, version),
        IncludeObject::Object => object.clone(),
    };
    Value::from([("cells", cells.into()), ("object", shown)])
}

/// Name and creation, under whatever columns there are.
fn generic_cells(def: &ResourceDef, object: &Value) -> Vec<Value> {
    let created = object.meta("creationTimestamp").clone();
    if def.columns.is_empty() {
        return vec![object.name().into(), created];
    }
    def.columns
        .iter()
        .map(|column| match column.name.as_str() {
            "Name" => object.name().into(),
            "Created At" | "Age" => created.clone(),
            _ => Value::from("<none>"),
        })
        .collect()
}
