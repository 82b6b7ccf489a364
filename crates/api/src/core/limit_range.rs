//! LimitRange.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};
use apimachinery::quantity::{Format, Quantity};

use crate::strategy::Strategy;
use crate::validation::names::qualified_name;
use crate::validation::resources::{container_resource_name, may_overcommit, quantity, resource_name};
use crate::validation::{Checks, text};

pub(crate) struct LimitRangeStrategy;

const TYPES: &[&str] = &["Pod", "Container", "PersistentVolumeClaim"];

/// A container's limit is the maximum, its request the limit or else the minimum, unless the item says otherwise.
fn default_item(item: &mut Value) {
    if item.str_at(&["type"]) != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let given = item[from].clone();
        for (name, amount) in given.entries() {
            item.set_default(&[to, name], amount.clone());
        }
    }
}

fn validate_type(kind: &Cursor<'_>, errs: &mut FieldErrors) {
    let wrong = qualified_name(text(kind));
    if !wrong.is_empty() {
        errs.each(kind, wrong);
    } else if !text(kind).contains('/') && !TYPES.contains(&text(kind)) {
        errs.invalid_text(kind, "must be a standard limit type or fully qualified");
    }
}

fn validate_item(item: &Cursor<'_>, errs: &mut FieldErrors) {
    let kind = item.str_at(&["type"]);
    let names = |field: &str, errs: &mut FieldErrors| {
        for (name, amount) in item.field(field).map_entries() {
            match kind {
                "Pod" | "Container" => container_resource_name(errs, &amount, name),
                _ => resource_name(errs, &amount, name),
            }
        }
    };
    names("max", errs);
    names("min", errs);
    for field in ["default", "defaultRequest"] {
        if kind == "Pod" {
            if !item[field].entries().is_empty() {
                errs.forbidden(&item.path.child(field), "may not be specified when `type` is 'Pod'");
            }
        } else {
            names(field, errs);
        }
    }
    if kind == "PersistentVolumeClaim" && ["min", "max"].iter().all(|f| item[f].get("storage").is_none()) {
        errs.required(
            &item.path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    names("maxLimitRequestRatio", errs);
    let defaults: &[&str] = if kind == "Pod" { &[] } else { &["default", "defaultRequest"] };
    let fields = ["max", "min"].iter().chain(defaults);
    let mut resources: Vec<&str> = fields
        .flat_map(|f| item[f].entries().keys().map(compact_str::CompactString::as_str).collect::<Vec<_>>())
        .collect();
    resources.sort_unstable();
    resources.dedup();
    for resource in resources {
        validate_amounts(item, resource, kind != "Pod", errs);
    }
}

fn validate_amounts(item: &Cursor<'_>, resource: &str, with_defaults: bool, errs: &mut FieldErrors) {
    let amount = |field: &str| item[field].get(resource).map(|v| quantity(&Cursor::root(v)));
    let (min, max, ratio) = (amount("min"), amount("max"), amount("maxLimitRequestRatio"));
    let limit = amount("default").filter(|_| with_defaults);
    let request = amount("defaultRequest").filter(|_| with_defaults);
    let mut ordered =
        |low: Option<Quantity>, high: Option<Quantity>, field: &str, shown: Option<Quantity>, words: [&str; 2]| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let shown = shown.unwrap_or(low).to_string();
                let why = format!("{} {low} is greater than {} {high}", words[0], words[1]);
                errs.invalid_value(&item.path.child(field).key(resource), shown, why);
            }
        };
    ordered(min, max, "min", min, ["min value", "max value"]);
    ordered(min, request, "defaultRequest", request, ["min value", "default request value"]);
    ordered(request, max, "defaultRequest", request, ["default request value", "max value"]);
    ordered(request, limit, "defaultRequest", request, ["default request value", "default limit value"]);
    ordered(min, limit, "default", min, ["min value", "default value"]);
    ordered(limit, max, "default", max, ["default value", "max value"]);
    let ratio_path = item.path.child("maxLimitRequestRatio").key(resource);
    if let Some(ratio) = ratio {
        if ratio < Quantity::new(1, Format::DecimalSi) {
            errs.invalid_value(&ratio_path, ratio.to_string(), format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let most = max.as_f64() / min.as_f64();
            if ratio.as_f64() > most {
                let why = format!("ratio {ratio} is greater than max/min = {most:.6}");
                errs.invalid_value(&ratio_path, ratio.to_string(), why);
            }
        }
    }
    if let (Some(limit), Some(request)) = (limit, request)
        && !may_overcommit(resource)
        && limit != request
    {
        let why = format!("default value {limit} must equal to defaultRequest value {request} in {resource}");
        errs.invalid_value(&item.path.child("defaultRequest").key(resource), request.to_string(), why);
    }
}

impl Strategy for LimitRangeStrategy {
    fn default(&self, range: &mut Value) {
        if !range.at(&["spec", "limits"]).items().is_empty() {
            range.entry(&["spec", "limits"]).items_mut().iter_mut().for_each(default_item);
        }
    }

    fn validate(&self, range: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let mut seen: Vec<&str> = Vec::new();
        for item in Cursor::root(range).fields(&["spec", "limits"]).elements() {
            let kind = item.field("type");
            validate_type(&kind, &mut errs);
            if seen.contains(&text(&kind)) {
                errs.duplicate(&kind.path, text(&kind));
            }
            seen.push(text(&kind));
            validate_item(&item, &mut errs);
        }
        errs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    #[test]
    fn defaults_lie_between_the_bounds() {
        let range = serde_json::from_str(
            r#"{"spec":{"limits":[{"type":"Container","min":{"cpu":"2"},"max":{"cpu":"1"},"default":{"cpu":"3"},"maxLimitRequestRatio":{"cpu":"500m"}},
                {"type":"PersistentVolumeClaim"}]}}"#,
        )
        .unwrap();
        assert_findings(
            &LimitRangeStrategy.validate(&range),
            &[
                r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1"#,
                r#"spec.limits[0].default[cpu]: Invalid value: "1": default value 3 is greater than max value 1"#,
                r#"spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: "500m": ratio 500m is less than 1"#,
                "spec.limits[1].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ],
        );
    }
}
