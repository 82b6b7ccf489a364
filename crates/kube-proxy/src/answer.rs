//! A server for what balancers ask: one short request, one short answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How long a client may take; who sends more or nothing gets nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A JSON answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub code: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

pub(crate) type Respond = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

impl Answer {
    pub(crate) fn not_found() -> Self {
        Answer { code: 404, headers: Vec::new(), body: "404 page not found\n".to_owned() }
    }

    fn text(&self) -> String {
        let status = match self.code {
            200 => "200 OK",
            503 => "503 Service Unavailable",
            _ => "404 Not Found",
        };
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = self.body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{}",
            self.body
        )
    }
}

/// Serves until `stop`, in a task of its own.
pub(crate) async fn start(address: SocketAddr, respond: Respond, stop: CancellationToken) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((socket, _)) => {
                    let respond = Arc::clone(&respond);
                    tokio::spawn(async move { tokio::time::timeout(PATIENCE, serve(socket, respond)).await });
                }
                // Out of file descriptors, most likely: the next attempt would fail at once too.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn serve(mut socket: TcpStream, respond: Respond) -> std::io::Result<()> {
    let mut request = [0; 2048];
    let mut length = 0;
    while !request[..length].ends_with(b"\r\n\r\n") && length < request.len() {
        match socket.read(&mut request[length..]).await? {
            0 => return Ok(()),
            n => length += n,
        }
    }
    let head = String::from_utf8_lossy(&request[..length]);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    socket.write_all(respond(path).text().as_bytes()).await
}
