//! What the rules of a schema may cost at most, estimated before any object is there.

use ::cel::common::ast::{EntryExpr, Expr, IdedExpr};
use apimachinery::Value;

/// What a rule may cost over all the places of an object where it applies.
const RULE_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may cost together.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// The largest request, in bytes: nothing in an object is larger.
const REQUEST: u64 = 3 << 20;

/// How many items or entries a list or map may have.
#[must_use]
pub(super) fn max_items(schema: &Value) -> u64 {
    let declared = |field: &str| schema[field].as_i64().and_then(|n| u64::try_from(n).ok());
    let values = &schema["additionalProperties"];
    if values.as_object().is_some() {
        return declared("maxProperties").unwrap_or_else(|| (REQUEST - 2) / (min_size(values) + 6));
    }
    declared("maxItems").unwrap_or_else(|| (REQUEST - 2) / (min_size(&schema["items"]) + 1))
}

/// The fewest bytes that a value takes in a request.
fn min_size(schema: &Value) -> u64 {
    match schema.str_at(&["type"]) {
        "boolean" => 4,
        "object" => {
            let properties = schema["properties"].entries();
            let required = schema["required"].items().iter().filter_map(Value::as_str);
            2 + required.map(|name| name.len() as u64 + 4 + properties.get(name).map_or(1, min_size)).sum::<u64>()
        }
        "string" | "array" => 2,
        _ => 1,
    }
}

fn max_length(schema: &Value) -> u64 {
    match schema.str_at(&["type"]) {
        "string" => match (schema["maxLength"].as_i64(), schema.str_at(&["format"])) {
            (Some(n), _) => u64::try_from(n).unwrap_or(0),
            (None, "date") => 10,
            (None, "date-time" | "duration") => 35,
            _ => {
                let longest = schema["enum"].items().iter().filter_map(Value::as_str).map(str::len).max();
                longest.map_or(REQUEST - 2, |n| n as u64)
            }
        },
        "array" | "object" => max_items(schema),
        _ => 1,
    }
}

/// The most that an expression over a value of that schema may cost.
#[must_use]
pub(super) fn of_expression(expression: &IdedExpr, schema: &Value) -> u64 {
    let mut estimate = Estimate { names: vec![("self", Some(schema)), ("oldSelf", Some(schema))], cost: 0 };
    estimate.walk(expression);
    estimate.cost
}

struct Estimate<'e> {
    names: Vec<(&'e str, Option<&'e Value>)>,
    cost: u64,
}

impl<'e> Estimate<'e> {
    fn spend(&mut self, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
    }

    /// Counts an expression; returns the schema of its result where that is known.
    fn walk(&mut self, expr: &'e IdedExpr) -> Option<&'e Value> {
        match &expr.expr {
            Expr::Ident(name) => {
                self.spend(1);
                self.names.iter().rev().find(|(n, _)| n == name).and_then(|(_, schema)| *schema)
            }
            Expr::Select(select) => {
                let of = self.walk(&select.operand);
                self.spend(1);
                below(of?, &select.field)
            }
            Expr::Call(call) => {
                let target = call.target.as_ref().map(|t| self.walk(t));
                let args: Vec<Option<&'e Value>> = call.args.iter().map(|a| self.walk(a)).collect();
                let long = |schema: Option<&Value>| schema.map_or(1, max_length).div_ceil(10).max(1);
                let cost = match call.func_name.as_str() {
                    "matches" | "contains" | "find" | "findAll" | "split" | "replace" | "lowerAscii" | "upperAscii"
                    | "quantity" | "url" | "ip" | "cidr" | "isIP" | "isCIDR" | "isURL" | "isQuantity" => {
                        long(target.flatten().or(args.first().copied().flatten()))
                    }
                    "_==_" | "_!=_" => match (args.first().copied().flatten(), args.get(1).copied().flatten()) {
                        (Some(a), Some(b)) => long(Some(a)).min(long(Some(b))),
                        _ => 1,
                    },
                    "@in" => args.get(1).copied().flatten().map_or(1, max_items),
                    "sum" | "min" | "max" | "isSorted" | "indexOf" => target.flatten().map_or(1, max_length),
                    _ => 1,
                };
                self.spend(cost);
                match call.func_name.as_str() {
                    "_[_]" => {
                        let of = args.first().copied().flatten()?;
                        of.get("items").or_else(|| of.get("additionalProperties"))
                    }
                    _ => None,
                }
            }
            Expr::List(list) => {
                self.spend(10);
                for element in &list.elements {
                    self.walk(element);
                }
                None
            }
            Expr::Map(map) => {
                self.spend(30);
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.walk(&entry.key);
                        self.walk(&entry.value);
                    }
                }
                None
            }
            Expr::Comprehension(loops) => {
                let range = self.walk(&loops.iter_range);
                self.walk(&loops.accu_init);
                let times = match (range, &loops.iter_range.expr) {
                    (Some(schema), _) => max_items(schema),
                    (None, Expr::List(list)) => list.elements.len() as u64,
                    (None, _) => 1,
                };
                let before = self.cost;
                self.names.push((&loops.iter_var, range.and_then(|r| r.get("items"))));
                self.names.push((&loops.accu_var, None));
                self.walk(&loops.loop_cond);
                self.walk(&loops.loop_step);
                self.names.truncate(self.names.len() - 2);
                let once = self.cost.saturating_sub(before);
                self.cost = before.saturating_add(once.saturating_mul(times));
                self.walk(&loops.result);
                None
            }
            Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => None,
        }
    }
}

/// The schema of a field, by the name that expressions use.
fn below<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    let properties = schema["properties"].entries();
    let by_name = properties.iter().find(|(real, _)| expressions::escape(real).is_some_and(|e| e == name));
    by_name.map(|(_, property)| property).or_else(|| schema.get("additionalProperties"))
}

/// Upstream's complaint about a rule that may cost too much.
#[must_use]
pub(super) fn complaint_of_rule(cost: u64) -> Option<String> {
    (cost > RULE_LIMIT).then(|| complaint("estimated rule cost", cost, RULE_LIMIT))
}

/// And about all of a schema together.
#[must_use]
pub(super) fn complaint_of_schema(cost: u64) -> Option<String> {
    let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
    (cost > SCHEMA_LIMIT).then(|| complaint(what, cost, SCHEMA_LIMIT))
}

#[expect(clippy::cast_precision_loss, reason = "a factor for people")]
fn complaint(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_owned()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}
