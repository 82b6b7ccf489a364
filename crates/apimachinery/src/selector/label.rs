//! Label selectors: `a=b,c in (d,e),!f`.

use std::collections::BTreeSet;

use compact_str::CompactString;

use super::lexer::{Token, lex};
use super::{ParseError, syntax};
use crate::Value;
use crate::field::{FieldErrors, Path};

/// All requirements must hold. None: everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: CompactString,
    pub operator: Operator,
    pub values: BTreeSet<CompactString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl LabelSelector {
    /// Parses a query's `labelSelector`.
    ///
    /// # Errors
    /// In upstream's words.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Parser { tokens: lex(text), at: 0 }.selector()
    }

    /// From a `metav1.LabelSelector`: its `matchLabels` and `matchExpressions`. An absent selector (`Null`) selects nothing
    /// and gives `None`; an empty one selects everything.
    ///
    /// # Errors
    /// When an expression is not valid.
    pub fn from_value(selector: &Value) -> Result<Option<Self>, ParseError> {
        if selector.is_null() {
            return Ok(None);
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].entries() {
            let values = BTreeSet::from([CompactString::from(value.as_str().unwrap_or_default())]);
            requirements.push(checked(key, Operator::In, values)?);
        }
        for expression in selector["matchExpressions"].items() {
            requirements.push(Requirement::from_value(expression)?);
        }
        Ok(Some(LabelSelector { requirements }))
    }

    /// Does an object with these labels match? `label` gives the value of a key.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Does an object match, by its `metadata.labels`?
    #[must_use]
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| object.label(key))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// A label that must have one certain value, if the selector demands one.
    #[must_use]
    pub fn required(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|r| match (r.operator, r.values.first(), r.values.len()) {
            (Operator::In, Some(value), 1) => Some((r.key.as_str(), value.as_str())),
            _ => None,
        })
    }
}

impl Requirement {
    /// From a `metav1.LabelSelectorRequirement`.
    ///
    /// # Errors
    /// In upstream's words.
    pub fn from_value(requirement: &Value) -> Result<Self, ParseError> {
        let operator = match requirement.str_at(&["operator"]) {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
        };
        let values = requirement["values"].items().iter().filter_map(Value::as_str).map(CompactString::from);
        checked(requirement.str_at(&["key"]), operator, values.collect())
    }

    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                let bound = self.values.first().and_then(|v| number(v));
                match (value.and_then(number), bound) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
        }
    }
}

/// A requirement whose key and values are well-formed and fit its operator.
fn checked(key: &str, operator: Operator, values: BTreeSet<CompactString>) -> Result<Requirement, ParseError> {
    check_key(key)?;
    let mut errs = FieldErrors::new();
    let path = Path::new("values");
    let shown =
        |values: &BTreeSet<CompactString>| Value::from(values.iter().cloned().map(Value::from).collect::<Vec<_>>());
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            errs.invalid_value(&path, shown(&values), "for 'in', 'notin' operators, values set can't be empty");
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            errs.invalid_value(&path, shown(&values), "values set must be empty for exists and does not exist");
        }
        Operator::GreaterThan | Operator::LessThan => {
            if values.len() != 1 {
                errs.invalid_value(&path, shown(&values), "for 'Gt', 'Lt' operators, exactly one value is required");
            }
            for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                errs.invalid_value(
                    &path.index(i),
                    value.as_str(),
                    "for 'Gt', 'Lt' operators, the value must be an integer",
                );
            }
        }
        _ => {}
    }
    for (i, value) in values.iter().enumerate() {
        for message in syntax::label_value(value) {
            errs.invalid_value(&path.index(i).key(key), value.as_str(), message);
        }
    }
    match errs.0.as_slice() {
        [] => Ok(Requirement { key: key.into(), operator, values }),
        [one] => Err(ParseError(one.to_string())),
        many => Err(ParseError(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))),
    }
}

fn check_key(key: &str) -> Result<(), ParseError> {
    let mut errs = FieldErrors::new();
    for message in syntax::qualified_name(key) {
        errs.invalid_value(&Path::root(), key, message);
    }
    errs.0.first().map_or(Ok(()), |e| Err(ParseError(e.to_string())))
}

/// Recursive descent over the tokens, with upstream's two readings of a token: where a value is expected, `in` and `notin`
/// are words like any other.
struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> (Token, &str) {
        match self.tokens.get(self.at) {
            Some((Token::In | Token::NotIn, text)) => (Token::Word, text),
            Some((token, text)) => (*token, text),
            None => (Token::End, ""),
        }
    }

    fn next(&mut self) -> (Token, String) {
        let (token, text) = self.peek();
        let taken = (token, text.to_owned());
        self.at += 1;
        taken
    }

    /// The next token where an operator is expected.
    fn next_operator(&mut self) -> (Token, String) {
        let taken = self.tokens.get(self.at).cloned().unwrap_or((Token::End, String::new()));
        self.at += 1;
        taken
    }

    fn selector(&mut self) -> Result<LabelSelector, ParseError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Word | Token::Not, _) => {
                    let requirement =
                        self.requirement().map_err(|e| ParseError(format!("unable to parse requirement: {e}")))?;
                    requirements.push(requirement);
                    match self.next() {
                        (Token::End, _) => break,
                        (Token::Comma, _) => match self.peek() {
                            (Token::Word | Token::Not, _) => {}
                            (_, text) => {
                                return Err(ParseError(format!("found '{text}', expected: identifier after ','")));
                            }
                        },
                        (_, text) => {
                            return Err(ParseError(format!("found '{text}', expected: ',' or 'end of string'")));
                        }
                    }
                }
                (Token::End, _) => break,
                (_, text) => {
                    return Err(ParseError(format!("found '{text}', expected: !, identifier, or 'end of string'")));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements })
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Word {
            return Err(ParseError(format!("found '{key}', expected: identifier")));
        }
        check_key(&key)?;
        if negated {
            return checked(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return checked(&key, Operator::Exists, BTreeSet::new());
        }
        let (token, text) = self.next_operator();
        let operator = match token {
            Token::In | Token::Equals | Token::DoubleEquals => Operator::In,
            Token::NotIn | Token::NotEquals => Operator::NotIn,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(ParseError(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt"))),
        };
        let values = if matches!(token, Token::In | Token::NotIn) { self.values()? } else { self.exact_value()? };
        checked(&key, operator, values)
    }

    fn values(&mut self) -> Result<BTreeSet<CompactString>, ParseError> {
        let (token, text) = self.next();
        if token != Token::Open {
            return Err(ParseError(format!("found '{text}' expected: '('")));
        }
        match self.peek() {
            (Token::Word | Token::Comma, _) => {
                let values = self.list()?;
                match self.next() {
                    (Token::Close, _) => Ok(values),
                    (_, text) => Err(ParseError(format!("found '{text}', expected: ')'"))),
                }
            }
            (Token::Close, _) => {
                self.next();
                Ok(BTreeSet::from([CompactString::default()]))
            }
            (_, text) => Err(ParseError(format!("found '{text}', expected: ',', ')' or identifier"))),
        }
    }

    fn list(&mut self) -> Result<BTreeSet<CompactString>, ParseError> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Word, text) => {
                    values.insert(text.into());
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, text) => return Err(ParseError(format!("found '{text}', expected: ',' or ')'"))),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(CompactString::default());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.insert(CompactString::default());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.next();
                            values.insert(CompactString::default());
                        }
                        _ => {}
                    }
                }
                (_, text) => return Err(ParseError(format!("found '{text}', expected: ',', or identifier"))),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<CompactString>, ParseError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(BTreeSet::from([CompactString::default()]));
        }
        match self.next() {
            (Token::Word, text) => Ok(BTreeSet::from([text.into()])),
            (_, text) => Err(ParseError(format!("found '{text}', expected: identifier"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], want: bool) {
        let selector = LabelSelector::parse(selector).unwrap();
        assert_eq!(selector.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)), want);
    }

    #[test]
    fn selectors_match_as_upstreams_do() {
        check("", &[], true);
        check("a=b", &[("a", "b")], true);
        check(" a == b , c != d ", &[("a", "b")], true);
        check("a!=b", &[("a", "b")], false);
        check("a in (b,c),d notin (e)", &[("a", "c")], true);
        check("a in ()", &[("a", "")], true);
        check("a", &[("a", "")], true);
        check("!a", &[("a", "")], false);
        check("a>1", &[("a", "2")], true);
        check("a>1", &[("a", "x")], false);
        check("in in (in,notin)", &[("in", "notin")], true);
        check("a=", &[("a", "")], true);
    }

    #[track_caller]
    fn refused(selector: &str, want: &str) {
        assert_eq!(LabelSelector::parse(selector).unwrap_err().0, want);
    }

    #[test]
    fn bad_selectors_are_refused_in_upstreams_words() {
        refused("tier in (web", "unable to parse requirement: found '', expected: ',' or ')'");
        refused("tier=a=b", "found '=', expected: ',' or 'end of string'");
        refused("x in", "unable to parse requirement: found '' expected: '('");
        refused("x y", "unable to parse requirement: found 'y', expected: in, notin, =, ==, !=, gt, lt");
        refused("a,,b", "found ',', expected: identifier after ','");
        refused("=a", "found '=', expected: !, identifier, or 'end of string'");
        assert!(LabelSelector::parse("-bad=1").unwrap_err().0.starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"-bad\": name part must consist of alphanumeric"
        ));
    }

    #[test]
    fn selectors_of_objects_select_nothing_when_absent() {
        assert_eq!(LabelSelector::from_value(&Value::Null), Ok(None));
        let selector: Value = serde_json::from_str(
            r#"{"matchLabels":{"a":"b"},"matchExpressions":[{"key":"c","operator":"NotIn","values":["d"]}]}"#,
        )
        .unwrap();
        let selector = LabelSelector::from_value(&selector).unwrap().unwrap();
        assert_eq!(selector.required(), Some(("a", "b")));
        let object: Value = serde_json::from_str(r#"{"metadata":{"labels":{"a":"b","c":"e"}}}"#).unwrap();
        assert!(selector.matches_object(&object));
    }
}
