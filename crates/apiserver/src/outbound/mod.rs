//! Requests of the server's own to servers outside: webhooks, token issuers, aggregated servers.
//!
//! [`Endpoint`] is where one of them is, [`trust`] whom this server believes and how it proves itself, [`exchange`] one
//! request on a connection of its own, so that nothing of one can be read by another.

mod endpoint;
pub(crate) mod kubeconfig;
pub(crate) mod remembered;
pub(crate) mod trust;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::lister::Lister;
pub(crate) use endpoint::{Endpoint, endpoint_of_service, service_address};

/// An answer that is longer is refused.
const MAX_ANSWER: usize = 3 << 20;

/// An answer that was read to its end.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Why there is no answer, in the words of Go's client.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody could be asked.
    #[error("{0}")]
    Unusable(String),
    #[error("{0}")]
    Call(String),
}

/// Asks a webhook that a `clientConfig` names; gives the document that came back.
///
/// # Errors
/// Why there is none.
pub(crate) async fn ask(
    config: &Value,
    question: &Value,
    timeout: Duration,
    lister: &dyn Lister,
    user_agent: &'static str,
) -> Result<Value, Failure> {
    let endpoint = Endpoint::of_client_config(config, timeout, lister).map_err(Failure::Call)?;
    let tls = trust::of_bundle(config.str_at(&["caBundle"])).map_err(Failure::Unusable)?;
    let body = serde_json::to_vec(question).map_err(|e| Failure::Call(e.to_string()))?;
    let mut request = json_post(body.into());
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(user_agent));
    let answer = endpoint.post(Some(tls), request, timeout).await.map_err(Failure::Call)?;
    document_of(&answer).map_err(Failure::Call)
}

/// A POST of JSON; the path comes from the endpoint.
pub(crate) fn json_post(body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
    crate::traces::pass_on(headers);
    request
}

/// The JSON of a good answer.
///
/// # Errors
/// What is bad about it.
pub(crate) fn document_of(answer: &Answer) -> Result<Value, String> {
    if !answer.status.is_success() {
        let text = String::from_utf8_lossy(&answer.body);
        return Err(format!("an error on the server ({:?}) has prevented the request from succeeding", text.trim()));
    }
    serde_json::from_slice(&answer.body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
}

impl Endpoint {
    /// Sends a POST; an error names it as Go does.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn post(
        &self,
        tls: Option<Arc<ClientConfig>>,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Answer, String> {
        let named = |why: String| format!("Post {:?}: {why}", self.url);
        match tokio::time::timeout(timeout, exchange(self, tls, request)).await {
            Ok(answered) => answered.map_err(named),
            Err(_) => Err(named("context deadline exceeded".to_owned())),
        }
    }

    /// Sends a GET; an error names it as Go does.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn get(
        &self,
        tls: Option<Arc<ClientConfig>>,
        headers: HeaderMap,
        timeout: Duration,
    ) -> Result<Answer, String> {
        let named = |why: String| format!("Get {:?}: {why}", self.url);
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.headers_mut() = headers;
        match tokio::time::timeout(timeout, exchange(self, tls, request)).await {
            Ok(answered) => answered.map_err(named),
            Err(_) => Err(named("context deadline exceeded".to_owned())),
        }
    }
}

/// One request and its answer. `None` for `tls`: plain HTTP.
async fn exchange(
    endpoint: &Endpoint,
    tls: Option<Arc<ClientConfig>>,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    *request.uri_mut() = endpoint.path_and_query.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let host = HeaderValue::from_str(&endpoint.authority()).map_err(|e| e.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    let socket = dial(endpoint).await?;
    match tls {
        None => send(socket, request).await,
        Some(tls) => {
            let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| e.to_string())?;
            let stream = TlsConnector::from(tls).connect(name, socket).await.map_err(|e| go_tls_words(&e))?;
            send(stream, request).await
        }
    }
}

async fn dial(endpoint: &Endpoint) -> Result<TcpStream, String> {
    let (host, port) = (endpoint.dial.0.as_str(), endpoint.dial.1);
    let socket = TcpStream::connect((host, port)).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("dial tcp {host}:{port}: connect: connection refused"),
        std::io::ErrorKind::HostUnreachable => format!("dial tcp {host}:{port}: connect: no route to host"),
        _ => format!("dial tcp {host}:{port}: {e}"),
    })?;
    // A question is small and wants to be there at once.
    let _ = socket.set_nodelay(true);
    Ok(socket)
}

fn go_tls_words(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
        }
        Some(rustls::Error::InvalidCertificate(why)) => format!("tls: failed to verify certificate: x509: {why}"),
        _ => format!("tls: {error}"),
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let running = AbortOnDrop(tokio::spawn(connection));
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
    drop(running);
    Ok(Answer { status: parts.status, body })
}

/// A connection ends with the request that it was opened for, also when nobody waits for that any more.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
