//! What cells of Tables have in common.

use apimachinery::Value;

use crate::strategy::Now;

/// Seconds since 1970 of an RFC 3339 time.
pub(crate) fn seconds_of(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// `5m`, `3h12m`: how long ago; `<unknown>` where there is no time.
pub fn age(time: &Value, now: Now) -> Value {
    seconds_of(time).map_or_else(|| "<unknown>".into(), |then| human_duration(now.0 - then).into())
}

pub(crate) fn created(object: &Value, now: Now) -> Value {
    age(object.meta("creationTimestamp"), now)
}

/// kubectl's form: two units where they still matter.
pub(crate) fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => match seconds % 60 {
            0 => format!("{minutes}m"),
            rest => format!("{minutes}m{rest}s"),
        },
        600..10800 => format!("{minutes}m"),
        10800..28800 => match minutes % 60 {
            0 => format!("{hours}h"),
            rest => format!("{hours}h{rest}m"),
        },
        28800..172_800 => format!("{hours}h"),
        172_800..691_200 => match hours % 24 {
            0 => format!("{days}d"),
            rest => format!("{days}d{rest}h"),
        },
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => match days % 365 {
            0 => format!("{}y", days / 365),
            rest => format!("{}y{rest}d", days / 365),
        },
        _ => format!("{}y", days / 365),
    }
}

/// `a=1,b=2`, `<none>` for no labels.
pub(crate) fn labels(map: &Value) -> String {
    let all: Vec<String> =
        map.entries().iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}

/// A LabelSelector as kubectl shows it.
pub(crate) fn selector(s: &Value) -> String {
    if s.is_null() {
        return "<none>".to_owned();
    }
    let mut parts: Vec<String> =
        s["matchLabels"].entries().iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    for e in s["matchExpressions"].items() {
        let values: Vec<&str> = e["values"].items().iter().filter_map(Value::as_str).collect();
        let key = e.str_at(&["key"]);
        parts.push(match e.str_at(&["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    if parts.is_empty() { "<none>".to_owned() } else { parts.join(",") }
}

/// The first few, and how many more there are.
pub(crate) fn few(all: &[String], max: usize, none: &str) -> String {
    match all.len() {
        0 => none.to_owned(),
        count if count > max => format!("{} + {} more...", all[..max].join(","), count - max),
        _ => all.join(","),
    }
}

/// Names and images of a template's containers, comma-separated.
pub(crate) fn containers(spec: &Value) -> (String, String) {
    let of = |field: &str| {
        let all: Vec<&str> = spec["containers"].items().iter().map(|c| c.str_at(&[field])).collect();
        all.join(",")
    };
    (of("name"), of("image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        let cases = [
            (5, "5s"),
            (125, "2m5s"),
            (600, "10m"),
            (10_900, "3h1m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (900_000, "10d"),
        ];
        for (seconds, want) in cases {
            assert_eq!(human_duration(seconds), want);
        }
    }
}
