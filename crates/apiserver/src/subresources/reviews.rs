//! Questions that are asked like creates and answered at once: tokens, access reviews, who am I.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use http::{Response, StatusCode};

use super::{answer_value, decoded_body};
use crate::attributes::{Attributes, RequestInfo, UserInfo};
use crate::authn::Outcome;
use crate::authz::rule::Rule;
use crate::authz::{self, Decision, selectors};
use crate::body::{Body, RequestBody};
use crate::handlers::{Call, Target};
use crate::registry::{FieldManager, Write, WriteKind, WriteOptions};

/// `serviceaccounts/NAME/token`
pub(super) async fn token(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let mut request = decoded_body(call, target, body).await?;
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let server = call.server.clone();
    let inner = server.inner();
    let gvr = Gvr::new("", "v1", "serviceaccounts");
    let account = inner.lister().get("serviceaccounts", &namespace, &name);
    let account = account.ok_or_else(|| Status::not_found(&gvr, &name))?;
    let Some(issuer) = &inner.security.issuer else { return Err(Status::no_such_path()) };
    let options = WriteOptions::parse(&call.query, WriteKind::Create, call.user_agent())?;
    let write = crate::handlers::write_of(call, target, options);
    track(&write, &mut request);
    let mut admitted = write.admission_request(crate::admission::Operation::Create, request, Value::Null);
    inner.registry.admission.admit(&mut admitted).await?;
    inner.registry.admission.validate(&mut admitted).await?;
    let answer = issuer.issue(&account, admitted.object)?;
    answer_value(call, answer, StatusCode::CREATED).await
}

/// The reviews, which are resources that are never stored.
pub(super) async fn review(call: &mut Call, target: &Target, body: RequestBody) -> Result<Response<Body>, Status> {
    let mut review = decoded_body(call, target, body).await?;
    let options = WriteOptions::parse(&call.query, WriteKind::Create, call.user_agent())?;
    let write = crate::handlers::write_of(call, target, options);
    crate::handlers::fit_namespace(&mut review, &write)?;
    track(&write, &mut review);
    let user = Arc::clone(&call.user);
    let def = target.resource.def;
    if def.kind.ends_with("AccessReview") {
        let errs = api::validate_access_review(&def.kind, &review);
        if !errs.is_empty() {
            return Err(Status::invalid(&def.gvk(), "", &errs));
        }
    }
    match target.resource.def.gvr.resource.as_str() {
        "tokenreviews" => token_review(call, &mut review).await?,
        "selfsubjectreviews" => {
            review.set(&["status", "userInfo"], user.value());
            review.set(&["metadata", "creationTimestamp"], crate::registry::timestamp());
        }
        "selfsubjectaccessreviews" => access(call, &mut review, &user).await,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let asked = subject(&review["spec"]);
            access(call, &mut review, &Arc::new(asked)).await;
        }
        "selfsubjectrulesreviews" => rules(call, &mut review, &user)?,
        _ => return Err(Status::no_such_path()),
    }
    review.entry(&["metadata"]).make_object();
    answer_value(call, review, StatusCode::CREATED).await
}

/// They are never stored, but are created: whoever asks owns what it says.
fn track(write: &Write, object: &mut Value) {
    let kind = crate::encoding::gvk_of(object.api_version(), object.kind());
    FieldManager::of(write).take_changes_of(&kind, None, object);
}

async fn token_review(call: &Call, review: &mut Value) -> Result<(), Status> {
    let token = review.str_at(&["spec", "token"]).to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> =
        review["spec"]["audiences"].items().iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let server = call.server.inner();
    let mut outcome = server.security.tokens.as_ref().map_or(Outcome::Pass, |t| t.review(&token, &audiences));
    if matches!(outcome, Outcome::Pass) {
        let request = http::Request::builder().header(http::header::AUTHORIZATION, format!("Bearer {token}")).body(());
        if let Ok((parts, ())) = request.map(http::Request::into_parts) {
            for authenticator in &server.security.authenticators {
                match authenticator.authenticate(&parts).await {
                    Outcome::Pass => {}
                    Outcome::Failed(why) => outcome = Outcome::Failed(why),
                    found => {
                        outcome = found;
                        break;
                    }
                }
            }
        }
    }
    let outcome = for_audiences(outcome, &server.security.api_audiences, &audiences);
    let mut status = Value::object();
    match outcome {
        Outcome::User(authenticated) => {
            status.set(&["authenticated"], true);
            status.set(&["user"], authenticated.user.value());
            if !authenticated.audiences.is_empty() {
                let good: Vec<Value> = authenticated.audiences.into_iter().map(Value::from).collect();
                status.set(&["audiences"], good);
            }
        }
        Outcome::Failed(why) => {
            status.set(&["user"], Value::object());
            status.set(&["error"], why);
        }
        Outcome::Pass => {
            status.set(&["user"], Value::object());
        }
    }
    review.set(&["status"], status);
    Ok(())
}

/// The same, told for those that were asked for: a token that is good for none of them is nobody's.
fn for_audiences(outcome: Outcome, own: &[String], asked: &[String]) -> Outcome {
    let Outcome::User(mut authenticated) = outcome else { return outcome };
    if authenticated.audiences.is_empty() {
        // Who proved it knows nothing of audiences: it is good for this server.
        own.clone_into(&mut authenticated.audiences);
    }
    if !asked.is_empty() {
        authenticated.audiences.retain(|audience| asked.contains(audience));
        if authenticated.audiences.is_empty() {
            return Outcome::Pass;
        }
    }
    Outcome::User(authenticated)
}

fn subject(spec: &Value) -> UserInfo {
    let strings =
        |v: &Value| -> Vec<String> { v.items().iter().filter_map(Value::as_str).map(str::to_owned).collect() };
    let extra: BTreeMap<String, Vec<String>> =
        spec["extra"].entries().iter().map(|(k, v)| (k.to_string(), strings(v))).collect();
    UserInfo {
        name: spec.str_at(&["user"]).to_owned(),
        uid: spec.str_at(&["uid"]).to_owned(),
        groups: strings(&spec["groups"]),
        extra,
    }
}

async fn access(call: &Call, review: &mut Value, user: &Arc<UserInfo>) {
    let spec = &review["spec"];
    let text = |v: &Value, key: &str| v.str_at(&[key]).to_owned();
    let request = if spec["resourceAttributes"].is_null() {
        let n = &spec["nonResourceAttributes"];
        RequestInfo { verb: text(n, "verb"), path: text(n, "path"), ..RequestInfo::default() }
    } else {
        let r = &spec["resourceAttributes"];
        let version = Some(text(r, "version")).filter(|version| !version.is_empty()).unwrap_or_else(|| "*".to_owned());
        RequestInfo {
            is_resource: true,
            verb: text(r, "verb"),
            gvr: Gvr::new(&text(r, "group"), &version, &text(r, "resource")),
            subresource: text(r, "subresource"),
            namespace: text(r, "namespace"),
            name: text(r, "name"),
            label_selector: selectors::labels_of(&r["labelSelector"]),
            field_selector: selectors::fields_of(&r["fieldSelector"]),
            ..RequestInfo::default()
        }
    };
    let ignored = ignored_selectors(&request);
    let attributes = Attributes { user: Arc::clone(user), request: Arc::new(request) };
    let verdict = authz::judge(&call.server.inner().security.authorizers, &attributes).await;
    let mut status = Value::from([("allowed", (verdict.decision == Decision::Allow).into())]);
    if verdict.decision == Decision::Deny {
        status.set(&["denied"], true);
    }
    if !verdict.reason.is_empty() {
        status.set(&["reason"], verdict.reason);
    }
    if !ignored.is_empty() {
        status.set(&["evaluationError"], ignored.join("; "));
    }
    review.set(&["status"], status);
}

/// What of the selectors the answer does not rest on.
fn ignored_selectors(request: &RequestInfo) -> Vec<String> {
    let (fields, labels) = (&request.field_selector, &request.label_selector);
    let about = [
        ("fieldSelector", fields.partly, fields.selector.is_empty()),
        ("labelSelector", labels.partly, labels.selector.is_empty()),
    ];
    let ignored = about.into_iter().filter(|(_, partly, _)| *partly).map(|(field, _, wholly)| {
        let how = if wholly { "ignored" } else { "partially ignored" };
        format!("spec.resourceAttributes.{field} {how} due to parse error")
    });
    ignored.collect()
}

fn rules(call: &Call, review: &mut Value, user: &UserInfo) -> Result<(), Status> {
    let namespace = review.str_at(&["spec", "namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut rules = call.server.inner().security.rbac.rules_for(user, &namespace);
    if user.is_in("system:masters") {
        let all = || vec!["*".to_owned()];
        rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
        rules.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
    }
    let list = |items: &[String]| Value::Array(items.iter().map(|i| i.as_str().into()).collect());
    let (mut resource, mut non_resource) = (Vec::new(), Vec::new());
    for rule in rules {
        let mut value = Value::from([("verbs", list(&rule.verbs))]);
        if rule.non_resource_urls.is_empty() {
            for (key, items) in [
                ("apiGroups", &rule.api_groups),
                ("resources", &rule.resources),
                ("resourceNames", &rule.resource_names),
            ] {
                if !items.is_empty() {
                    value.set(&[key], list(items));
                }
            }
            resource.push(value);
        } else {
            value.set(&["nonResourceURLs"], list(&rule.non_resource_urls));
            non_resource.push(value);
        }
    }
    review.set(
        &["status"],
        Value::from([
            ("resourceRules", Value::Array(resource)),
            ("nonResourceRules", Value::Array(non_resource)),
            ("incomplete", false.into()),
        ]),
    );
    if let Some(why) = call.server.inner().security.chain.unlisted(user) {
        review.set(&["status", "incomplete"], true);
        review.set(&["status", "evaluationError"], why);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Authenticated;

    #[track_caller]
    fn check(proved: &[&str], asked: &[&str], want: Option<&[&str]>) {
        let strings = |list: &[&str]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
        let user = Outcome::User(Authenticated { user: UserInfo::default(), audiences: strings(proved) });
        let told = match for_audiences(user, &strings(&["api"]), &strings(asked)) {
            Outcome::User(authenticated) => Some(authenticated.audiences),
            Outcome::Pass | Outcome::Failed(_) => None,
        };
        assert_eq!(told, want.map(strings));
    }

    #[test]
    fn only_audiences_that_a_token_is_good_for_are_confirmed() {
        check(&[], &[], Some(&["api"]));
        check(&[], &["api", "vault"], Some(&["api"]));
        check(&[], &["vault"], None);
        check(&["vault"], &["vault"], Some(&["vault"]));
        check(&["vault"], &["api"], None);
        check(&["vault"], &[], Some(&["vault"]));
    }
}
