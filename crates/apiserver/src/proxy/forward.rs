//! Passing one request on, and its answer back; after a 101 from the other side, bytes both ways.

use apimachinery::status::Status;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{Destination, connect};
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

/// Passes a request on as it is: method, headers and body.
pub(super) async fn forward(call: &mut Call, to: &Destination, body: RequestBody) -> Result<Response<Body>, Status> {
    let method = call.parts.method.clone();
    let upgrade = call.parts.headers.get(header::UPGRADE).cloned();
    let client = call.parts.extensions.remove::<OnUpgrade>();
    let mut headers = call.parts.headers.clone();
    strip(&mut headers);
    // The credentials were for this server.
    headers.remove(header::AUTHORIZATION);
    if let Some(protocol) = &upgrade {
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
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
    Ok(Response::from_parts(parts, Body::stream(body)))
}

/// Sends a request of this server's own making.
pub(super) async fn send(
    to: &Destination,
    method: Method,
    mut headers: HeaderMap,
    body: RequestBody,
) -> Result<Response<hyper::body::Incoming>, Status> {
    let mut sender = connect::connect(to).await?;
    let authority =
        if to.host.contains(':') { format!("[{}]:{}", to.host, to.port) } else { format!("{}:{}", to.host, to.port) };
    let host = header::HeaderValue::from_str(&authority).map_err(|e| Status::internal(e.to_string()))?;
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
    let stop = call.server.inner().stop.clone();
    call.server.inner().tasks.spawn(async move {
        let (client, backend) = match futures::future::try_join(client, backend).await {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        let copied = stop.run_until_cancelled(tokio::io::copy_bidirectional(&mut client, &mut backend)).await;
        if let Some(Err(error)) = copied {
            tracing::debug!(%error, "a tunnel broke");
        }
    });
    let (parts, _) = answer.into_parts();
    Response::from_parts(parts, Body::Empty)
}
