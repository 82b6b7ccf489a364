//! ServiceCIDR.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::net::{cidr, family_of_cidr};
use crate::validation::{Checks, text};

pub(crate) struct ServiceCidrStrategy;

const STAYS: &str = "field is immutable";

fn cidrs(object: &Value) -> Cursor<'_> {
    Cursor::root(object).fields(&["spec", "cidrs"])
}

fn validate(object: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let cidrs = cidrs(object);
    match cidrs.items().len() {
        0 => errs.required(&cidrs.path, "at least one CIDR required"),
        count if count > 2 => {
            let at = Cursor::new(cidrs.path.clone(), &object["spec"]);
            errs.invalid_struct(&at, "may only hold up to 2 values");
        }
        _ => {
            for range in cidrs.elements() {
                errs.each(&range, cidr(text(&range)));
            }
            let families: Vec<&str> = cidrs.elements().map(|c| family_of_cidr(text(&c))).collect();
            if families.len() == 2 && families[0] == families[1] && !families[0].is_empty() {
                errs.invalid(
                    &cidrs,
                    "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                );
            }
        }
    }
    errs
}

impl Strategy for ServiceCidrStrategy {
    fn validate(&self, object: &Value) -> FieldErrors {
        validate(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let (new, was) = (cidrs(object), cidrs(old));
        match (was.items().len(), new.items().len()) {
            (before, after) if before == after => {
                for (range, _) in new.elements().zip(was.items()).filter(|(range, was)| range.value != *was) {
                    errs.invalid(&range, STAYS);
                }
            }
            (1, 2) => {
                if new.items()[0] != was.items()[0] {
                    errs.invalid_value(&new.path.index(0), new.items()[0].clone(), STAYS);
                }
                errs.extend(validate(object));
            }
            _ => errs.invalid(&new, STAYS),
        }
        errs
    }

    fn row(&self, object: &Value, now: Now) -> Option<Vec<Cell>> {
        let all: Vec<&str> = cidrs(object).value.items().iter().filter_map(Value::as_str).collect();
        Some(vec![object.name().into(), all.join(",").into(), table_cells::created(object, now)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_family_may_be_added() {
        let ranges =
            |list: &str| -> Value { serde_json::from_str(&format!(r#"{{"spec":{{"cidrs":{list}}}}}"#)).unwrap() };
        let check = |new: &str, old: &str, findings: usize| {
            assert_eq!(ServiceCidrStrategy.validate_update(&ranges(new), &ranges(old)).0.len(), findings, "{new}");
        };
        check(r#"["10.0.0.0/8","2001:db8::/64"]"#, r#"["10.0.0.0/8"]"#, 0);
        check(r#"["10.0.0.0/8","11.0.0.0/8"]"#, r#"["10.0.0.0/8"]"#, 1);
        check(r#"["11.0.0.0/8"]"#, r#"["10.0.0.0/8"]"#, 1);
        check("[]", r#"["10.0.0.0/8"]"#, 1);
    }
}
