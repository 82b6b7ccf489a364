//! Ownership through `scale`: a Scale owns one field, the replicas, whatever that is called in the object behind it.

use compact_str::CompactString;

use super::fields::{FieldSet, field};
use super::managed::{Entry, ManagerId, Managers, Operation};
use crate::Value;

const SCALE_VERSION: &str = "autoscaling/v1";
const REPLICAS_OF_SCALE: [&str; 2] = ["spec", "replicas"];

/// Where the versions of a kind have their replicas.
pub struct ScaleMapping<'a> {
    /// Each version that exists (`apps/v1`) and the field there; `None` for a version without scale.
    pub paths: &'a [(CompactString, Option<Vec<CompactString>>)],
    /// The version of the request.
    pub api_version: &'a str,
}

impl ScaleMapping<'_> {
    /// The outer `None`: there is no such version.
    fn path(&self, api_version: &str) -> Option<Option<Vec<CompactString>>> {
        let (_, path) = self.paths.iter().find(|(version, _)| version == api_version)?;
        Some(path.as_ref().map(|path| path.iter().map(|name| field(name)).collect()))
    }

    /// The managers of an object's replicas, as those of its Scale.
    #[must_use]
    pub fn of_scale(&self, managed_fields: &Value) -> Value {
        let managers = Managers::decode(managed_fields).unwrap_or_default();
        let owners = managers
            .0
            .into_iter()
            .filter(|entry| self.path(&entry.version).flatten().is_some_and(|path| entry.fields.contains(&path)));
        let entries = owners.map(|entry| Entry {
            id: in_version(entry.id, SCALE_VERSION),
            version: SCALE_VERSION.into(),
            fields: FieldSet::of(&[&REPLICAS_OF_SCALE.join(".")]),
            time: entry.time,
        });
        Managers(entries.collect()).encode()
    }

    /// The managers of an object, once those of its Scale have changed.
    #[must_use]
    pub fn of_object(&self, managed_fields: &Value, of_scale: &Value) -> Value {
        let before = Managers::decode(managed_fields).unwrap_or_default();
        let mut scalers = Managers::decode(of_scale).unwrap_or_default().0;
        let mut after = Managers::default();
        for mut entry in before.0 {
            match self.path(&entry.version) {
                None => continue,
                Some(Some(path)) if entry.fields.contains(&path) => {
                    let same = in_version(entry.id.clone(), SCALE_VERSION);
                    match scalers.iter().position(|scaler| scaler.id == same) {
                        Some(still) => drop(scalers.swap_remove(still)),
                        None => entry.fields.subtract(&FieldSet::of_path(&path)),
                    }
                }
                Some(_) => {}
            }
            after.put(entry);
        }
        if let Some(path) = self.path(self.api_version).flatten() {
            for scaler in scalers.into_iter().filter(|scaler| !scaler.fields.is_empty()) {
                after.put(Entry {
                    id: in_version(scaler.id, self.api_version),
                    version: self.api_version.into(),
                    fields: FieldSet::of_path(&path),
                    // Upstream forgets when a scaler came.
                    time: None,
                });
            }
        }
        after.drop_empty();
        after.encode()
    }
}

fn in_version(mut id: ManagerId, api_version: &str) -> ManagerId {
    if id.operation == Operation::Update {
        id.api_version = api_version.into();
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(paths: &[(CompactString, Option<Vec<CompactString>>)]) -> ScaleMapping<'_> {
        ScaleMapping { paths, api_version: "apps/v1" }
    }

    fn entry(manager: &str, operation: &str, version: &str, sub: &str, fields: &str) -> String {
        let sub = if sub.is_empty() { String::new() } else { format!(r#","subresource":"{sub}""#) };
        format!(
            r#"{{"manager":"{manager}","operation":"{operation}","apiVersion":"{version}","fieldsType":"FieldsV1","fieldsV1":{fields}{sub}}}"#
        )
    }

    fn list(entries: &[String]) -> Value {
        serde_json::from_str(&format!("[{}]", entries.join(","))).unwrap()
    }

    const BOTH: &str = r#"{"f:spec":{"f:replicas":{},"f:selector":{}}}"#;
    const ONE: &str = r#"{"f:spec":{"f:replicas":{}}}"#;
    const REST: &str = r#"{"f:spec":{"f:selector":{}}}"#;

    fn check(object: &[String], scale: &[String], want: &[String]) {
        let paths = [("apps/v1".into(), Some(vec!["spec".into(), "replicas".into()]))];
        let got = mapping(&paths).of_object(&list(object), &list(scale));
        let names = |v: &Value| v.items().iter().map(|e| serde_json::to_string(e).unwrap()).collect::<Vec<_>>();
        let sorted = |v: &Value| Managers::decode(v).unwrap().encode();
        assert_eq!(names(&got), names(&sorted(&list(want))));
    }

    #[test]
    fn a_scale_shows_who_owns_the_replicas() {
        let paths = [("apps/v1".into(), Some(vec!["spec".into(), "replicas".into()]))];
        let object = [entry("a", "Apply", "apps/v1", "", BOTH), entry("b", "Update", "apps/v1", "", REST)];
        let got = mapping(&paths).of_scale(&list(&object));
        assert_eq!(got, Managers::decode(&list(&[entry("a", "Apply", "autoscaling/v1", "", ONE)])).unwrap().encode());
    }

    #[test]
    fn whoever_scales_takes_the_replicas() {
        let hpa = |version| entry("hpa", "Update", version, "scale", ONE);
        check(
            &[entry("a", "Apply", "apps/v1", "", BOTH)],
            &[hpa("autoscaling/v1")],
            &[entry("a", "Apply", "apps/v1", "", REST), hpa("apps/v1")],
        );
        // An owner that loses its only field is gone, as is one in a version that is gone.
        check(
            &[entry("a", "Apply", "apps/v1", "", ONE), entry("old", "Update", "apps/v0", "", BOTH)],
            &[hpa("autoscaling/v1")],
            &[hpa("apps/v1")],
        );
        // Whoever still owns them is left alone.
        check(
            &[entry("a", "Apply", "apps/v1", "", BOTH), hpa("apps/v1")],
            &[entry("a", "Apply", "autoscaling/v1", "", ONE), hpa("autoscaling/v1")],
            &[entry("a", "Apply", "apps/v1", "", BOTH), hpa("apps/v1")],
        );
    }
}
