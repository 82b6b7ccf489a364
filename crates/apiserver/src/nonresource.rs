//! Paths that are no resources: discovery, version, health, metrics.

use apimachinery::Value;
use apimachinery::status::Status;
use component_base::version;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;

use crate::body::{Body, RequestBody};
use crate::handlers::{Call, error_response, negotiation};
use crate::resources::is_builtin_group;
use crate::server::Endpoint;

pub(crate) async fn handle(call: Call, body: RequestBody) -> Response<Body> {
    let path = call.info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["healthz", name @ ..] => health(&call, Endpoint::Health, name).await,
        ["livez", name @ ..] => health(&call, Endpoint::Live, name).await,
        ["readyz", name @ ..] => health(&call, Endpoint::Ready, name).await,
        ["version"] => version_info(),
        [".well-known", "openid-configuration"] => {
            issuer_document(&call, |(discovery, _)| discovery, "application/json")
        }
        ["openid", "v1", "jwks"] => issuer_document(&call, |(_, keys)| keys, "application/jwk-set+json"),
        ["metrics"] => metrics(&call),
        ["statusz"] => status(&call),
        ["openapi", "v3", "apis", group, version]
            if let Some(backend) = call.server.inner().aggregator.backend(group, version) =>
        {
            crate::aggregation::proxy::handle(call, &backend, body).await
        }
        ["openapi", ..] => crate::openapi::handle(call).await.unwrap_or_else(page_not_found),
        ["api" | "apis", ..] => discovery(&call, &segments),
        [] | [""] => json(&call.server.inner().discovery.root_paths()),
        _ => page_not_found(),
    }
}

/// What Go's router says.
#[must_use]
pub(crate) fn page_not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
}

pub(crate) fn text(code: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json(value: &Value) -> Response<Body> {
    let mut out = Vec::new();
    crate::encoding::write_pretty(&mut out, value);
    let mut response = Response::new(Body::from(out));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn issuer_document(call: &Call, choose: fn(&(Value, Value)) -> &Value, content_type: &'static str) -> Response<Body> {
    let Some(documents) = &call.server.inner().security.documents else { return page_not_found() };
    let mut response = Response::new(Body::from(crate::encoding::canonical(choose(documents))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn version_info() -> Response<Body> {
    let text = |s: &str| Value::from(s);
    json(&Value::from([
        ("major", text(version::MAJOR)),
        ("minor", text(version::MINOR)),
        ("emulationMajor", text(version::MAJOR)),
        ("emulationMinor", text(version::MINOR)),
        ("minCompatibilityMajor", text(version::MAJOR)),
        ("minCompatibilityMinor", text(version::MIN_COMPATIBILITY_MINOR)),
        ("gitVersion", text(version::GIT_VERSION)),
        ("gitCommit", text(&format!("kelson-{}", version::KELSON))),
        ("gitTreeState", text("clean")),
        ("buildDate", text("1970-01-01T00:00:00Z")),
        ("goVersion", text("rust")),
        // Clients compare this with what Go prints; Kelson is built with something else.
        ("compiler", text("gc")),
        ("platform", text(&format!("{}/{}", std::env::consts::OS, go_arch()))),
    ]))
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn metrics(call: &Call) -> Response<Body> {
    let mut response = Response::new(Body::from(call.server.inner().metrics.text()));
    let content_type = HeaderValue::from_static(component_base::metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn status(call: &Call) -> Response<Body> {
    let (code, media_type, body) = crate::statusz::answer(call.accept(), call.server.inner().started, Timestamp::now());
    let mut response = text(code, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn discovery(call: &Call, segments: &[&str]) -> Response<Body> {
    let discovery = &call.server.inner().discovery;
    match discovery.answer(call, segments) {
        Ok(Some(response)) => response,
        // The rest of a built-in group is a Status; of any other, a plain page.
        Ok(None) if segments[0] == "api" || is_builtin_group(segments.get(1).unwrap_or(&"")) => {
            error_response(&Status::no_such_path(), call.accept())
        }
        Ok(None) => page_not_found(),
        Err(status) => error_response(&status, call.accept()),
    }
}

/// Upstream's health report: `ok`, or a line for each check with `?verbose` or when one fails.
fn health<'a>(call: &'a Call, endpoint: Endpoint, name: &[&str]) -> BoxFuture<'a, Response<Body>> {
    report(call, endpoint, name.join("/")).boxed()
}

async fn report(call: &Call, endpoint: Endpoint, name: String) -> Response<Body> {
    let health = &call.server.inner().health;
    if !name.is_empty() {
        return match health.run_one(endpoint, &name).await {
            Some(Ok(())) => text(StatusCode::OK, "ok".into()),
            Some(Err(why)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
            None => page_not_found(),
        };
    }
    let title = match endpoint {
        Endpoint::Health => "healthz",
        Endpoint::Live => "livez",
        Endpoint::Ready => "readyz",
    };
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let (mut report, mut failed) = (String::new(), false);
    for (name, outcome) in health.run(endpoint).await {
        let line = match outcome {
            _ if excluded.contains(&name.as_str()) => format!("[+]{name} excluded: ok\n"),
            Ok(()) => format!("[+]{name} ok\n"),
            Err(why) => {
                failed = true;
                tracing::info!(check = name, why, "a health check failed");
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        report.push_str(&line);
    }
    if failed {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{title} check failed\n"));
    }
    if call.query.get("verbose").is_some() {
        text(StatusCode::OK, format!("{report}{title} check passed\n"))
    } else {
        text(StatusCode::OK, "ok".into())
    }
}

/// The encoding that a document of discovery is wanted in.
///
/// # Errors
/// 406 when it is none that is there.
pub(crate) fn document_encoding(accept: Option<&str>) -> Result<negotiation::Encoding, Status> {
    match negotiation::negotiate(accept, false) {
        Ok(accepted) => Ok(accepted.encoding),
        Err(_) => Err(negotiation::unacceptable(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}
