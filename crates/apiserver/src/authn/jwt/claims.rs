//! From the claims of a verified token to a user.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;

use super::settings::{Issuer, Source};
use crate::attributes::UserInfo;
use expressions::{Activation, Budget, CALL_LIMIT, Program, Val};

/// Names a token, for audit.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// An expression with its text. Equal when their texts are.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    pub source: String,
    program: Arc<Program>,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Expression {
    /// # Errors
    /// Why that is none.
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        let program = Program::compile(source).map_err(|e| format!("compilation failed: {e}"))?;
        Ok(Expression { source: source.to_owned(), program: Arc::new(program) })
    }

    /// Does it look at that claim?
    pub(super) fn uses_claim(&self, claim: &str) -> bool {
        self.program.selects("claims", claim)
    }

    fn evaluate<T>(
        &self,
        name: &'static str,
        value: &Value,
        take: impl FnOnce(&Val<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let mut names = Activation::new();
        names.bind(name, Val::json(value));
        let mut budget = Budget::new(CALL_LIMIT);
        let failed = |why: String| format!("expression '{}' resulted in error: {why}", self.source);
        let result = self.program.evaluate(&names, &mut budget).map_err(|e| failed(e.to_string()))?;
        take(&result).ok_or_else(|| failed("it is of another type than it must be".to_owned()))
    }
}

/// The user that a token speaks for.
///
/// # Errors
/// Why it speaks for none.
pub(super) fn user_of(issuer: &Issuer, claims: &Value) -> Result<UserInfo, String> {
    for (claim, wanted) in &issuer.required_claims {
        match claims[claim.as_str()].as_str() {
            None => return Err(format!("required claim {claim} not present in ID token")),
            Some(value) if value != wanted => {
                return Err(format!("required claim {claim} value does not match. Got = {value}, want = {wanted}"));
            }
            Some(_) => {}
        }
    }
    for (rule, message) in &issuer.claim_rules {
        let holds = rule.evaluate("claims", claims, truth);
        if !holds.map_err(|e| format!("error evaluating claim validation expression: {e}"))? {
            return Err(refused(rule, message));
        }
    }
    let mut user = UserInfo { name: username(issuer, claims)?, ..UserInfo::default() };
    user.groups = match &issuer.groups {
        None => Vec::new(),
        Some(Source::Claim { claim, prefix }) => {
            let groups = match &claims[claim.as_str()] {
                Value::Null => Vec::new(),
                Value::String(one) => vec![one.to_string()],
                list => {
                    strings_of(list).ok_or_else(|| format!("parse groups claim {claim:?}: it is no list of strings"))?
                }
            };
            groups.into_iter().map(|group| format!("{prefix}{group}")).collect()
        }
        Some(Source::Expression(expression)) => {
            let groups = expression.evaluate("claims", claims, texts);
            groups.map_err(|e| format!("error evaluating group claim expression: {e}"))?
        }
    };
    user.uid = match &issuer.uid {
        None => String::new(),
        Some(Source::Claim { claim, .. }) => {
            let uid = claims[claim.as_str()].as_str();
            uid.ok_or_else(|| format!("parse uid claim {claim:?}: claim not present"))?.to_owned()
        }
        Some(Source::Expression(expression)) => expression
            .evaluate("claims", claims, |v| v.as_str().map(str::to_owned))
            .map_err(|e| format!("error evaluating uid claim expression: {e}"))?,
    };
    for (key, expression) in &issuer.extra {
        let values = expression.evaluate("claims", claims, texts);
        let values = values.map_err(|e| format!("error evaluating extra claim expression: {e}"))?;
        if !values.is_empty() {
            user.extra.insert(key.clone(), values);
        }
    }
    if let Some(id) = claims["jti"].as_str() {
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
    }
    if !issuer.user_rules.is_empty() {
        let shown = shown(&user);
        for (rule, message) in &issuer.user_rules {
            let holds = rule.evaluate("user", &shown, truth);
            if !holds.map_err(|e| format!("error evaluating user info validation rule: {e}"))? {
                return Err(refused(rule, message));
            }
        }
    }
    Ok(user)
}

fn truth(value: &Val<'_>) -> Option<bool> {
    value.as_bool()
}

fn refused(rule: &Expression, message: &str) -> String {
    if message.is_empty() {
        format!("validation expression '{}' failed", rule.source)
    } else {
        format!("validation expression '{}' failed: {message}", rule.source)
    }
}

fn username(issuer: &Issuer, claims: &Value) -> Result<String, String> {
    let name = match &issuer.username {
        Source::Expression(expression) => expression
            .evaluate("claims", claims, |v| v.as_str().map(str::to_owned))
            .map_err(|e| format!("error evaluating username claim expression: {e}"))?,
        Source::Claim { claim, prefix } => {
            let missing = |why: &str| format!("parse username claims {claim:?}: {why}");
            let name = match &claims[claim.as_str()] {
                Value::Null => return Err(missing("claim not present")),
                value => value.as_str().ok_or_else(|| missing("it is no string"))?,
            };
            // An address that nobody has looked at may be anybody's.
            if claim == "email" && claims.get("email_verified").is_some_and(|v| v.as_bool() != Some(true)) {
                return Err("email not verified".to_owned());
            }
            format!("{prefix}{name}")
        }
    };
    if name.is_empty() { Err("username claim expression must return a non-empty string".to_owned()) } else { Ok(name) }
}

fn strings_of(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A string or several; none for what is empty.
fn texts(value: &Val<'_>) -> Option<Vec<String>> {
    if matches!(value, Val::Null) {
        return Some(Vec::new());
    }
    if let Some(text) = value.as_str() {
        return Some(if text.is_empty() { Vec::new() } else { vec![text.to_owned()] });
    }
    let items = value.items()?;
    let mut texts: Vec<String> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    texts.retain(|text| !text.is_empty());
    Some(texts)
}

/// The user as rules see it.
fn shown(user: &UserInfo) -> Value {
    let list = |items: &[String]| Value::Array(items.iter().map(|i| i.as_str().into()).collect());
    let extra: BTreeMap<&String, Value> = user.extra.iter().map(|(k, v)| (k, list(v))).collect();
    let mut shown = Value::from([
        ("username", user.name.as_str().into()),
        ("uid", user.uid.as_str().into()),
        ("groups", list(&user.groups)),
        ("extra", Value::object()),
    ]);
    for (key, values) in extra {
        shown.set(&["extra", key], values);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::settings::issuers_of;
    use super::*;

    /// A configuration of one issuer with these settings beside the issuer's own.
    fn issuer(settings: &str) -> Issuer {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: https://i.example.com, audiences: [a]}}\n{settings}"
        );
        issuers_of(&text, &[]).unwrap().issuers.remove(0)
    }

    #[track_caller]
    fn check(settings: &str, claims: &str, want: Result<&str, &str>) {
        let user = user_of(&issuer(settings), &serde_json::from_str(claims).unwrap());
        let shown = user.map(|u| format!("{} {} {:?} {:?}", u.name, u.uid, u.groups, u.extra));
        assert_eq!(shown.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn claims_are_mapped_by_name() {
        let settings = "  claimMappings:\n    username: {claim: sub, prefix: 'oidc:'}\n    groups: {claim: roles, prefix: 'g:'}\n    uid: {claim: id}\n";
        check(
            settings,
            r#"{"sub":"jane","roles":["a","b"],"id":"7","jti":"x"}"#,
            Ok(r#"oidc:jane 7 ["g:a", "g:b"] {"authentication.kubernetes.io/credential-id": ["JTI=x"]}"#),
        );
        check(settings, r#"{"sub":"jane","roles":"a","id":"7"}"#, Ok(r#"oidc:jane 7 ["g:a"] {}"#));
        check(settings, r#"{"roles":[]}"#, Err(r#"parse username claims "sub": claim not present"#));
        let email = "  claimMappings:\n    username: {claim: email, prefix: ''}\n";
        check(email, r#"{"email":"a@b","email_verified":true}"#, Ok("a@b  [] {}"));
        check(email, r#"{"email":"a@b","email_verified":false}"#, Err("email not verified"));
    }

    #[test]
    fn claims_are_mapped_by_expressions() {
        let settings = "  claimMappings:\n    username: {expression: 'claims.sub + \"@x\"'}\n    groups: {expression: 'claims.roles.split(\",\")'}\n    extra:\n    - {key: example.com/tenant, valueExpression: claims.tenant}\n";
        check(
            settings,
            r#"{"sub":"jane","roles":"a,b","tenant":"t"}"#,
            Ok(r#"jane@x  ["a", "b"] {"example.com/tenant": ["t"]}"#),
        );
    }

    #[test]
    fn rules_are_about_claims_and_about_the_user() {
        let settings = "  claimValidationRules:\n  - {claim: hd, requiredValue: x}\n  - {expression: 'claims.exp - claims.iat <= 10', message: too long}\n  claimMappings:\n    username: {claim: sub, prefix: ''}\n  userValidationRules:\n  - {expression: \"!user.username.startsWith('system:')\", message: no system users}\n";
        check(settings, r#"{"sub":"a","hd":"x","exp":20,"iat":10}"#, Ok("a  [] {}"));
        check(settings, r#"{"sub":"a","exp":20,"iat":10}"#, Err("required claim hd not present in ID token"));
        check(
            settings,
            r#"{"sub":"a","hd":"x","exp":21,"iat":10}"#,
            Err("validation expression 'claims.exp - claims.iat <= 10' failed: too long"),
        );
        check(
            settings,
            r#"{"sub":"system:node","hd":"x","exp":20,"iat":10}"#,
            Err("validation expression '!user.username.startsWith('system:')' failed: no system users"),
        );
    }
}
