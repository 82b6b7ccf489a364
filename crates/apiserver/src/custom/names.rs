//! Which names a definition gets, and the conditions that say so.

use apimachinery::Value;

/// The status that a definition is to have, given the others of its group; `None` when it has that already.
#[must_use]
pub(super) fn plan(definition: &Value, others: &[&Value], now: &str) -> Option<Value> {
    let accepted_elsewhere = |fields: &[&str]| {
        let mut used: Vec<&str> = Vec::new();
        for other in others {
            let names = other.at(&["status", "acceptedNames"]);
            for field in fields {
                used.extend(names.str_at(&[field]).split_terminator('\0'));
                used.extend(names[*field].items().iter().filter_map(Value::as_str));
            }
        }
        used
    };
    let resources = accepted_elsewhere(&["plural", "singular", "shortNames"]);
    let kinds = accepted_elsewhere(&["kind", "listKind"]);
    let wanted = definition.at(&["spec", "names"]);
    let mut names = definition.at(&["status", "acceptedNames"]).clone();
    names.make_object();
    let mut conflict: Option<(&str, String)> = None;
    let fields = [
        ("plural", "PluralConflict", &resources),
        ("singular", "SingularConflict", &resources),
        ("shortNames", "ShortNamesConflict", &resources),
        ("kind", "KindConflict", &kinds),
        ("listKind", "ListKindConflict", &kinds),
    ];
    for (field, reason, used) in fields {
        let taken: Vec<&str> = match &wanted[field] {
            Value::String(name) => used.iter().filter(|u| **u == name.as_str()).copied().collect(),
            list => list.items().iter().filter_map(Value::as_str).filter(|n| used.contains(n)).collect(),
        };
        if let Some(first) = taken.first() {
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

pub(super) fn set_condition(status: &mut Value, (ty, value): (&str, &str), reason: &str, message: &str, now: &str) {
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
        let others: Vec<Value> =
            others.iter().map(|o| parse(&format!(r#"{{"status":{{"acceptedNames":{o}}}}}"#))).collect();
        let status = plan(&definition, &others.iter().collect::<Vec<_>>(), "now").unwrap();
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
}
