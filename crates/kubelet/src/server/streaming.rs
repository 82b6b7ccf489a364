//! exec, attach and port-forward: the runtime streams, this server passes the upgraded connection on byte for byte.

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use tokio::net::TcpStream;

use super::{Body, Refused, pairs};
use crate::runtime::{Runtime, RuntimeError};

/// What a client asks of exec and attach.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// The kubelet's own parameters are `input`, `output`, `error`; the API's `stdin`, `stdout`, `stderr` are taken too.
    fn of(query: &str) -> Self {
        let all = pairs(query);
        let on = |names: [&str; 2]| all.iter().any(|(k, v)| names.contains(&k.as_str()) && (v == "1" || v == "true"));
        let tty = on(["tty", "tty"]);
        Wanted {
            command: all.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect(),
            stdin: on(["input", "stdin"]),
            stdout: on(["output", "stdout"]),
            stderr: !tty && on(["error", "stderr"]), // a terminal has one output
            tty,
        }
    }
}

pub(super) async fn exec(
    runtime: &Runtime,
    request: Request<Incoming>,
    id: String,
    _: bool,
) -> Result<Response<Body>, Refused> {
    let w = Wanted::of(request.uri().query().unwrap_or_default());
    if !(w.stdin || w.stdout || w.stderr) {
        let text = "you must specify at least one of stdin, stdout, stderr".to_owned();
        return Err(Refused(StatusCode::BAD_REQUEST, text));
    }
    let asked = cri::ExecRequest {
        container_id: id,
        cmd: w.command,
        tty: w.tty,
        stdin: w.stdin,
        stdout: w.stdout,
        stderr: w.stderr,
    };
    pass_on(request, runtime.exec_url(asked).await).await
}

pub(super) async fn attach(
    runtime: &Runtime,
    request: Request<Incoming>,
    id: String,
    tty: bool,
) -> Result<Response<Body>, Refused> {
    let w = Wanted::of(request.uri().query().unwrap_or_default());
    let asked =
        cri::AttachRequest { container_id: id, stdin: w.stdin, tty, stdout: w.stdout, stderr: w.stderr && !tty };
    pass_on(request, runtime.attach_url(asked).await).await
}

pub(super) async fn port_forward(
    runtime: &Runtime,
    request: Request<Incoming>,
    sandbox_id: &str,
) -> Result<Response<Body>, Refused> {
    let query = pairs(request.uri().query().unwrap_or_default());
    let ports = query.iter().filter(|(k, _)| k == "port").filter_map(|(_, v)| v.parse().ok()).collect();
    pass_on(request, runtime.port_forward_url(sandbox_id, ports).await).await
}

/// Sends the upgrade request to the runtime's streaming server and joins the two connections after its 101. Any other
/// answer is passed on, and both connections end.
async fn pass_on(mut request: Request<Incoming>, url: Result<String, RuntimeError>) -> Result<Response<Body>, Refused> {
    let bad_gateway =
        |e: &dyn std::fmt::Display| Refused(StatusCode::BAD_GATEWAY, format!("error dialing backend: {e}"));
    let url: Uri = url.map_err(super::internal)?.parse().map_err(|e| bad_gateway(&e))?;
    let (host, port) = (url.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']), url.port_u16().unwrap_or(80));
    let socket = TcpStream::connect((host, port)).await.map_err(|e| bad_gateway(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(|e| bad_gateway(&e))?;
    tokio::spawn(connection.with_upgrades());

    let mut outbound =
        Request::builder().method(request.method().clone()).uri(url.path_and_query().map_or("/", |p| p.as_str()));
    for (name, value) in request.headers() {
        if name != http::header::AUTHORIZATION && name != http::header::HOST {
            outbound = outbound.header(name, value);
        }
    }
    let outbound = outbound
        .header(http::header::HOST, format!("{host}:{port}"))
        .body(Empty::<Bytes>::new())
        .map_err(|e| bad_gateway(&e))?;
    let mut answer = sender.send_request(outbound).await.map_err(|e| bad_gateway(&e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync()));
    }
    let inward = hyper::upgrade::on(&mut request);
    let outward = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        if let (Ok(inward), Ok(outward)) = tokio::join!(inward, outward) {
            let joined = tokio::io::copy_bidirectional(&mut TokioIo::new(inward), &mut TokioIo::new(outward)).await;
            if let Err(error) = joined {
                tracing::debug!(%error, "a stream broke");
            }
        }
    });
    let mut response = Response::new(super::full(String::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_streams_are_understood() {
        let wanted = Wanted::of("command=sh&command=-c&command=echo+a%2Fb&input=1&output=1&error=1");
        assert_eq!(wanted.command, ["sh", "-c", "echo a/b"]);
        assert!(wanted.stdin && wanted.stdout && wanted.stderr && !wanted.tty);
        let terminal = Wanted::of("stdin=true&stdout=true&stderr=true&tty=true");
        assert!(terminal.tty && terminal.stdout && !terminal.stderr);
    }
}
