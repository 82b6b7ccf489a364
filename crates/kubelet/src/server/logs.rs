//! Container logs in the CRI's format, read back for `kubectl logs`.
//!
//! A line is `2026-01-02T15:04:05.123456789Z stdout F text`; the tag `P` marks a part of a line whose rest follows.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::Body;

/// What of a log is wanted, as the API's query says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<usize>,
    pub limit_bytes: Option<usize>,
    pub since: Option<Timestamp>,
    /// Only `Stdout` or `Stderr`.
    pub stream: Option<&'static str>,
}

impl Options {
    pub(crate) fn parse(query: &HashMap<String, String>) -> Result<Self, String> {
        let flag = |name: &str| query.get(name).is_some_and(|v| v == "true" || v == "1" || v.is_empty());
        let number = |name: &str| -> Result<Option<i64>, String> {
            let Some(text) = query.get(name) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| format!("invalid {name}: {text:?}"))
        };
        let count = |name: &str| -> Result<Option<usize>, String> {
            match number(name)? {
                None => Ok(None),
                Some(n) => {
                    usize::try_from(n).map(Some).map_err(|_| format!("{name} must be greater than or equal to 0"))
                }
            }
        };
        let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
            (Some(_), Some(_)) => {
                return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned());
            }
            (Some(seconds), _) => {
                Some(Timestamp::now() - Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
            }
            (_, Some(text)) => Some(text.parse().map_err(|_| format!("invalid sinceTime: {text:?}"))?),
            _ => None,
        };
        Ok(Options {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            tail_lines: count("tailLines")?,
            limit_bytes: count("limitBytes")?,
            since,
            stream: match query.get("stream").map(String::as_str) {
                Some("Stdout") => Some("stdout"),
                Some("Stderr") => Some("stderr"),
                _ => None,
            },
        })
    }
}

/// A line of the file, taken apart.
#[derive(Debug, PartialEq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Line { time, stream, whole: tag.first() == Some(&b'F'), text })
}

/// Applies the options to raw lines; `at_start` says whether the next output begins a line.
struct Filter {
    options: Options,
    left: Option<usize>,
    at_start: bool,
}

impl Filter {
    fn new(options: Options) -> Self {
        Filter { left: options.limit_bytes, options, at_start: true }
    }

    /// What a raw line shows; nothing for one that is not wanted.
    fn render(&mut self, raw: &[u8]) -> Vec<u8> {
        let Some(line) = parse_line(raw) else { return Vec::new() };
        if self.options.stream.is_some_and(|s| s != line.stream) {
            return Vec::new();
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && self.at_start {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if line.whole {
            out.push(b'\n');
        }
        self.at_start = line.whole;
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        out
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Where the last `lines` lines of a log begin. Reads backwards, in blocks.
async fn tail_offset(file: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let mut wanted = lines;
    let mut at = end;
    let mut block = Vec::new();
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(from)).await?;
        block.resize(usize::try_from(at - from).unwrap_or_default(), 0);
        file.read_exact(&mut block).await?;
        for (i, byte) in block.iter().enumerate().rev() {
            let position = from + i as u64;
            if *byte == b'\n' && position + 1 != end {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(position + 1);
                }
            }
        }
        at = from;
    }
    Ok(0)
}

struct Reading<F> {
    file: File,
    path: PathBuf,
    filter: Filter,
    pending: Vec<u8>,
    still_runs: F,
    ended: bool,
}

/// How often a followed log is looked at when nothing comes.
const FOLLOW_PAUSE: Duration = Duration::from_millis(250);

/// Streams a log as the options say. `still_runs` tells whether more may come.
pub(super) fn stream<F, Fut>(path: PathBuf, options: Options, still_runs: F) -> io::Result<Body>
where
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = bool> + Send,
{
    let file = File::from_std(std::fs::File::open(&path)?);
    let tail = options.tail_lines;
    let reading = Reading { file, path, filter: Filter::new(options), pending: Vec::new(), still_runs, ended: false };
    let begin = async move {
        let mut reading = reading;
        let from = match tail {
            Some(lines) => tail_offset(&mut reading.file, lines).await?,
            None => 0,
        };
        reading.file.seek(SeekFrom::Start(from)).await?;
        io::Result::Ok(reading)
    };
    let chunks = futures::stream::once(begin).flat_map(|begun| match begun {
        Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        Ok(reading) => futures::stream::unfold(reading, |mut reading| async move {
            let chunk = reading.next().await.transpose()?;
            Some((chunk, reading))
        })
        .boxed(),
    });
    Ok(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync())
}

impl<F, Fut> Reading<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = bool>,
{
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.filter.is_full() {
                return Ok(None);
            }
            // Asked before reading: what is written until the container ends is then read afterwards.
            let more_may_come = !self.ended && self.filter.options.follow && (self.still_runs)().await;
            let mut block = vec![0; 64 << 10];
            let n = self.file.read(&mut block).await?;
            if n == 0 {
                if !more_may_come {
                    return Ok(None);
                }
                if self.was_rotated().await? {
                    self.file = File::open(&self.path).await?;
                    continue;
                }
                tokio::time::sleep(FOLLOW_PAUSE).await;
                continue;
            }
            self.pending.extend_from_slice(&block[..n]);
            let mut out = Vec::new();
            let mut rest = 0;
            while let Some(at) = self.pending[rest..].iter().position(|b| *b == b'\n') {
                out.extend(self.filter.render(&self.pending[rest..rest + at]));
                rest += at + 1;
            }
            self.pending.drain(..rest);
            if !out.is_empty() {
                return Ok(Some(Bytes::from(out)));
            }
        }
    }

    /// Another file stands under the name now: the log was rotated.
    async fn was_rotated(&mut self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let ours = self.file.metadata().await?.ino();
        Ok(tokio::fs::metadata(&self.path).await.is_ok_and(|m| m.ino() != ours))
    }
}

/// The last lines of a log as plain text, for termination messages.
pub(crate) fn tail(path: &Path, lines: usize, bytes: usize) -> String {
    let raw = std::fs::read(path).unwrap_or_default();
    let mut filter = Filter::new(Options::default());
    let all: Vec<Vec<u8>> = raw.split(|b| *b == b'\n').map(|l| filter.render(l)).filter(|l| !l.is_empty()).collect();
    let text = all[all.len().saturating_sub(lines)..].concat();
    String::from_utf8_lossy(&text[text.len().saturating_sub(bytes)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr F two\n\
                       2026-01-01T00:00:03.000000000Z stdout P thr\n2026-01-01T00:00:03.000000000Z stdout F ee\n";

    async fn read(query: &[(&str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let query = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let body = stream(path, Options::parse(&query).unwrap(), || async { false }).unwrap();
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        assert_eq!(read(&[]).await, "one\ntwo\nthree\n");
        assert_eq!(read(&[("tailLines", "2")]).await, "three\n");
        assert_eq!(read(&[("tailLines", "3")]).await, "two\nthree\n");
        assert_eq!(read(&[("tailLines", "0")]).await, "");
        assert_eq!(read(&[("limitBytes", "5")]).await, "one\nt");
        assert_eq!(read(&[("stream", "Stderr")]).await, "two\n");
        assert_eq!(read(&[("sinceTime", "2026-01-01T00:00:02Z")]).await, "two\nthree\n");
        let stamped = "2026-01-01T00:00:01.000000000Z one\n";
        assert!(read(&[("timestamps", "true")]).await.starts_with(stamped));
        assert_eq!(read(&[("follow", "true")]).await, "one\ntwo\nthree\n");
    }

    #[test]
    fn bad_options_are_refused() {
        let check = |k: &str, v: &str| Options::parse(&HashMap::from([(k.to_owned(), v.to_owned())])).is_err();
        assert!(check("tailLines", "-1"));
        assert!(check("sinceTime", "yesterday"));
        assert!(check("limitBytes", "x"));
    }
}
