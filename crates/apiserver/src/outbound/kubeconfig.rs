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
        let user = named(config, "users", "user", context.str_at(&["user"])).unwrap_or(&none);
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
            _ => None,
        };
        let token = match (user["token"].as_str(), user["tokenFile"].as_str()) {
            (Some(token), _) if !token.is_empty() => Some(token.to_owned()),
            (_, Some(path)) if !path.is_empty() => Some(read(&dir.join(path))?.trim_ascii().escape_ascii().to_string()),
            _ => None,
        };
        let basic = || {
            let name = user["username"].as_str().filter(|name| !name.is_empty())?;
            Some(format!("Basic {}", STANDARD.encode(format!("{name}:{}", user.str_at(&["password"])))))
        };
        let authorization = token.map(|token| format!("Bearer {token}")).or_else(basic);
        let authorization = authorization.map(|text| HeaderValue::from_str(&text).map_err(|e| e.to_string()));
        let tls = server.starts_with("https:").then(|| trust::verified(roots, identity)).transpose()?;
        Ok(Remote { endpoint, tls, authorization: authorization.transpose()? })
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
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        self.endpoint.post(self.tls.clone(), request, timeout).await
    }
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
        let why = |text| of(text).err().unwrap_or_default();
        assert_eq!(why("{}"), "no context is current, or there is none of its name");
        let lost = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}]}"#;
        assert_eq!(why(lost), "no cluster \"k\"");
        let file = r#"{"current-context":"c","contexts":[{"name":"c","context":{"cluster":"k"}}],
            "clusters":[{"name":"k","cluster":{"server":"https://h","certificate-authority":"ca.crt"}}]}"#;
        assert!(why(file).starts_with("cannot read /none/ca.crt: "));
    }
}
