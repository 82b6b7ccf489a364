//! Which names a definition gets, and the conditions that say so.

use std::collections::HashMap;

use apimachinery::Value;
use compact_str::CompactString;

/// Plural, singular and short names are of one kind, kinds and kinds of lists of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Space {
    Resource,
    Kind,
}

/// The names that the definitions of one group have been given.
#[derive(Default)]
pub(super) struct Taken {
    owners: HashMap<(Space, CompactString), CompactString>,
    of: HashMap<CompactString, Vec<(Space, CompactString)>>,
}

impl Taken {
    /// Notes what a definition has now; returns whether it has let go of something.
    pub(super) fn record(&mut self, definition: &Value) -> bool {
        let owner = definition.name();
        let names = definition.at(&["status", "acceptedNames"]);
        let single = |space, field| (space, names.str_at(&[field]).into());
        let shorts = names["shortNames"].items().iter().filter_map(Value::as_str);
        let now: Vec<(Space, CompactString)> = [
            single(Space::Resource, "plural"),
            single(Space::Resource, "singular"),
            single(Space::Kind, "kind"),
            single(Space::Kind, "listKind"),
        ]
        .into_iter()
        .chain(shorts.map(|name| (Space::Resource, name.into())))
        .filter(|(_, name): &(Space, CompactString)| !name.is_empty())
        .collect();
        let before = self.of.remove(owner).unwrap_or_default();
        let mut released = false;
        for name in before.iter().filter(|name| !now.contains(name)) {
            released |= self.release(name, owner);
        }
        for name in &now {
            self.owners.entry(name.clone()).or_insert_with(|| owner.into());
        }
        if !now.is_empty() {
            self.of.insert(owner.into(), now);
        }
        released
    }

    fn release(&mut self, name: &(Space, CompactString), owner: &str) -> bool {
        let owned = self.owners.get(name).is_some_and(|o| o == owner);
        if owned {
            self.owners.remove(name);
        }
        owned
    }

    /// Forgets a definition that is gone.
    pub(super) fn forget(&mut self, owner: &str) {
        for name in self.of.remove(owner).unwrap_or_default() {
            self.release(&name, owner);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    fn is_of_another(&self, space: Space, name: &str, definition: &Value) -> bool {
        self.owners.get(&(space, name.into())).is_some_and(|owner| owner != definition.name())
    }
}

/// The status that a definition is to have, given the names of its group; `None` when it has that already.
#[must_use]
pub(super) fn plan(definition: &Value, taken: &Taken, now: &str) -> Option<Value> {
    let wanted = definition.at(&["spec", "names"]);
    let mut names = definition.at(&["status", "acceptedNames"]).clone();
    names.make_object();
    let mut conflict: Option<(&str, String)> = None;
    let fields = [
        ("plural", "PluralConflict", Space::Resource),
        ("singular", "SingularConflict", Space::Resource),
        ("shortNames", "ShortNamesConflict", Space::Resource),
        ("kind", "KindConflict", Space::Kind),
        ("listKind", "ListKindConflict", Space::Kind),
    ];
    for (field, reason, space) in fields {
        let asked: Vec<&str> = match &wanted[field] {
            Value::String(name) => vec![name.as_str()],
            list => list.items().iter().filter_map(Value::as_str).collect(),
        };
        if let Some(first) = asked.iter().find(|name| taken.is_of_another(space, name, definition)) {
            conflict = Some((reason, format!("{first:?} is already in use")));
        } else if wanted[field].is_empty_value() {
            names.remove(&[field]);
        } else {
            names.set(&[field], wanted[field].clone());
        }
    }
    if wanted["categories"].is_empty_value() {
        names.remove(&["categories"]);
    } else {
        names.set(&["categories"], wanted["categories"].clone());
    }
    let mut status = definition["status"].clone();
    for field in ["plural", "kind"] {
        names.set_default(&[field], "");
    }
    status.set(&["acceptedNames"], names);
    let is_established = has_condition(definition, "Established", "True");
    match conflict {
        Some((reason, message)) => {
            set_condition(&mut status, ("NamesAccepted", "False"), reason, &message, now);
            if !is_established {
                set_condition(&mut status, ("Established", "False"), "NotAccepted", "not all names are accepted", now);
            }
        }
        None => {
            set_condition(&mut status, ("NamesAccepted", "True"), "NoConflicts", "no conflicts found", now);
            if !is_established {
                let message = "the initial names have been accepted";
                set_condition(&mut status, ("Established", "True"), "InitialNamesAccepted", message, now);
            }
        }
    }
    (status != definition["status"]).then_some(status)
}

#[must_use]
pub(super) fn has_condition(definition: &Value, ty: &str, status: &str) -> bool {
    let conditions = definition.at(&["status", "conditions"]).items();
    conditions.iter().any(|c| c.str_at(&["type"]) == ty && c.str_at(&["status"]) == status)
}

pub(crate) fn set_condition(status: &mut Value, (ty, value): (&str, &str), reason: &str, message: &str, now: &str) {
    let conditions = status.entry(&["conditions"]).make_array();
    let at = conditions.iter().position(|c| c.str_at(&["type"]) == ty);
    let changed = at.is_none_or(|i| conditions[i].str_at(&["status"]) != value);
    let since = at.filter(|_| !changed).map_or_else(|| now.into(), |i| conditions[i]["lastTransitionTime"].clone());
    let condition = Value::from([
        ("type", ty.into()),
        ("status", value.into()),
        ("lastTransitionTime", since),
        ("reason", reason.into()),
        ("message", message.into()),
    ]);
    match at {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &str, others: &[&str], want: &str) {
        let parse = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        let definition = parse(&format!(r#"{{"spec":{{"names":{names}}},"status":{{}}}}"#));
        let mut taken = Taken::default();
        for other in others {
            let status = format!(r#"{{"metadata":{{"name":"another"}},"status":{{"acceptedNames":{other}}}}}"#);
            taken.record(&parse(&status));
        }
        let status = plan(&definition, &taken, "now").unwrap();
        let shown: Vec<String> = status["conditions"]
            .items()
            .iter()
            .map(|c| format!("{}={} {}", c.str_at(&["type"]), c.str_at(&["status"]), c.str_at(&["reason"])))
            .collect();
        assert_eq!(shown.join(", "), want);
    }

    #[test]
    fn names_are_accepted_unless_another_definition_has_them() {
        let things = r#"{"plural":"things","singular":"thing","kind":"Thing","listKind":"ThingList"}"#;
        check(things, &[], "NamesAccepted=True NoConflicts, Established=True InitialNamesAccepted");
        check(
            r#"{"plural":"widgets","singular":"thing","kind":"Thing","listKind":"ThingList"}"#,
            &[things],
            "NamesAccepted=False ListKindConflict, Established=False NotAccepted",
        );
        check(
            r#"{"plural":"others","singular":"other","shortNames":["thing"],"kind":"Other","listKind":"OtherList"}"#,
            &[things],
            "NamesAccepted=False ShortNamesConflict, Established=False NotAccepted",
        );
    }

    #[test]
    fn names_that_are_let_go_can_be_taken_by_others() {
        let parse = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        let a = parse(
            r#"{"metadata":{"name":"a"},"status":{"acceptedNames":{"plural":"as","kind":"A","shortNames":["x"]}}}"#,
        );
        let mut taken = Taken::default();
        assert!(!taken.record(&a));
        assert!(!taken.record(&a));
        let less = parse(r#"{"metadata":{"name":"a"},"status":{"acceptedNames":{"plural":"as","kind":"A"}}}"#);
        assert!(taken.record(&less));
        taken.forget("a");
        assert!(taken.is_empty());
    }
}
