//! Tolerations of several origins become one list.

use apimachinery::Value;

/// Both lists without what others of them cover; of equal ones the first stays.
pub(super) fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let is_covered = merged.iter().any(|m| covers(m, toleration))
            || all[i + 1..].iter().any(|later| later != toleration && covers(later, toleration));
        if !is_covered {
            merged.push((*toleration).clone());
        }
    }
    merged
}

/// Everything that `inner` tolerates, `outer` tolerates too.
pub(super) fn covers(outer: &Value, inner: &Value) -> bool {
    if outer == inner {
        return true;
    }
    let key = |t: &'_ Value| t.str_at(&["key"]).to_owned();
    let operator = |t: &'_ Value| t.str_at(&["operator"]).to_owned();
    if key(inner) != key(outer) && !(key(outer).is_empty() && operator(outer) == "Exists") {
        return false;
    }
    let effect = outer.str_at(&["effect"]);
    if !effect.is_empty() && inner.str_at(&["effect"]) != effect {
        return false;
    }
    if effect == "NoExecute"
        && let Some(longest) = outer["tolerationSeconds"].as_i64()
        && inner["tolerationSeconds"].as_i64().is_none_or(|seconds| seconds > longest)
    {
        return false;
    }
    match operator(outer).as_str() {
        "Exists" => true,
        "" | "Equal" => {
            matches!(operator(inner).as_str(), "" | "Equal") && inner.str_at(&["value"]) == outer.str_at(&["value"])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(first: &str, second: &str, want: &str) {
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let merged = merge(parse(first).items(), parse(second).items());
        assert_eq!(serde_json::to_string(&merged).unwrap(), want);
    }

    #[test]
    fn what_is_covered_is_left_out() {
        check(
            r#"[{"key":"a","operator":"Exists"}]"#,
            r#"[{"key":"a","operator":"Equal","value":"1"},{"key":"b","operator":"Exists"}]"#,
            r#"[{"key":"a","operator":"Exists"},{"key":"b","operator":"Exists"}]"#,
        );
        check(r#"[{"key":"a","effect":"NoSchedule"}]"#, r#"[{"operator":"Exists"}]"#, r#"[{"operator":"Exists"}]"#);
        check(
            r#"[{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":5}]"#,
            r#"[{"key":"a","operator":"Exists","effect":"NoExecute"}]"#,
            r#"[{"effect":"NoExecute","key":"a","operator":"Exists"}]"#,
        );
    }
}
