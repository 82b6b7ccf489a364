//! A kubeconfig that says where a webhook is, whom to believe there, and how to prove oneself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use apimachinery::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, header};
use rustls::ClientConfig;

use super::{Answer, Endpoint, json_post, trust};

/// A server that is asked by POST.
pub(crate) struct Remote {
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<HeaderValue>,
    /// Holds a token that is better than the one that was there at the start: it may be exchanged at any time.
    token_file: Option<PathBuf>,
}

impl Remote {
    /// Of the current context of a kubeconfig.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let config: serde_json::Value = serde_saphyr::from_str(&text).map_err(|e| format!("{shown}: {e}"))?;
        Self::of(&Value::from(config), path.parent().unwrap_or(Path::new(""))).map_err(|why| format!("{shown}: {why}"))
    }

    /// Files that it names stand beside it in `dir`.
    fn of(config: &Value, dir: &Path) -> Result<Self, String> {
        let context = named(config, "contexts", "context", config.str_at(&["current-context"]))
            .ok_or("no context is current, or there is none of its name")?;
        let cluster = named(config, "clusters", "cluster", context.str_at(&["cluster"]));
        let cluster = cluster.ok_or_else(|| format!("no cluster {:?}", context.str_at(&["cluster"])))?;
        let none = Value::Null;
        let user = match context.str_at(&["user"]) {
            "" => &none,
            name => named(config, "users", "user", name).ok_or_else(|| format!("no user {name:?}"))?,
        };
        for (of, field) in [(cluster, "proxy-url"), (user, "exec"), (user, "auth-provider")] {
            if !matches!(&of[field], Value::Null | Value::String(_)) || !of.str_at(&[field]).is_empty() {
                return Err(format!("{field} is not supported"));
            }
        }
        let server = cluster.str_at(&["server"]);
        let mut endpoint = Endpoint::of_url(server)?;
        let name = cluster.str_at(&["tls-server-name"]);
        if !name.is_empty() {
            name.clone_into(&mut endpoint.host);
        }
        let roots = match data(cluster, "certificate-authority", dir)? {
            _ if cluster["insecure-skip-tls-verify"].as_bool() == Some(true) => trust::Roots::Anyone,
            Some(pem) => trust::Roots::Pem(pem),
            None => trust::Roots::System,
        };
        let identity = match (data(user, "client-certificate", dir)?, data(user, "client-key", dir)?) {
            (Some(cert), Some(key)) => Some(trust::identity_of_pem(&cert, &key)?),
            (None, None) => None,
            (Some(_), None) => return Err("client-certificate is there without client-key".to_owned()),
            (None, Some(_)) => return Err("client-key is there without client-certificate".to_owned()),
        };
        let token_file = Some(user.str_at(&["tokenFile"])).filter(|path| !path.is_empty()).map(|path| dir.join(path));
        let token = match (user.str_at(&["token"]), &token_file) {
            ("", Some(path)) => Some(token_of(&read(path)?)),
            ("", None) => None,
            (token, _) => Some(token.to_owned()),
        };
        let basic = || {
            let name = user["username"].as_str().filter(|name| !name.is_empty())?;
            Some(format!("Basic {}", STANDARD.encode(format!("{name}:{}", user.str_at(&["password"])))))
        };
        let authorization = match token {
            Some(token) => Some(bearer(&token)?),
            None => basic().map(|text| HeaderValue::from_str(&text).map_err(|e| e.to_string())).transpose()?,
        };
        let tls = server.starts_with("https:").then(|| trust::verified(roots, identity)).transpose()?;
        Ok(Remote { endpoint, tls, authorization, token_file })
    }

    async fn authorization(&self) -> Option<HeaderValue> {
        if let Some(path) = &self.token_file {
            match tokio::fs::read(path).await.map_err(|e| e.to_string()).and_then(|text| bearer(&token_of(&text))) {
                Ok(authorization) => return Some(authorization),
                Err(why) => tracing::warn!(path = %path.display(), why, "a token cannot be read again"),
            }
        }
        self.authorization.clone()
    }

    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn post(&self, question: &Value, timeout: std::time::Duration) -> Result<Answer, String> {
        self.post_bytes(serde_json::to_vec(question).map_err(|e| e.to_string())?.into(), timeout).await
    }

    /// As [`Self::post`], of JSON that is there already.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn post_bytes(&self, json: Bytes, timeout: std::time::Duration) -> Result<Answer, String> {
        let mut request = json_post(json);
        if let Some(authorization) = self.authorization().await {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        self.endpoint.post(self.tls.clone(), request, timeout).await
    }
}

fn token_of(text: &[u8]) -> String {
    String::from_utf8_lossy(text.trim_ascii()).into_owned()
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| e.to_string())
}

fn named<'v>(config: &'v Value, list: &str, field: &str, name: &str) -> Option<&'v Value> {
    config[list].items().iter().find(|entry| entry.str_at(&["name"]) == name).map(|entry| &entry[field])
}

/// What stands in place (`<field>-data`, in base64) or in a file.
fn data(of: &Value, field: &str, dir: &Path) -> Result<Option<Vec<u8>>, String> {
    let inline = of.str_at(&[&format!("{field}-data")]);
    if !inline.is_empty() {
        return STANDARD.decode(inline).map(Some).map_err(|e| format!("{field}-data: {e}"));
    }
    match of.str_at(&[field]) {
        "" => Ok(None),
        path => read(&dir.join(path)).map(Some),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Remote, String> {
        Remote::of(&serde_json::from_str(text).unwrap(), Path::new("/none"))
    }

    #[test]
    fn a_server_and_a_token_are_found() {
        let remote = of(
            r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],
            "clusters":[{"name":"k","cluster":{"server":"https://h:9/p?q=1"}}],"users":[{"name":"u","user":{"token":"t"}}]}"#,
        )
        .unwrap();
        assert_eq!((remote.endpoint.port, remote.endpoint.path_and_query.as_str()), (9, "/p?q=1"));
        assert_eq!(remote.authorization.unwrap(), "Bearer t");
        assert!(remote.tls.is_some());
    }

    #[test]
    fn what_is_missing_is_said() {
        let why = |text: &str| of(text).err().unwrap_or_default();
        assert_eq!(why("{}"), "no context is current, or there is none of its name");
        let lost = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}]}"#;
        assert_eq!(why(lost), "no cluster \"k\"");
        let file = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}],
            "clusters":[{"name":"k","cluster":{"server":"https://h","certificate-authority":"ca.crt"}}]}"#;
        assert!(why(file).starts_with("cannot read /none/ca.crt: "));
        let with = |cluster: &str, user: &str| {
            why(&format!(
                r#"{{"current-context":"c","contexts":[{{"name":"c","context":{{"cluster":"k","user":"u"}}}}],
                "clusters":[{{"name":"k","cluster":{{"server":"https://h"{cluster}}}}}],"users":[{user}]}}"#
            ))
        };
        assert_eq!(with("", ""), "no user \"u\"");
        assert_eq!(with("", r#"{"name":"u","user":{"token":"t"}}"#), "");
        assert_eq!(with(r#","proxy-url":"http://p""#, r#"{"name":"u","user":{}}"#), "proxy-url is not supported");
        assert_eq!(with("", r#"{"name":"u","user":{"exec":{"command":"x"}}}"#), "exec is not supported");
        let lone = r#"{"name":"u","user":{"client-certificate-data":"eA=="}}"#;
        assert_eq!(with("", lone), "client-certificate is there without client-key");
    }

    #[tokio::test]
    async fn a_token_in_a_file_may_be_exchanged() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let config = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k","user":"u"}}],
            "clusters":[{"name":"k","cluster":{"server":"http://h"}}],"users":[{"name":"u","user":{"tokenFile":"token"}}]}"#;
        std::fs::write(&file, "one\n").unwrap();
        let remote = Remote::of(&serde_json::from_str(config).unwrap(), dir.path()).unwrap();
        let told = async || remote.authorization().await.unwrap().to_str().unwrap().to_owned();
        assert_eq!(told().await, "Bearer one");
        std::fs::write(&file, "two\n").unwrap();
        assert_eq!(told().await, "Bearer two");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(told().await, "Bearer one");
    }
}
