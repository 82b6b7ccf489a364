//! What somebody may ask for: open paths, the masters of the system, and else what the API server says.

use component_base::secure_port::{Believed, SecurePort};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::Answers;

/// User, groups, path and verb.
type Question = (String, Vec<String>, String, String);

pub(super) struct Authorization {
    client: Client,
    open_paths: Vec<String>,
    believed: Believed,
    answers: Answers<Question, bool>,
}

impl Authorization {
    pub(super) fn new(port: &SecurePort, client: Client) -> Self {
        let (open_paths, believed) = (port.open_paths.clone(), port.believed);
        Self { client, open_paths, believed, answers: Answers::new() }
    }

    pub(super) async fn allows(&self, user: &UserInfo, path: &str, verb: &str) -> Result<bool, kube::Error> {
        if is_open(path, &self.open_paths) {
            return Ok(true);
        }
        let groups = user.groups.clone().unwrap_or_default();
        if groups.iter().any(|group| group == "system:masters") {
            return Ok(true);
        }
        let name = user.username.clone().unwrap_or_default();
        let question = (name, groups, path.to_owned(), verb.to_owned());
        if let Some(answer) = self.answers.get(&question) {
            return Ok(answer);
        }
        let allowed = self.ask(user, path, verb).await?;
        let good_for = if allowed { self.believed.allowed } else { self.believed.refused };
        self.answers.keep(question, allowed, good_for);
        Ok(allowed)
    }

    async fn ask(&self, user: &UserInfo, path: &str, verb: &str) -> Result<bool, kube::Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                groups: user.groups.clone(),
                uid: user.uid.clone(),
                extra: user.extra.clone(),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}

/// Is it one of these paths, or does it begin as one that ends in `*`?
fn is_open(path: &str, open: &[String]) -> bool {
    let path = path.trim_start_matches('/');
    open.iter().map(|pattern| pattern.trim_start_matches('/')).any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => path == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_paths_are_whole_unless_they_end_in_a_star() {
        let open = ["/healthz", "/livez/*", "statusz"].map(str::to_owned);
        for (path, want) in [
            ("/healthz", true),
            ("/healthz/ping", false),
            ("/livez/ping", true),
            ("/livez", false),
            ("/statusz", true),
            ("/metrics", false),
        ] {
            assert_eq!(is_open(path, &open), want, "{path}");
        }
    }
}
