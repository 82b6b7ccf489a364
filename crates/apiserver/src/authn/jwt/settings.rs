//! `AuthenticationConfiguration`, and what the `--oidc-…` flags mean in its terms.

use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::claims::Expression;
use crate::config::OidcConfig;

const VERSIONS: &[&str] =
    &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
const KIND: &str = "AuthenticationConfiguration";
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// What a configuration says.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    pub issuers: Vec<Issuer>,
    /// `None`: the flag decides.
    pub anonymous: Option<Anonymous>,
}

/// Who may come without credentials.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Anonymous {
    pub enabled: bool,
    /// The only paths that they may ask for; empty: any.
    pub paths: Vec<String>,
}

impl Anonymous {
    pub(crate) fn by_flag(enabled: bool) -> Self {
        Anonymous { enabled, paths: Vec::new() }
    }
}

/// An issuer of tokens, and what they say.
#[derive(Debug, PartialEq)]
pub(crate) struct Issuer {
    pub url: String,
    pub discovery_url: Option<String>,
    /// In PEM. `None`: whom the system trusts.
    pub certificate_authority: Option<String>,
    pub audiences: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub required_claims: Vec<(String, String)>,
    pub claim_rules: Vec<(Expression, String)>,
    pub username: Source,
    pub groups: Option<Source>,
    pub uid: Option<Source>,
    pub extra: Vec<(String, Expression)>,
    pub user_rules: Vec<(Expression, String)>,
}

/// Where a property of the user comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    Claim { claim: String, prefix: String },
    Expression(Expression),
}

impl Default for Issuer {
    fn default() -> Self {
        Issuer {
            url: String::new(),
            discovery_url: None,
            certificate_authority: None,
            audiences: Vec::new(),
            algorithms: ALGORITHMS.to_vec(),
            required_claims: Vec::new(),
            claim_rules: Vec::new(),
            username: Source::Claim { claim: "sub".to_owned(), prefix: String::new() },
            groups: None,
            uid: None,
            extra: Vec::new(),
            user_rules: Vec::new(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    jwt: Vec<Jwt>,
    anonymous: Option<AnonymousFile>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AnonymousFile {
    enabled: bool,
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    path: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Jwt {
    issuer: IssuerFile,
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct IssuerFile {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: String,
    egress_selector_type: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct UserRule {
    expression: String,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Mappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<Extra>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Extra {
    key: String,
    value_expression: String,
}

/// Reads a configuration. `disallowed`: issuers that are this server's own.
///
/// # Errors
/// All that is wrong with it, in upstream's words.
pub(crate) fn issuers_of(text: &str, disallowed: &[String]) -> Result<Settings, String> {
    let path = std::path::Path::new(KIND);
    let file: File = component_base::config_file::parse(text, path, VERSIONS, KIND).map_err(|e| e.to_string())?;
    let mut checker = Checker { wrong: Vec::new(), disallowed };
    let mut issuers: Vec<Issuer> = Vec::new();
    for (i, jwt) in file.jwt.into_iter().enumerate() {
        let at = format!("jwt[{i}]");
        let issuer = checker.issuer(&at, jwt);
        if issuers.iter().any(|other| other.url == issuer.url) {
            checker.add(&format!("{at}.issuer.url"), &format!("Duplicate value: {:?}", issuer.url));
        }
        issuers.push(issuer);
    }
    let anonymous = file.anonymous.map(|a| {
        if !a.enabled && !a.conditions.is_empty() {
            checker.add(
                "anonymous.conditions",
                "Invalid value: enabled should be set to true when conditions are defined",
            );
        }
        Anonymous { enabled: a.enabled, paths: a.conditions.into_iter().map(|c| c.path).collect() }
    });
    if checker.wrong.is_empty() { Ok(Settings { issuers, anonymous }) } else { Err(checker.wrong.join("\n")) }
}

/// The issuer that the flags name.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn issuer_of_flags(config: &OidcConfig) -> Result<Issuer, String> {
    let authority = config
        .ca_file
        .as_ref()
        .map(|path| std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display())));
    let algorithms = config.signing_algorithms.iter().map(|name| {
        let known: Result<Algorithm, _> = name.parse();
        known.ok().filter(|a| ALGORITHMS.contains(a)).ok_or_else(|| format!("oidc: unsupported signing alg: {name:?}"))
    });
    let required = config.required_claims.iter().map(|pair| {
        let split = pair.split_once('=').map(|(claim, value)| (claim.trim().to_owned(), value.to_owned()));
        split.ok_or_else(|| format!("{pair:?} is no key=value"))
    });
    let usual_prefix =
        || if config.username_claim == "email" { String::new() } else { format!("{}#", config.issuer_url) };
    let prefix = match config.username_prefix.as_deref() {
        None => usual_prefix(),
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
    };
    let mut checker = Checker { wrong: Vec::new(), disallowed: &[] };
    checker.url("oidc-issuer-url", &config.issuer_url);
    if !checker.wrong.is_empty() {
        return Err(checker.wrong.join("\n"));
    }
    Ok(Issuer {
        url: config.issuer_url.clone(),
        certificate_authority: authority.transpose()?,
        audiences: vec![config.client_id.clone()],
        algorithms: algorithms.collect::<Result<_, _>>()?,
        required_claims: required.collect::<Result<_, _>>()?,
        username: Source::Claim { claim: config.username_claim.clone(), prefix },
        groups: config.groups_claim.clone().map(|claim| Source::Claim { claim, prefix: config.groups_prefix.clone() }),
        ..Issuer::default()
    })
}

struct Checker<'a> {
    wrong: Vec<String>,
    disallowed: &'a [String],
}

impl Checker<'_> {
    fn add(&mut self, at: &str, why: &str) {
        self.wrong.push(format!("{at}: {why}"));
    }

    fn url(&mut self, at: &str, url: &str) {
        if url.is_empty() {
            return self.add(at, "Required value: URL is required");
        }
        let Ok(uri) = url.parse::<http::Uri>() else {
            return self.add(at, &format!("Invalid value: {url:?}: it is no URL"));
        };
        if uri.scheme_str() != Some("https") {
            self.add(at, &format!("Invalid value: {url:?}: URL scheme must be https"));
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            self.add(at, &format!("Invalid value: {url:?}: URL must not contain a username or password"));
        }
        if url.contains('?') {
            self.add(at, &format!("Invalid value: {url:?}: URL must not contain a query"));
        }
        if url.contains('#') {
            self.add(at, &format!("Invalid value: {url:?}: URL must not contain a fragment"));
        }
    }

    fn expression(&mut self, at: &str, source: &str) -> Option<Expression> {
        match Expression::compile(source) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.add(at, &format!("Invalid value: {source:?}: {why}"));
                None
            }
        }
    }

    fn issuer(&mut self, at: &str, jwt: Jwt) -> Issuer {
        let own = format!("{at}.issuer");
        let file = jwt.issuer;
        self.url(&format!("{own}.url"), &file.url);
        if self.disallowed.contains(&file.url) {
            let why = format!(
                "Invalid value: {:?}: URL must not overlap with disallowed issuers: {:?}",
                file.url, self.disallowed
            );
            self.add(&format!("{own}.url"), &why);
        }
        if let Some(url) = &file.discovery_url {
            let at = format!("{own}.discoveryURL");
            self.url(&at, url);
            if url.trim_end_matches('/') == file.url.trim_end_matches('/') {
                self.add(&at, &format!("Invalid value: {url:?}: discoveryURL must be different from URL"));
            }
        }
        if file.audiences.is_empty() {
            self.add(&format!("{own}.audiences"), "Required value: at least one jwt[].issuer.audiences is required");
        }
        let policy = format!("{own}.audienceMatchPolicy");
        match (file.audience_match_policy.as_str(), file.audiences.len()) {
            ("" | "MatchAny", 0..=1) | ("MatchAny", _) => {}
            ("", _) => {
                self.add(&policy, "Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences");
            }
            (other, _) => {
                self.add(&policy, &format!("Invalid value: {other:?}: audienceMatchPolicy must be empty or MatchAny"));
            }
        }
        if !file.egress_selector_type.is_empty() {
            let why = format!("Unsupported value: {:?}: there is no egress selector", file.egress_selector_type);
            self.add(&format!("{own}.egressSelectorType"), &why);
        }
        let mut issuer = Issuer {
            url: file.url,
            discovery_url: file.discovery_url,
            certificate_authority: Some(file.certificate_authority).filter(|pem| !pem.is_empty()),
            audiences: file.audiences,
            ..Issuer::default()
        };
        for (i, rule) in jwt.claim_validation_rules.into_iter().enumerate() {
            let at = format!("{at}.claimValidationRules[{i}]");
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (true, true) => self.add(&at, "Required value: claim or expression is required"),
                (false, false) => self.add(&at, "Invalid value: claim and expression can't both be set"),
                (false, true) => issuer.required_claims.push((rule.claim, rule.required_value)),
                (true, false) => {
                    if let Some(expression) = self.expression(&format!("{at}.expression"), &rule.expression) {
                        issuer.claim_rules.push((expression, rule.message));
                    }
                }
            }
        }
        let mappings = format!("{at}.claimMappings");
        match self.mapping(&format!("{mappings}.username"), jwt.claim_mappings.username, true) {
            Some(source) => issuer.username = source,
            None => {
                let why = "Required value: claim or expression is required";
                self.add(&format!("{mappings}.username"), why);
            }
        }
        issuer.groups = self.mapping(&format!("{mappings}.groups"), jwt.claim_mappings.groups, true);
        issuer.uid = self.mapping(&format!("{mappings}.uid"), jwt.claim_mappings.uid, false);
        for (i, extra) in jwt.claim_mappings.extra.into_iter().enumerate() {
            let at = format!("{mappings}.extra[{i}]");
            self.extra_key(&format!("{at}.key"), &extra.key);
            if issuer.extra.iter().any(|(key, _)| *key == extra.key) {
                self.add(&format!("{at}.key"), &format!("Duplicate value: {:?}", extra.key));
            }
            if let Some(expression) = self.expression(&format!("{at}.valueExpression"), &extra.value_expression) {
                issuer.extra.push((extra.key, expression));
            }
        }
        self.verified_email(&format!("{mappings}.username.expression"), &issuer);
        for (i, rule) in jwt.user_validation_rules.into_iter().enumerate() {
            let at = format!("{at}.userValidationRules[{i}].expression");
            if rule.expression.is_empty() {
                self.add(&at, "Required value: expression is required");
            } else if let Some(expression) = self.expression(&at, &rule.expression) {
                issuer.user_rules.push((expression, rule.message));
            }
        }
        issuer
    }

    /// A user's name may be an address only where somebody looks whether the issuer has verified it.
    fn verified_email(&mut self, at: &str, issuer: &Issuer) {
        let Source::Expression(username) = &issuer.username else { return };
        let rules = issuer.claim_rules.iter().map(|(rule, _)| rule);
        let mut looking = rules.chain(issuer.extra.iter().map(|(_, extra)| extra)).chain([username]);
        if username.uses_claim("email") && !looking.any(|expression| expression.uses_claim("email_verified")) {
            let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            self.add(at, &format!("Invalid value: {:?}: {why}", username.source));
        }
    }

    /// Keys of extra information belong to somebody's domain, and not to Kubernetes'.
    fn extra_key(&mut self, at: &str, key: &str) {
        if key.is_empty() {
            return self.add(at, "Required value");
        }
        let domain = key.split_once('/').map(|(domain, _)| domain).filter(|domain| !domain.is_empty());
        match domain {
            None => self
                .add(at, &format!("Invalid value: {key:?}: must be a domain-prefixed path (such as \"acme.io/foo\")")),
            Some(_) if key.to_lowercase() != key => {
                self.add(at, &format!("Invalid value: {key:?}: key must be lowercase"));
            }
            Some(domain) => {
                let reserved = ["k8s.io", "kubernetes.io"];
                if reserved.iter().any(|r| domain == *r || domain.ends_with(&format!(".{r}"))) {
                    self.add(at, &format!("Invalid value: {key:?}: k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"));
                }
            }
        }
    }

    fn mapping(&mut self, at: &str, mapping: Mapping, prefixed: bool) -> Option<Source> {
        match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
            (true, true) => {
                if mapping.prefix.is_some() {
                    self.add(
                        &format!("{at}.prefix"),
                        "Invalid value: non-nil prefix: prefix can't be set when claim isn't set",
                    );
                }
                None
            }
            (false, false) => {
                self.add(at, "Invalid value: claim and expression can't both be set");
                None
            }
            (false, true) => {
                if prefixed && mapping.prefix.is_none() {
                    let why = "Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.add(&format!("{at}.prefix"), why);
                }
                Some(Source::Claim { claim: mapping.claim, prefix: mapping.prefix.unwrap_or_default() })
            }
            (true, false) => {
                if mapping.prefix.is_some() {
                    let why = "Invalid value: non-nil prefix: prefix can't be set when expression is set";
                    self.add(&format!("{at}.prefix"), why);
                }
                self.expression(&format!("{at}.expression"), &mapping.expression).map(Source::Expression)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn complaints(rest: &str, want: &[&str]) {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}");
        let wrong = issuers_of(&text, &["https://own".to_owned()]).unwrap_err();
        assert_eq!(wrong.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn all_mistakes_are_named() {
        complaints(
            "jwt:\n- issuer: {url: 'http://x', audiences: [a, b]}\n  claimMappings: {username: {claim: sub}}\n",
            &[
                "jwt[0].issuer.url: Invalid value: \"http://x\": URL scheme must be https",
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ],
        );
        complaints(
            "jwt:\n- issuer: {url: 'https://own'}\n",
            &[
                "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: [\"https://own\"]",
                "jwt[0].issuer.audiences: Required value: at least one jwt[].issuer.audiences is required",
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ],
        );
        complaints(
            "anonymous: {enabled: false, conditions: [{path: /livez}]}\n",
            &["anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined"],
        );
        let unknown = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nnope: 1\n";
        assert!(issuers_of(unknown, &[]).unwrap_err().contains("unknown field \"nope\""));
    }

    #[test]
    fn an_address_that_nobody_has_verified_names_no_user() {
        let of = |username: &str, rest: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://x', audiences: [a]}}\n  claimMappings: {{username: {{expression: {username:?}}}}}\n{rest}"
            );
            issuers_of(&text, &[]).map(drop)
        };
        assert_eq!(of("claims.sub", ""), Ok(()));
        assert_eq!(
            of("claims.email", ""),
            Err("jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression".to_owned())
        );
        assert_eq!(of("claims.email_verified ? claims.email : claims.sub", ""), Ok(()));
        assert_eq!(
            of("claims.email", "  claimValidationRules: [{expression: claims.?email_verified.orValue(true)}]\n"),
            Ok(())
        );
    }

    #[test]
    fn flags_are_an_issuer() {
        let config = OidcConfig {
            issuer_url: "https://i".to_owned(),
            client_id: "c".to_owned(),
            ca_file: None,
            username_claim: "sub".to_owned(),
            username_prefix: None,
            groups_claim: Some("roles".to_owned()),
            groups_prefix: "g:".to_owned(),
            required_claims: vec!["hd=x".to_owned()],
            signing_algorithms: vec!["ES256".to_owned()],
        };
        let issuer = issuer_of_flags(&config).unwrap();
        assert_eq!(issuer.username, Source::Claim { claim: "sub".to_owned(), prefix: "https://i#".to_owned() });
        assert_eq!(issuer.required_claims, [("hd".to_owned(), "x".to_owned())]);
        let wrong = OidcConfig { signing_algorithms: vec!["HS256".to_owned()], ..config };
        assert_eq!(issuer_of_flags(&wrong), Err("oidc: unsupported signing alg: \"HS256\"".to_owned()));
    }
}
