//! Links of pages that a backend serves, written so that they lead back through the proxy.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};
use futures::{StreamExt, future, stream};
use http::header::{self, HeaderMap};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::body::Body;

/// The attributes that hold links, by element (HTML 4.01 and 5).
const LINKS: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text to its end, with what ends it.
const TEXTS: [(&str, &str); 4] =
    [("script", "</script"), ("style", "</style"), ("textarea", "</textarea"), ("title", "</title")];

/// A tag that is longer is passed on as it is.
const LONGEST_TAG: usize = 64 << 10;

/// The body of an answer with these headers to a request for a page, with its links led back; as it is when it is no page, or
/// comes in a coding that cannot be read.
pub(super) fn led_back(
    headers: &mut HeaderMap,
    body: Body,
    lead: impl Fn(&str) -> Option<String> + Send + 'static,
) -> Body {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    let coding = match text(header::CONTENT_ENCODING) {
        "" | "identity" => Coding::Plain,
        "gzip" => Coding::gzip(),
        _ => return body,
    };
    if !kind.eq_ignore_ascii_case("text/html") {
        return body;
    }
    headers.remove(header::CONTENT_LENGTH);
    let mut page = Page { coding, links: Links { lead, held: Vec::new(), text_until: None } };
    let chunks = body.into_data_stream().map(Some).chain(stream::once(future::ready(None)));
    let frames = chunks.map(move |chunk| {
        let written = match chunk {
            Some(chunk) => page.push(&chunk?)?,
            None => page.end()?,
        };
        Ok::<_, crate::body::BoxError>(Frame::data(written.into()))
    });
    Body::stream(StreamBody::new(frames))
}

/// How a page is coded on its way.
enum Coding {
    Plain,
    Gzip { from: Box<GzDecoder<Vec<u8>>>, to: GzEncoder<Vec<u8>> },
}

impl Coding {
    fn gzip() -> Self {
        let to = GzEncoder::new(Vec::new(), Compression::fast());
        Coding::Gzip { from: Box::new(GzDecoder::new(Vec::new())), to }
    }
}

struct Page<F> {
    coding: Coding,
    links: Links<F>,
}

impl<F: Fn(&str) -> Option<String>> Page<F> {
    fn push(&mut self, chunk: &[u8]) -> io::Result<Vec<u8>> {
        match &mut self.coding {
            Coding::Plain => Ok(self.links.push(chunk)),
            Coding::Gzip { from, to } => {
                from.write_all(chunk)?;
                from.flush()?;
                to.write_all(&self.links.push(&std::mem::take(from.get_mut())))?;
                // Who reads may wait for this.
                to.flush()?;
                Ok(std::mem::take(to.get_mut()))
            }
        }
    }

    fn end(&mut self) -> io::Result<Vec<u8>> {
        match &mut self.coding {
            Coding::Plain => Ok(self.links.end()),
            Coding::Gzip { from, to } => {
                from.try_finish()?;
                let mut rest = self.links.push(&std::mem::take(from.get_mut()));
                rest.extend(self.links.end());
                to.write_all(&rest)?;
                to.try_finish()?;
                Ok(std::mem::take(to.get_mut()))
            }
        }
    }
}

/// Rewrites links in a page that comes in pieces.
struct Links<F> {
    /// The link that is to stand in place of one.
    lead: F,
    /// What may be the beginning of a tag.
    held: Vec<u8>,
    /// What ends the text that we are in.
    text_until: Option<&'static str>,
}

impl<F: Fn(&str) -> Option<String>> Links<F> {
    fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(chunk);
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len() + 64);
        let mut rest = held.as_slice();
        while !rest.is_empty() {
            let taken = match self.text_until {
                Some(end) => self.text(rest, end, &mut out),
                None => self.markup(rest, &mut out),
            };
            if taken == 0 {
                break; // the next piece says more
            }
            rest = &rest[taken..];
        }
        self.held = rest.to_vec();
        out
    }

    fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Passes text on to its end. Gives how much was taken.
    fn text(&mut self, rest: &[u8], end: &'static str, out: &mut Vec<u8>) -> usize {
        let is_end = |window: &[u8]| window.eq_ignore_ascii_case(end.as_bytes());
        let taken = match rest.windows(end.len()).position(is_end) {
            Some(at) => {
                self.text_until = None;
                at + end.len()
            }
            None => rest.len().saturating_sub(end.len() - 1),
        };
        out.extend_from_slice(&rest[..taken]);
        taken
    }

    /// Passes on what stands before a tag, or a tag. Gives how much was taken.
    fn markup(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        const COMMENT: &[u8] = b"<!--";
        let before = rest.iter().position(|byte| *byte == b'<').unwrap_or(rest.len());
        if before > 0 {
            out.extend_from_slice(&rest[..before]);
            return before;
        }
        if COMMENT.starts_with(&rest[..rest.len().min(COMMENT.len())]) {
            if rest.len() < COMMENT.len() {
                return 0;
            }
            out.extend_from_slice(COMMENT);
            self.text_until = Some("-->");
            return COMMENT.len();
        }
        if !rest[1].is_ascii_alphabetic() {
            out.push(b'<');
            return 1;
        }
        let Some(tag) = Tag::read(rest) else {
            if rest.len() < LONGEST_TAG {
                return 0;
            }
            out.extend_from_slice(rest);
            return rest.len();
        };
        let mut written = 0;
        for value in tag.links() {
            let Some(link) = std::str::from_utf8(&rest[value.clone()]).ok().and_then(&self.lead) else { continue };
            out.extend_from_slice(&rest[written..value.start]);
            out.extend_from_slice(link.replace('"', "&#34;").replace('\'', "&#39;").replace('<', "&lt;").as_bytes());
            written = value.end;
        }
        out.extend_from_slice(&rest[written..tag.length]);
        self.text_until = TEXTS.iter().find(|(name, _)| *name == tag.name).map(|(_, end)| *end);
        tag.length
    }
}

type Range = std::ops::Range<usize>;

/// A tag that opens an element.
struct Tag {
    name: String,
    attributes: Vec<(String, Range)>,
    /// With what encloses it.
    length: usize,
}

impl Tag {
    /// Reads one that begins here; none if it does not end here.
    fn read(text: &[u8]) -> Option<Self> {
        let is_space = |at: usize| text.get(at).map(u8::is_ascii_whitespace);
        let lower = |range: Range| String::from_utf8_lossy(&text[range]).to_ascii_lowercase();
        let ends_name = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>');
        let mut at = text.iter().position(ends_name)?;
        let name = lower(1..at);
        let mut attributes = Vec::new();
        loop {
            while is_space(at)? || text[at] == b'/' {
                at += 1;
            }
            if text[at] == b'>' {
                return Some(Tag { name, attributes, length: at + 1 });
            }
            let start = at;
            at += 1;
            while !ends_name(text.get(at)?) && text[at] != b'=' {
                at += 1;
            }
            let attribute = lower(start..at);
            while is_space(at)? {
                at += 1;
            }
            if text[at] != b'=' {
                continue;
            }
            at += 1;
            while is_space(at)? {
                at += 1;
            }
            let value = match text[at] {
                quote @ (b'"' | b'\'') => {
                    let end = at + 1 + text[at + 1..].iter().position(|byte| *byte == quote)?;
                    std::mem::replace(&mut at, end + 1) + 1..end
                }
                _ => {
                    let end = at + text[at..].iter().position(|b| b.is_ascii_whitespace() || *b == b'>')?;
                    std::mem::replace(&mut at, end)..end
                }
            };
            attributes.push((attribute, value));
        }
    }

    /// Where the values are that hold links.
    fn links(&self) -> impl Iterator<Item = Range> {
        let names = LINKS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, names)| *names);
        self.attributes.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn lead(link: &str) -> Option<String> {
        link.starts_with('/').then(|| format!("/proxy{link}"))
    }

    fn links() -> Links<fn(&str) -> Option<String>> {
        Links { lead, held: Vec::new(), text_until: None }
    }

    /// A page is written alike whole and in pieces of any size.
    #[track_caller]
    fn check(page: &str, want: &str) {
        for size in 1..=page.len() {
            let mut links = links();
            let mut written: Vec<u8> = page.as_bytes().chunks(size).flat_map(|piece| links.push(piece)).collect();
            written.extend(links.end());
            assert_eq!(String::from_utf8(written).unwrap(), want, "in pieces of {size}");
        }
    }

    #[test]
    fn links_lead_back_and_nothing_else_changes() {
        check("<a href=\"/x\">test</a>", "<a href=\"/proxy/x\">test</a>");
        check(
            "<A HREF='/x?a=b&amp;c' id=1><IMG src = /y />",
            "<A HREF='/proxy/x?a=b&amp;c' id=1><IMG src = /proxy/y />",
        );
        check(
            "<a href=\"y\" href=\"http://else/\"><p href=\"/x\">",
            "<a href=\"y\" href=\"http://else/\"><p href=\"/x\">",
        );
        check(
            "<script src=/x>'<a href=\"/x\">'</script><a href=/x>",
            "<script src=/proxy/x>'<a href=\"/x\">'</script><a href=/proxy/x>",
        );
        check("<!-- <a href=/x> --><a href=/x><", "<!-- <a href=/x> --><a href=/proxy/x><");
        check("1 < 2 <<a title='>' href=/x>", "1 < 2 <<a title='>' href=/proxy/x>");
        check("<a href=\"/x", "<a href=\"/x");
    }

    #[tokio::test]
    async fn only_pages_are_read_also_compressed_ones() {
        let answer = async |kind: &str, coding: Option<&str>, bytes: Vec<u8>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            headers.insert(header::CONTENT_LENGTH, bytes.len().into());
            if let Some(coding) = coding {
                headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            }
            let body = led_back(&mut headers, Body::Full(bytes.into()), lead);
            let known = headers.contains_key(header::CONTENT_LENGTH);
            (body.collect().await.unwrap().to_bytes().to_vec(), known)
        };
        let (page, led) = (b"<a href=/x>".to_vec(), b"<a href=/proxy/x>".to_vec());
        assert_eq!(answer("text/html; charset=utf-8", None, page.clone()).await, (led.clone(), false));
        assert_eq!(answer("text/plain", None, page.clone()).await, (page.clone(), true));
        assert_eq!(answer("text/html", Some("br"), page.clone()).await, (page.clone(), true));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&page).unwrap();
        let (packed, known) = answer("text/html", Some("gzip"), packed.finish().unwrap()).await;
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
        assert_eq!((unpacked, known), (led, false));
    }
}
