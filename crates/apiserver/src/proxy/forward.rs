//! Passing one request on, and its answer back; after a 101 from the other side, bytes both ways.

use apimachinery::status::Status;
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{Destination, PassedOn, connect, html, split_path};
use crate::body::{Body, RequestBody};
use crate::handlers::Call;
use crate::registry::status;

/// Headers that are about one connection and not about the request (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a backend allows to pages of other origins is not for it to say in this server's name.
const CROSS_ORIGIN: [HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// Passes a request on as it is: method, headers and body.
pub(crate) async fn forward(call: &mut Call, to: &Destination, body: RequestBody) -> Result<Response<Body>, Status> {
    let method = call.parts.method.clone();
    let upgrade = call.parts.headers.get(header::UPGRADE).cloned();
    let client = call.parts.extensions.remove::<OnUpgrade>();
    let mut headers = call.parts.headers.clone();
    strip(&mut headers);
    // The credentials were for this server.
    headers.remove(header::AUTHORIZATION);
    if let Some(ip) = call.remote {
        let before = headers.get(&FORWARDED_FOR).and_then(|v| v.to_str().ok()).map(|v| format!("{v}, "));
        let chain = format!("{}{ip}", before.unwrap_or_default());
        headers.insert(FORWARDED_FOR, HeaderValue::from_str(&chain).map_err(|e| Status::bad_request(e.to_string()))?);
    }
    if let Some(protocol) = &upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let answer = send(to, method, headers, body).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let asked = upgrade.is_some();
        let Some(client) = client.filter(|_| asked) else {
            return Err(Status::new(502, "", "the backend upgraded a connection that nobody asked it to upgrade"));
        };
        return Ok(tunnel(call, client, answer));
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    parts.extensions.insert(PassedOn);
    Ok(Response::from_parts(parts, Body::stream(body)))
}

/// Passes a request on to something that serves pages of its own, whose links and redirects must lead back through here.
pub(super) async fn proxy(call: &mut Call, to: &Destination, body: RequestBody) -> Result<Response<Body>, Status> {
    let (prefix, rest) = split_path(call);
    let is_read = matches!(call.parts.method, Method::GET | Method::HEAD);
    if rest.is_empty() && is_read && !call.parts.headers.contains_key(header::UPGRADE) {
        // Relative links of the page would lead astray without the slash.
        let query = call.parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
        return redirect(&format!("{prefix}/{query}"));
    }
    let is_head = call.parts.method == Method::HEAD;
    let prefix = prefix.to_owned();
    let forwarded = HeaderValue::from_str(call.parts.uri.path()).map_err(|e| Status::bad_request(e.to_string()))?;
    call.parts.headers.insert(HeaderName::from_static("x-forwarded-uri"), forwarded);
    let mut answer = forward(call, to, body).await?;
    let headers = answer.headers_mut();
    for name in CROSS_ORIGIN {
        headers.remove(name);
    }
    let authority = authority_of(to);
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    if let Some(location) = location.and_then(|location| led_back(location, &authority, &prefix))
        && let Ok(location) = HeaderValue::from_str(&location)
    {
        headers.insert(header::LOCATION, location);
    }
    if is_head || answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let (mut parts, body) = answer.into_parts();
    let body = html::led_back(&mut parts.headers, body, move |link| led_back(link, &authority, &prefix));
    Ok(Response::from_parts(parts, body))
}

fn redirect(location: &str) -> Result<Response<Body>, Status> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let location = HeaderValue::from_str(location).map_err(|e| Status::bad_request(e.to_string()))?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// A redirect of a backend, as its client must see it; `None`: as it is, because it is relative or leads elsewhere.
fn led_back(location: &str, authority: &str, prefix: &str) -> Option<String> {
    let absolute = ["http://", "https://"].iter().find_map(|scheme| location.strip_prefix(scheme));
    let path = match absolute {
        Some(rest) => {
            let rest = rest.strip_prefix(authority)?;
            if rest.is_empty() { "/" } else { rest }
        }
        None if location.starts_with("//") => return None,
        None => location,
    };
    (path.starts_with('/') && !path.starts_with(prefix)).then(|| format!("{prefix}{path}"))
}

fn authority_of(to: &Destination) -> String {
    if to.host.contains(':') { format!("[{}]:{}", to.host, to.port) } else { format!("{}:{}", to.host, to.port) }
}

/// Sends a request of this server's own making.
pub(super) async fn send(
    to: &Destination,
    method: Method,
    mut headers: HeaderMap,
    body: RequestBody,
) -> Result<Response<hyper::body::Incoming>, Status> {
    let mut sender = connect::connect(to).await?;
    let host = HeaderValue::from_str(&authority_of(to)).map_err(|e| Status::internal(e.to_string()))?;
    headers.insert(header::HOST, host);
    let uri: Uri = to.path_and_query.parse().map_err(|_| Status::bad_request("the path cannot be passed on"))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    sender.send_request(request).await.map_err(|e| status::plain(format!("error dialing backend: {e}")))
}

fn strip(headers: &mut HeaderMap) {
    // What `Connection` lists belongs to the connection as well.
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Answers with the other side's 101, and then moves bytes until either side is done or the server stops.
fn tunnel(call: &Call, client: OnUpgrade, mut answer: Response<hyper::body::Incoming>) -> Response<Body> {
    let backend = hyper::upgrade::on(&mut answer);
    let closing = call.server.inner().closing.clone();
    call.server.inner().connections.spawn(async move {
        let (client, backend) = match futures::future::try_join(client, backend).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        let copied = closing.run_until_cancelled(tokio::io::copy_bidirectional(&mut client, &mut backend)).await;
        if let Some(Err(error)) = copied {
            tracing::debug!(%error, "a tunnel broke");
        }
    });
    let (parts, _) = answer.into_parts();
    Response::from_parts(parts, Body::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(location: &str, want: Option<&str>) {
        assert_eq!(led_back(location, "10.0.0.1:80", "/api/v1/nodes/n/proxy").as_deref(), want);
    }

    #[test]
    fn redirects_of_a_backend_lead_back_through_the_server() {
        check("/login?a=b", Some("/api/v1/nodes/n/proxy/login?a=b"));
        check("http://10.0.0.1:80", Some("/api/v1/nodes/n/proxy/"));
        check("https://10.0.0.1:80/x", Some("/api/v1/nodes/n/proxy/x"));
        check("/api/v1/nodes/n/proxy/x", None);
        check("x", None);
        check("//evil.example/x", None);
        check("https://evil.example/x", None);
    }

    #[test]
    fn headers_about_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "keep-alive, x-secret"), ("x-secret", "1"), ("te", "trailers"), ("accept", "a")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
