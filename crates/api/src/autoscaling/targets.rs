//! The cell that shows what an autoscaler aims at and what there is.

use apimachinery::Value;

const SHOWN: usize = 2;

/// `cpu: 20%/80%, 100/1k (avg) + 1 more...`
pub(super) fn shown(specs: &Value, statuses: &Value) -> String {
    let specs = specs.items();
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let none = Value::Null;
    let all: Vec<String> =
        specs.iter().enumerate().map(|(i, spec)| metric(spec, statuses.items().get(i).unwrap_or(&none))).collect();
    match all.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} + {more} more...", all[..SHOWN].join(", ")),
        _ => all.join(", "),
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let field = match spec.str_at(&["type"]) {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (aim, current) = (spec.at(&[field, "target"]), status.at(&[field, "current"]));
    let text = |from: &Value, field: &str| from[field].as_str().map(str::to_owned);
    let now = |field: &str| text(current, field).unwrap_or_else(|| "<unknown>".to_owned());
    match (field, text(aim, "averageValue")) {
        ("pods", aim) => format!("{}/{}", now("averageValue"), aim.unwrap_or_else(|| "0".to_owned())),
        ("external" | "object", Some(aim)) => format!("{}/{aim} (avg)", now("averageValue")),
        ("external" | "object", None) => {
            format!("{}/{}", now("value"), text(aim, "value").unwrap_or_else(|| "<nil>".to_owned()))
        }
        (_, Some(aim)) => format!("{}: {}/{aim}", spec.str_at(&[field, "name"]), now("averageValue")),
        (_, None) => {
            let percent = |from: &Value, or: &str| {
                from["averageUtilization"].as_i64().map_or_else(|| or.to_owned(), |p| format!("{p}%"))
            };
            let name = spec.str_at(&[field, "name"]);
            format!("{name}: {}/{}", percent(current, "<unknown>"), percent(aim, "<auto>"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(specs: &str, statuses: &str, want: &str) {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(shown(&json(specs), &json(statuses)), want);
    }

    #[test]
    fn targets_read_as_kubectl_shows_them() {
        let cpu = r#"{"type":"Resource","resource":{"name":"cpu","target":{"averageUtilization":80}}}"#;
        check("[]", "[]", "<none>");
        check(&format!("[{cpu}]"), "[]", "cpu: <unknown>/80%");
        check(&format!("[{cpu}]"), r#"[{"resource":{"current":{"averageUtilization":20}}}]"#, "cpu: 20%/80%");
        let pods = r#"{"type":"Pods","pods":{"target":{"averageValue":"100"}}}"#;
        check(&format!("[{cpu},{pods},{pods}]"), "[]", "cpu: <unknown>/80%, <unknown>/100 + 1 more...");
    }
}
