//! Tokens that a server outside is asked about (`TokenReview`).

use std::collections::BTreeMap;
use std::time::Duration;

use apimachinery::Value;
use async_trait::async_trait;
use http::request::Parts;
use sha2::{Digest, Sha256};

use super::{Authenticated, Authenticator, Outcome, bearer_token};
use crate::attributes::UserInfo;
use crate::config::TokenWebhookConfig;
use crate::outbound::document_of;
use crate::outbound::kubeconfig::{Remote, may_pass};
use crate::outbound::remembered::Remembered;

/// Before the server is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How many answers are remembered.
const REMEMBERED: usize = 10_000;

pub(crate) struct TokenWebhook {
    remote: Remote,
    version: String,
    ttl: Duration,
    /// What a token must be meant for.
    audiences: Vec<String>,
    /// By a digest of the token: tokens themselves are not kept.
    answers: Remembered<[u8; 32], Answered>,
}

/// What the server says of a token; the text is why it is not good.
type Answered = Result<Authenticated, String>;

impl TokenWebhook {
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub(crate) fn new(config: &TokenWebhookConfig, audiences: Vec<String>) -> Result<Self, String> {
        Ok(TokenWebhook {
            remote: Remote::load(&config.config_file)?,
            version: config.version.clone(),
            ttl: config.cache_ttl,
            audiences,
            answers: Remembered::new(REMEMBERED),
        })
    }

    async fn review(&self, token: &str) -> Outcome {
        let key: [u8; 32] = Sha256::digest(token).into();
        let answered = match self.answers.get(&key) {
            Some(answered) => answered,
            None => match self.ask(token).await {
                Ok(answered) => {
                    self.answers.put(key, answered.clone(), self.ttl);
                    answered
                }
                // Nothing was learned of the token.
                Err(why) => return Outcome::Failed(why),
            },
        };
        match answered {
            Ok(authenticated) => Outcome::User(authenticated),
            Err(why) => Outcome::Failed(why),
        }
    }

    async fn ask(&self, token: &str) -> Result<Answered, String> {
        let mut spec = Value::from([("token", token.into())]);
        if !self.audiences.is_empty() {
            spec.set(&["audiences"], self.audiences.iter().map(|a| Value::from(a.as_str())).collect::<Vec<_>>());
        }
        let review = Value::from([
            ("apiVersion", format!("authentication.k8s.io/{}", self.version).into()),
            ("kind", "TokenReview".into()),
            ("spec", spec),
        ]);
        let question = serde_json::to_vec(&review).map_err(|e| e.to_string())?;
        let answer = self.remote.post_again(question.into(), FIRST_PAUSE, may_pass).await?;
        document_of(&answer).map(|document| answered(&document, &self.audiences))
    }
}

#[async_trait]
impl Authenticator for TokenWebhook {
    async fn authenticate(&self, request: &Parts) -> Outcome {
        match bearer_token(request) {
            Some(token) => self.review(token).await,
            None => Outcome::Pass,
        }
    }
}

fn answered(review: &Value, wanted: &[String]) -> Answered {
    let status = &review["status"];
    let strings =
        |list: &Value| -> Vec<String> { list.items().iter().filter_map(Value::as_str).map(str::to_owned).collect() };
    if status["authenticated"].as_bool() != Some(true) {
        let error = status.str_at(&["error"]);
        return Err(if error.is_empty() { "invalid bearer token".to_owned() } else { error.to_owned() });
    }
    let told = strings(&status["audiences"]);
    let audiences: Vec<String> = if told.is_empty() {
        // One that knows nothing of audiences answers for this server's own.
        wanted.to_vec()
    } else {
        told.into_iter().filter(|audience| wanted.contains(audience)).collect()
    };
    if audiences.is_empty() && !wanted.is_empty() {
        return Err("the token is not meant for this server".to_owned());
    }
    let user = &status["user"];
    let mut groups = strings(&user["groups"]);
    groups.push("system:authenticated".to_owned());
    let extra: BTreeMap<String, Vec<String>> =
        user["extra"].entries().iter().map(|(key, values)| (key.to_string(), strings(values))).collect();
    let user =
        UserInfo { name: user.str_at(&["username"]).to_owned(), uid: user.str_at(&["uid"]).to_owned(), groups, extra };
    Ok(Authenticated { user, audiences })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: &str, want: Result<&str, &str>) {
        let review = serde_json::from_str(&format!(r#"{{"status":{status}}}"#)).unwrap();
        let told = answered(&review, &["api".to_owned()]).map(|a| format!("{} {:?}", a.user.name, a.user.groups));
        assert_eq!(told.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn answers_are_believed_for_this_server_only() {
        check(
            r#"{"authenticated":true,"user":{"username":"jane","groups":["a"]}}"#,
            Ok(r#"jane ["a", "system:authenticated"]"#),
        );
        check(
            r#"{"authenticated":true,"audiences":["x"],"user":{"username":"jane"}}"#,
            Err("the token is not meant for this server"),
        );
        check(r#"{"authenticated":false,"error":"no such token"}"#, Err("no such token"));
        check("{}", Err("invalid bearer token"));
    }
}
