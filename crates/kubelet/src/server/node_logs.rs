//! `/logs/`: the files below `/var/log`, and the logs of the node's services (KEP-2258).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http::{Response, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{Body, Refused, full, pairs, text, typed};
use crate::pod::sub_path;

const DIR: &str = "/var/log";
/// What of a file or a journal is served at most, in bytes.
const LIMIT: u64 = 64 << 20;
/// How long the journal is searched.
const PATIENCE: Duration = Duration::from_secs(30);

/// What of services' logs is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    services: Vec<String>,
    /// Options of `journalctl`.
    options: Vec<String>,
    tail_lines: Option<usize>,
}

/// A file, a directory's names, or the logs of services where the query names some.
pub(super) async fn serve(path: &[&str], query: &str, may_query: bool) -> Result<Response<Body>, Refused> {
    let query = parse(query).map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
    if !query.services.is_empty() {
        if !may_query {
            let why = "node log query is not enabled: enableSystemLogQuery is false\n";
            return Err(Refused(StatusCode::NOT_FOUND, why.to_owned()));
        }
        return logs_of_services(&query).await;
    }
    let path = path.iter().filter(|p| !p.is_empty()).map(|p| super::decode(p));
    let path: PathBuf = std::iter::once(".".to_owned()).chain(path).collect();
    let missing = || Refused(StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
    if let Ok(entries) = sub_path::entries(Path::new(DIR), &path) {
        return Ok(listing(&entries));
    }
    let name = path.to_str().ok_or_else(missing)?;
    let file = sub_path::open_file(Path::new(DIR), name).map_err(|_| missing())?;
    read(file).await.map(|content| typed("text/plain; charset=utf-8", content))
}

async fn read(file: std::fs::File) -> Result<String, Refused> {
    let mut content = Vec::new();
    let read = tokio::fs::File::from_std(file).take(LIMIT).read_to_end(&mut content).await;
    read.map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn listing(entries: &[(String, bool)]) -> Response<Body> {
    let names = entries.iter().map(|(name, is_dir)| if *is_dir { format!("{name}/") } else { name.clone() });
    let lines = names.map(|name| {
        let shown = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        format!("<a href=\"{shown}\">{shown}</a>\n")
    });
    let mut response = Response::new(full(format!("<!doctype html>\n<pre>\n{}</pre>\n", lines.collect::<String>())));
    let html = http::HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, html);
    response
}

fn parse(query: &str) -> Result<Query, String> {
    let mut parsed = Query::default();
    for (name, value) in pairs(query) {
        match name.as_str() {
            "query" => {
                let good = |c: char| c.is_ascii_alphanumeric() || "-_.@:".contains(c);
                if value.is_empty() || !value.chars().all(good) || value.starts_with(['-', '.']) {
                    return Err(format!("query: Invalid value: {value:?}: it is no name of a service"));
                }
                parsed.services.push(value);
            }
            "sinceTime" | "untilTime" => {
                let at: jiff::Timestamp = value.parse().map_err(|_| format!("{name}: Invalid value: {value:?}"))?;
                let option = if name == "sinceTime" { "since" } else { "until" };
                parsed.options.push(format!("--{option}={}", at.strftime("%Y-%m-%d %H:%M:%S UTC")));
            }
            "tailLines" => {
                let lines = value.parse().ok().filter(|n| *n <= 100_000);
                parsed.tail_lines = Some(lines.ok_or_else(|| format!("tailLines: Invalid value: {value:?}"))?);
            }
            "boot" => {
                let boot: i32 =
                    value.parse().ok().filter(|n| *n <= 0).ok_or_else(|| format!("boot: Invalid value: {value:?}"))?;
                parsed.options.push(format!("--boot={boot}"));
            }
            "pattern" => parsed.options.push(format!("--grep={value}")),
            _ => {}
        }
    }
    parsed.options.extend(parsed.tail_lines.map(|n| format!("--lines={n}")));
    Ok(parsed)
}

/// The journal's lines, or the file that a service without a journal writes.
async fn logs_of_services(query: &Query) -> Result<Response<Body>, Refused> {
    let mut command = Command::new("journalctl");
    command.args(["--utc", "--no-pager", "--output=short-precise"]).args(&query.options);
    command.args(query.services.iter().map(|service| format!("--unit={service}")));
    if let Ok(Some(journal)) = tokio::time::timeout(PATIENCE, start_of_output(command, LIMIT)).await {
        return Ok(text(journal));
    }
    for service in &query.services {
        for name in [format!("{service}.log"), format!("{service}/{service}.log"), service.clone()] {
            let Ok(file) = sub_path::open_file(Path::new(DIR), &name) else { continue };
            let content = read(file).await?;
            return Ok(text(query.tail_lines.map_or(content.clone(), |n| last_lines(&content, n))));
        }
    }
    let why = format!("log not found for {}\n", query.services.join(", "));
    Err(Refused(StatusCode::NOT_FOUND, why))
}

/// What a program says at most; nothing when it fails. It is killed when it has said enough, or when nobody waits for it.
async fn start_of_output(mut command: Command, limit: u64) -> Option<String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().ok()?;
    let mut said = Vec::new();
    let read = child.stdout.take()?.take(limit).read_to_end(&mut said).await.ok()?;
    let has_more = u64::try_from(read) == Ok(limit);
    let is_good = has_more || child.wait().await.ok()?.success();
    is_good.then(|| String::from_utf8_lossy(&said).into_owned())
}

fn last_lines(content: &str, count: usize) -> String {
    let lines: Vec<&str> = content.split_inclusive('\n').collect();
    lines[lines.len().saturating_sub(count)..].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_options_and_mistakes_are_named() {
        let query = parse("query=kubelet&query=containerd&tailLines=5&sinceTime=2026-01-02T03:04:05Z&boot=-1").unwrap();
        assert_eq!(query.services, ["kubelet", "containerd"]);
        assert_eq!(query.options, ["--since=2026-01-02 03:04:05 UTC", "--boot=-1", "--lines=5"]);
        for bad in ["query=-x", "query=../x", "query=a%20b", "tailLines=x", "boot=1", "sinceTime=yesterday"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_lines_are_whole() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last_lines("a\n", 5), "a\n");
    }

    #[tokio::test]
    async fn a_program_that_says_too_much_is_cut_off() {
        let said = start_of_output(Command::new("yes"), 5).await;
        assert_eq!(said.as_deref(), Some("y\ny\ny"));
        assert_eq!(start_of_output(Command::new("false"), 5).await, None);
        assert_eq!(start_of_output(Command::new("true"), 5).await.as_deref(), Some(""));
    }
}
