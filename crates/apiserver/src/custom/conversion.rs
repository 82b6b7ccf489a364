//! Conversion between the versions of a custom resource by a webhook (`ConversionReview`).
//!
//! Whoever reads an object that is stored in another version than is wanted waits for the webhook; the cache holds what is
//! stored. Metadata is not the webhook's, except labels and annotations.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::status::Status;

use super::Custom;
use crate::lister::Lister;
use crate::outbound;
use crate::registry::status::plain;
use crate::resources::Resource;

/// How long a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Who converts.
pub(crate) struct Webhook {
    client_config: Value,
    review_version: Option<&'static str>,
    lister: Arc<dyn Lister>,
}

impl Webhook {
    /// `None` for a definition whose versions differ in their name only.
    #[must_use]
    pub(super) fn of(definition: &Value, lister: &Arc<dyn Lister>) -> Option<Self> {
        let conversion = definition.at(&["spec", "conversion"]);
        if conversion.str_at(&["strategy"]) != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let accepted = webhook["conversionReviewVersions"].items().iter().filter_map(Value::as_str);
        let known = |version: &str| ["v1", "v1beta1"].into_iter().find(|known| *known == version);
        Some(Webhook {
            client_config: webhook["clientConfig"].clone(),
            review_version: accepted.filter_map(known).next(),
            lister: Arc::clone(lister),
        })
    }

    /// Takes objects into a version (`group/version`); those that have it already are left alone.
    ///
    /// # Errors
    /// What went wrong, in upstream's words.
    async fn convert(&self, objects: &mut [Value], to: &str) -> Result<(), Status> {
        let ours: Vec<usize> =
            objects.iter().enumerate().filter(|(_, object)| object.api_version() != to).map(|(i, _)| i).collect();
        let Some(first) = ours.first().map(|i| &objects[*i]) else { return Ok(()) };
        let kind = format!("{}, Kind={}", first.api_version(), first.kind());
        let version = self.review_version.ok_or_else(|| plain("no supported conversion review versions"))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let sent = ours.iter().map(|i| objects[*i].clone()).collect::<Vec<_>>();
        let review = review_of(&uid, version, to, sent);
        let failed = |why: String| plain(format!("conversion webhook for {kind} failed: {why}"));
        let lister = self.lister.as_ref();
        let asked = outbound::ask(&self.client_config, &review, TIMEOUT, lister, "kube-apiserver").await;
        let answer = asked.map_err(|failure| failed(failure.to_string()))?;
        let converted = converted_objects(&answer, &uid, version).map_err(failed)?;
        if converted.len() != ours.len() {
            let (got, wanted) = (converted.len(), ours.len());
            return Err(plain(format!("conversion webhook for {kind} returned {got} objects, expected {wanted}")));
        }
        for (nth, (i, new)) in ours.into_iter().zip(converted).enumerate() {
            let original = &objects[i];
            let checked = fitting(original, new, to).map_err(|wrong| match wrong {
                Wrong::Object(why) => {
                    format!("conversion webhook for {kind} returned invalid object at index {nth}: {why}")
                }
                Wrong::Metadata(why) => format!("conversion webhook for {kind} returned invalid metadata: {why}"),
            });
            objects[i] = checked.map_err(plain)?;
        }
        Ok(())
    }
}

/// Takes stored objects, each in the version that it says, into the version that the resource serves.
///
/// # Errors
/// When the webhook fails.
pub(crate) async fn to_served(resource: &Resource, webhook: &Webhook, objects: &mut [Value]) -> Result<(), Status> {
    let wanted = resource.def.gvr.group_version().to_string();
    let converted: Vec<bool> = objects.iter().map(|o| o.api_version() != wanted).collect();
    webhook.convert(objects, &wanted).await?;
    let Some(custom) = &resource.custom else { return Ok(()) };
    for (object, _) in objects.iter_mut().zip(converted).filter(|(_, converted)| *converted) {
        *object = fitted(custom, std::mem::take(object))?;
        resource.def.strategy.default(object);
    }
    Ok(())
}

/// Takes an object of the served version into the stored one.
///
/// # Errors
/// When the webhook fails.
pub(crate) async fn to_storage(resource: &Resource, webhook: &Webhook, object: &mut Value) -> Result<(), Status> {
    let stored = resource.def.storage.group_version().to_string();
    webhook.convert(std::slice::from_mut(object), &stored).await
}

/// What a webhook made, without what the schema does not know.
fn fitted(custom: &Custom, object: Value) -> Result<Value, Status> {
    super::typed(custom, object).map(|decoded| decoded.value).map_err(|e| plain(e.to_string()))
}

fn review_of(uid: &str, version: &str, to: &str, objects: Vec<Value>) -> Value {
    Value::from([
        ("kind", "ConversionReview".into()),
        ("apiVersion", format!("apiextensions.k8s.io/{version}").into()),
        ("request", Value::from([("uid", uid.into()), ("desiredAPIVersion", to.into()), ("objects", objects.into())])),
    ])
}

fn converted_objects(answer: &Value, uid: &str, version: &str) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    if version == "v1" && (answer.api_version() != "apiextensions.k8s.io/v1" || answer.kind() != "ConversionReview") {
        return Err(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {}, Kind={}",
            answer.api_version(),
            answer.kind()
        ));
    }
    if response.is_null() {
        return Err("no response provided".to_owned());
    }
    if version == "v1" && response.str_at(&["uid"]) != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.str_at(&["uid"])));
    }
    match (response.str_at(&["result", "status"]), response.str_at(&["result", "message"])) {
        ("Success", _) => Ok(response["convertedObjects"].items().to_vec()),
        (status, "") => Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => Err(message.to_owned()),
    }
}

/// What is wrong with a converted object.
#[derive(Debug, PartialEq)]
enum Wrong {
    Object(String),
    Metadata(String),
}

/// The converted object with the original's metadata, if it is still the same object.
fn fitting(original: &Value, mut new: Value, to: &str) -> Result<Value, Wrong> {
    let object = |why: String| Err(Wrong::Object(why));
    if new.api_version() != to {
        return object(format!("invalid groupVersion (expected {to}, received {})", new.api_version()));
    }
    if new.kind() != original.kind() {
        return object(format!("invalid kind (expected {}, received {})", original.kind(), new.kind()));
    }
    for (what, field) in [("name", "name"), ("namespace", "namespace"), ("UID", "uid")] {
        let (was, is) = (original.meta(field).as_str(), new.meta(field).as_str());
        if was.unwrap_or_default() != is.unwrap_or_default() {
            return object(format!(
                "must have the same {what}: {} != {}",
                was.unwrap_or_default(),
                is.unwrap_or_default()
            ));
        }
    }
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        match new.meta(field) {
            Value::Null => {
                metadata.remove(&[field]);
            }
            map => {
                if !map.entries().values().all(|v| v.as_str().is_some()) || map.as_object().is_none() {
                    return Err(Wrong::Metadata(format!("metadata.{field}: must be a map of strings")));
                }
                metadata.set(&[field], map.clone());
            }
        }
    }
    new.set(&["metadata"], metadata);
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn answer(uid: &str, result: &str) -> Value {
        json(&format!(
            r#"{{"apiVersion":"apiextensions.k8s.io/v1","kind":"ConversionReview","response":{{"uid":"{uid}","result":{result},"convertedObjects":[{{}}]}}}}"#
        ))
    }

    #[track_caller]
    fn refused(answer: &Value, why: &str) {
        assert_eq!(converted_objects(answer, "1", "v1").unwrap_err(), why);
    }

    #[test]
    fn answers_must_be_to_the_question() {
        assert_eq!(converted_objects(&answer("1", r#"{"status":"Success"}"#), "1", "v1").unwrap().len(), 1);
        refused(&answer("2", r#"{"status":"Success"}"#), r#"expected response.uid="1", got "2""#);
        refused(&answer("1", r#"{"status":"Failure"}"#), "response.result.status was 'Failure', not 'Success'");
        refused(&answer("1", r#"{"status":"Failure","message":"no"}"#), "no");
        refused(
            &json(r#"{"apiVersion":"v1","kind":"X"}"#),
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got v1, Kind=X",
        );
    }

    #[track_caller]
    fn check(new: &str, want: Result<&str, Wrong>) {
        let original = json(
            r#"{"apiVersion":"g/v1","kind":"T","metadata":{"name":"a","uid":"u","generation":3,"labels":{"x":"1"}}}"#,
        );
        assert_eq!(fitting(&original, json(new), "g/v2"), want.map(json));
    }

    #[test]
    fn a_webhook_changes_labels_and_annotations_and_no_other_metadata() {
        check(
            r#"{"apiVersion":"g/v2","kind":"T","metadata":{"name":"a","uid":"u","generation":9,"annotations":{"y":"2"}},"spec":{}}"#,
            Ok(
                r#"{"apiVersion":"g/v2","kind":"T","metadata":{"name":"a","uid":"u","generation":3,"annotations":{"y":"2"}},"spec":{}}"#,
            ),
        );
        check(
            r#"{"apiVersion":"g/v2","kind":"T","metadata":{"name":"b","uid":"u"}}"#,
            Err(Wrong::Object("must have the same name: a != b".to_owned())),
        );
        check(
            r#"{"apiVersion":"g/v3","kind":"T","metadata":{"name":"a","uid":"u"}}"#,
            Err(Wrong::Object("invalid groupVersion (expected g/v2, received g/v3)".to_owned())),
        );
        check(
            r#"{"apiVersion":"g/v2","kind":"T","metadata":{"name":"a","uid":"u","labels":{"x":1}}}"#,
            Err(Wrong::Metadata("metadata.labels: must be a map of strings".to_owned())),
        );
    }
}
