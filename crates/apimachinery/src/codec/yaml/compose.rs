//! From the parser's events to a tree.

use std::collections::HashMap;

use base64::Engine as _;
use compact_str::CompactString;
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, Tag};

use super::super::DecodeError;
use super::super::typed::BASE64;
use super::{Document, scalar};
use crate::{Map, Value};

/// As deep as JSON is read.
const MAX_DEPTH: usize = 128;
/// What all aliases together may add.
const MAX_ALIAS_NODES: usize = 100_000;
const MAX_ALIAS_BYTES: usize = 4 << 20;
/// As many findings as upstream lists.
const MAX_DUPLICATES: usize = 100;

struct Composer<'a> {
    events: Parser<'a, serde_saphyr::granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Anchored>,
    duplicates: Vec<String>,
    alias_nodes: usize,
    alias_bytes: usize,
}

struct Anchored {
    value: Value,
    nodes: usize,
    bytes: usize,
}

/// A node and where it begins.
struct Node {
    value: Value,
    line: usize,
    /// An unquoted `<<`.
    is_merge: bool,
}

pub(super) fn compose(text: &str) -> Result<Document, DecodeError> {
    let mut options = Options::default();
    options.block_scalar_eof_without_line_feed = true;
    let mut composer = Composer {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        duplicates: Vec::new(),
        alias_nodes: 0,
        alias_bytes: 0,
    };
    loop {
        match composer.next()? {
            Some((Event::DocumentStart(..), _)) => {
                let (event, span) = composer.need()?;
                let node = composer.node(event, &span, 0)?;
                // The parser would find faults in what follows only if it were asked.
                return Ok(Document { value: node.value, duplicates: composer.duplicates });
            }
            Some((Event::StreamEnd, _)) | None => return Ok(Document { value: Value::Null, duplicates: Vec::new() }),
            Some(_) => {}
        }
    }
}

impl<'a> Composer<'a> {
    /// The next event that stands for something.
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, DecodeError> {
        self.events.next_event().transpose().map_err(|e| syntax(&e))
    }

    fn need(&mut self) -> Result<(Event<'a>, Span), DecodeError> {
        self.next()?.ok_or_else(|| fault("yaml: unexpected end of stream"))
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(fault("exceeded max depth"));
        }
        let line = span.start.line();
        let (value, anchor, is_merge) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (scalar_value(&text, plain, tag.as_deref(), line)?, anchor, plain && tag.is_none() && text == "<<")
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence(depth)?, anchor, false),
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor, false),
            Event::Alias(id) => (self.alias(id)?, 0, false),
            _ => {
                let (event, span) = self.need()?;
                return self.node(event, &span, depth + 1);
            }
        };
        if anchor > 0 {
            let (nodes, bytes) = size(&value);
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes, bytes });
            self.spend(nodes, bytes)?;
        }
        Ok(Node { value, line, is_merge })
    }

    fn alias(&mut self, id: usize) -> Result<Value, DecodeError> {
        // What is not there yet is still open: an anchor around its own alias.
        let anchored = self.anchors.get(&id).ok_or_else(|| fault("yaml: anchor value contains itself"))?;
        let (value, nodes, bytes) = (anchored.value.clone(), anchored.nodes, anchored.bytes);
        self.spend(nodes, bytes)?;
        Ok(value)
    }

    fn spend(&mut self, nodes: usize, bytes: usize) -> Result<(), DecodeError> {
        self.alias_nodes += nodes;
        self.alias_bytes += bytes;
        if self.alias_nodes > MAX_ALIAS_NODES || self.alias_bytes > MAX_ALIAS_BYTES {
            return Err(fault("yaml: document contains excessive aliasing"));
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        loop {
            match self.need()? {
                (Event::SequenceEnd, _) => return Ok(Value::Array(items)),
                (event, span) => items.push(self.node(event, &span, depth + 1)?.value),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut entries: Vec<(CompactString, Value)> = Vec::new();
        let mut lines: Vec<(usize, Value)> = Vec::new();
        let mut merged = false;
        loop {
            let key = match self.need()? {
                (Event::MappingEnd, _) => break,
                (event, span) => self.node(event, &span, depth + 1)?,
            };
            let (event, span) = self.need()?;
            let node = self.node(event, &span, depth + 1)?;
            if key.is_merge {
                merged = true;
                merge(&mut entries, node.value, node.line)?;
                lines.resize(entries.len(), (node.line, Value::Null));
                continue;
            }
            entries.push((key_text(&key.value, node.line)?, node.value));
            lines.push((node.line, key.value));
        }
        if !merged {
            self.find_duplicates(&entries, &lines);
        }
        Ok(Value::Object(Map::from_entries(entries).0))
    }

    fn find_duplicates(&mut self, entries: &[(CompactString, Value)], lines: &[(usize, Value)]) {
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        for ((key, _), (line, original)) in entries.iter().zip(lines) {
            if !seen.insert(key.as_str()) && self.duplicates.len() < MAX_DUPLICATES {
                let shown = match original {
                    Value::String(s) => format!("{s:?}"),
                    _ => key.to_string(),
                };
                self.duplicates.push(format!("line {line}: key {shown} already set in map"));
            }
        }
    }
}

/// `<<`: the entries of a mapping, or of several.
fn merge(entries: &mut Vec<(CompactString, Value)>, value: Value, line: usize) -> Result<(), DecodeError> {
    match value {
        Value::Object(map) => entries.extend(map),
        Value::Array(maps) => {
            // The first of several wins, and the last entry of a mapping does.
            for map in maps.into_iter().rev() {
                match map {
                    Value::Object(map) => entries.extend(map),
                    _ => {
                        return Err(fault(&format!(
                            "yaml: line {line}: map merge requires map or sequence of maps as the value"
                        )));
                    }
                }
            }
        }
        _ => return Err(fault(&format!("yaml: line {line}: map merge requires map or sequence of maps as the value"))),
    }
    Ok(())
}

fn key_text(key: &Value, line: usize) -> Result<CompactString, DecodeError> {
    Ok(match key {
        Value::String(s) => s.clone(),
        Value::Bool(b) => (if *b { "true" } else { "false" }).into(),
        Value::Int(n) => compact_str::format_compact!("{n}"),
        Value::Float(n) => compact_str::format_compact!("{n}"),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(fault(&format!("yaml: line {line}: unsupported map key")));
        }
    })
}

fn scalar_value(text: &str, plain: bool, tag: Option<&Tag>, line: usize) -> Result<Value, DecodeError> {
    let tag = tag.map(|tag| tag.suffix_in_namespace("tag:yaml.org,2002:").unwrap_or_default());
    let value = match tag.as_deref() {
        None if plain => scalar::resolve(text),
        Some("binary") => {
            let bytes = BASE64.decode(text.replace(char::is_whitespace, "")).unwrap_or_default();
            String::from_utf8(bytes)
                .map_err(|_| fault(&format!("yaml: line {line}: !!binary value contains invalid base64 data")))?
                .into()
        }
        Some("int" | "float" | "bool" | "null") => scalar::resolve(text),
        _ => text.into(),
    };
    match value {
        Value::Float(n) if !n.is_finite() => Err(fault(&format!("json: unsupported value: {text}"))),
        value => Ok(value),
    }
}

/// How many nodes a tree has, and how many bytes of text.
fn size(value: &Value) -> (usize, usize) {
    let add = |(a, b): (usize, usize), (c, d): (usize, usize)| (a + c, b + d);
    match value {
        Value::String(s) => (1, s.len()),
        Value::Array(items) => items.iter().map(size).fold((1, 0), add),
        Value::Object(map) => map.iter().map(|(k, v)| add(size(v), (0, k.len()))).fold((1, 0), add),
        _ => (1, 0),
    }
}

fn fault(message: &str) -> DecodeError {
    DecodeError::Syntax(message.to_owned())
}

fn syntax(error: &ScanError) -> DecodeError {
    DecodeError::Syntax(format!("yaml: line {}: {}", error.marker().line(), error.info()))
}
