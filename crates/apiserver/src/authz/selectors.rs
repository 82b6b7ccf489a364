//! Selectors as `SubjectAccessReview` spells them, in both directions (KEP-4601).

use apimachinery::Value;
use apimachinery::selector::{FieldSelector, FieldTerm, LabelSelector, Operator, Requirement};
use compact_str::CompactString;

use crate::attributes::Narrowed;

/// What `resourceAttributes.labelSelector` says.
pub(crate) fn labels_of(attributes: &Value) -> Narrowed<LabelSelector> {
    let (raw, requirements) = (attributes.str_at(&["rawSelector"]), attributes["requirements"].items());
    if requirements.is_empty() {
        return Narrowed::of(LabelSelector::parse(raw));
    }
    let told: Vec<Requirement> = requirements.iter().filter_map(|r| Requirement::from_value(r).ok()).collect();
    Narrowed { partly: told.len() < requirements.len(), selector: LabelSelector { requirements: told } }
}

/// What `resourceAttributes.fieldSelector` says.
pub(crate) fn fields_of(attributes: &Value) -> Narrowed<FieldSelector> {
    let (raw, requirements) = (attributes.str_at(&["rawSelector"]), attributes["requirements"].items());
    if requirements.is_empty() {
        return Narrowed::of(FieldSelector::parse(raw));
    }
    let told: Vec<FieldTerm> = requirements.iter().filter_map(term_of).collect();
    Narrowed { partly: told.len() < requirements.len(), selector: FieldSelector { terms: told } }
}

/// A field has one value that it must, or must not, have; no more can be asked of it yet.
fn term_of(requirement: &Value) -> Option<FieldTerm> {
    let equal = match requirement.str_at(&["operator"]) {
        "In" => true,
        "NotIn" => false,
        _ => return None,
    };
    let [value] = requirement["values"].items() else { return None };
    Some(FieldTerm { field: requirement.str_at(&["key"]).into(), value: value.as_str()?.into(), equal })
}

pub(crate) fn field_requirements(selector: &FieldSelector) -> Vec<Value> {
    let terms = selector.terms.iter();
    terms.map(|term| requirement(&term.field, if term.equal { "In" } else { "NotIn" }, [&term.value])).collect()
}

/// Those that compare numbers have no operator here.
pub(crate) fn label_requirements(selector: &LabelSelector) -> Vec<Value> {
    let told = selector.requirements.iter().filter_map(|demand| {
        let operator = match demand.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        Some(requirement(&demand.key, operator, &demand.values))
    });
    told.collect()
}

fn requirement<'a>(key: &str, operator: &str, values: impl IntoIterator<Item = &'a CompactString>) -> Value {
    let mut requirement = Value::from([("key", key.into()), ("operator", operator.into())]);
    let values: Vec<Value> = values.into_iter().cloned().map(Value::from).collect();
    if !values.is_empty() {
        requirement.set(&["values"], values);
    }
    requirement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_told_as_what_they_demand() {
        let labels = |selector: &str| {
            let parsed = Narrowed::of(LabelSelector::parse(selector));
            apimachinery::field::shown(&Value::from(label_requirements(&parsed.selector)))
        };
        let fields = |selector: &str| {
            let parsed = Narrowed::of(FieldSelector::parse(selector));
            apimachinery::field::shown(&Value::from(field_requirements(&parsed.selector)))
        };
        assert_eq!(
            labels("a notin (c,b),!d,e,f>1"),
            r#"[{"key":"a","operator":"NotIn","values":["b","c"]},{"key":"d","operator":"DoesNotExist"},{"key":"e","operator":"Exists"}]"#
        );
        assert_eq!((labels("a in ("), labels("f<1")), ("[]".to_owned(), "[]".to_owned()));
        assert_eq!(
            fields("spec.nodeName=n,status.phase!=Failed"),
            r#"[{"key":"spec.nodeName","operator":"In","values":["n"]},{"key":"status.phase","operator":"NotIn","values":["Failed"]}]"#
        );
        assert_eq!(fields("nothing"), "[]");
    }

    #[test]
    fn what_a_review_demands_and_cannot_be_told_is_left_out() {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let labels = |text: &str| labels_of(&json(text));
        let fields = |text: &str| fields_of(&json(text));
        assert_eq!(labels(r#"{"rawSelector":"a in (b)"}"#), Narrowed::of(LabelSelector::parse("a=b")));
        assert_eq!(labels("null"), Narrowed::default());
        let partly = labels(r#"{"requirements":[{"key":"a","operator":"Exists"},{"key":"b","operator":"Near"}]}"#);
        assert_eq!(partly, Narrowed { partly: true, ..Narrowed::of(LabelSelector::parse("a")) });
        assert_eq!(
            fields(r#"{"requirements":[{"key":"spec.nodeName","operator":"In","values":["n"]}]}"#),
            Narrowed::of(FieldSelector::parse("spec.nodeName=n"))
        );
        let partly = fields(r#"{"requirements":[{"key":"a","operator":"In","values":["b","c"]}]}"#);
        assert_eq!(partly, Narrowed { partly: true, ..Narrowed::default() });
        assert!(fields(r#"{"rawSelector":"a"}"#).partly);
    }
}
