//! Field selectors: `metadata.name=a,status.phase!=Running`.

use compact_str::CompactString;

use super::ParseError;

/// All terms must hold. None: everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: CompactString,
    pub value: CompactString,
    /// `=` or `==`; otherwise `!=`.
    pub equal: bool,
}

impl FieldSelector {
    /// Parses a query's `fieldSelector`. A backslash makes the next comma, equals sign or backslash a part of the value.
    ///
    /// # Errors
    /// In upstream's words.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let (field, equal, value) = split_term(part)
                .ok_or_else(|| ParseError(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            terms.push(FieldTerm { field: field.into(), value: unescape(value)?, equal });
        }
        Ok(FieldSelector { terms })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
}

/// Splits at the commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Field, whether it must be equal, and value: at the first operator.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        let rest = &term[i..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..i], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<CompactString, ParseError> {
    if !value.contains(['\\', ',', '=']) {
        return Ok(value.into());
    }
    let mut out = CompactString::default();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: \\{c} in value: {value}"
                    )));
                }
                None => {
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: \\ in value: {value}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(ParseError(format!("invalid field selector: unescaped character in value: {value}: {c}")));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &[(&str, bool, &str)]) {
        let selector = FieldSelector::parse(text).unwrap();
        let got: Vec<_> = selector.terms.iter().map(|t| (t.field.as_str(), t.equal, t.value.as_str())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn terms_are_split_and_unescaped() {
        check("metadata.name=b,", &[("metadata.name", true, "b")]);
        check("a==b,c!=d", &[("a", true, "b"), ("c", false, "d")]);
        check(r"a=b\,c\=d", &[("a", true, "b,c=d")]);
        check("spec.nodeName=", &[("spec.nodeName", true, "")]);
        assert_eq!(
            FieldSelector::parse("metadata.name").unwrap_err().0,
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
    }
}
