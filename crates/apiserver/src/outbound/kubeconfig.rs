//! A kubeconfig that says where a webhook is, whom to believe there, and how to prove oneself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
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
    pub(crate) async fn post(&self, question: &Value, timeout: Duration) -> Result<Answer, String> {
        self.post_bytes(serde_json::to_vec(question).map_err(|e| e.to_string())?.into(), timeout).await
    }

    /// Posts JSON, several times if need be: as long as there is no answer, or one of a code that is worth another try.
    ///
    /// # Errors
    /// Why there is no answer in the end.
    pub(crate) async fn post_again(
        &self,
        json: Bytes,
        first_pause: Duration,
        again: impl Fn(StatusCode) -> bool,
    ) -> Result<Answer, String> {
        let mut pause = first_pause;
        for _ in 1..ATTEMPTS {
            match self.post_bytes(json.clone(), TIMEOUT).await {
                Ok(answer) if !again(answer.status) => return Ok(answer),
                Ok(_) | Err(_) => tokio::time::sleep(pause).await,
            }
            pause = pause.mul_f64(FACTOR);
        }
        self.post_bytes(json, TIMEOUT).await
    }

    /// As [`Self::post`], of JSON that is there already.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn post_bytes(&self, json: Bytes, timeout: Duration) -> Result<Answer, String> {
        let mut request = json_post(json);
        if let Some(authorization) = self.authorization().await {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        self.endpoint.post(self.tls.clone(), request, timeout).await
    }
}

/// How long a server may take that is asked again, how often it is asked, and how much longer each pause is than the one
/// before.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
const FACTOR: f64 = 1.5;

/// Codes that the same question may not get again.
pub(crate) fn may_pass(code: StatusCode) -> bool {
    code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

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

    /// The code that a server's answers lead to, and how many of them were asked for.
    async fn asked(codes: &'static [u16]) -> (u16, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let config = format!(
            r#"{{"current-context":"c","contexts":[{{"name":"c","context":{{"cluster":"k"}}}}],
            "clusters":[{{"name":"k","cluster":{{"server":"{server}"}}}}]}}"#
        );
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let serving = tokio::spawn(async move {
            for code in codes {
                let (mut socket, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let mut question = [0; 1024];
                while !question.ends_with(b"{}") {
                    let read = socket.read(&mut question).await.unwrap();
                    assert!(read > 0, "the question ends early");
                    question.rotate_left(read);
                }
                let answer = format!("HTTP/1.1 {code} x\r\ncontent-length: 0\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let answer = of(&config).unwrap().post_again("{}".into(), Duration::ZERO, may_pass).await.unwrap();
        serving.abort();
        (answer.status.as_u16(), count.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_server_is_asked_again_while_that_may_help() {
        assert_eq!(asked(&[503, 429, 200]).await, (200, 3));
        assert_eq!(asked(&[403, 200]).await, (403, 1));
        assert_eq!(asked(&[500, 501, 502, 503, 504, 200]).await, (504, 5));
    }
}
