//! Takes upstream's descriptions of types and fields out of the `k8s-openapi` crate, which has them in its schemas.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

const OUT: &str = "crates/apiserver/data/descriptions.txt";
const VERSION: &str = "src/v1_36";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
}

/// A type's description and those of its fields, as JSON string literals.
#[derive(Default)]
struct Described {
    own: Option<String>,
    fields: BTreeMap<String, String>,
}

pub(crate) fn run() -> Result<()> {
    let output = Command::new("cargo").args(["metadata", "--format-version=1"]).output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let found = metadata.packages.iter().find(|p| p.name == "k8s-openapi").context("k8s-openapi is no dependency")?;
    let root = found.manifest_path.parent().context("a manifest has a folder")?;
    let mut types = BTreeMap::new();
    visit(&root.join(VERSION), &mut types)?;
    let mut out = String::new();
    for (name, described) in &types {
        writeln!(out, "{name} {}", described.own.as_deref().unwrap_or("\"\""))?;
        for (field, text) in &described.fields {
            writeln!(out, "\t{field} {text}")?;
        }
    }
    fs::write(OUT, out).context(OUT)?;
    println!("{OUT}: {} types", types.len());
    Ok(())
}

fn visit(folder: &Path, types: &mut BTreeMap<String, Described>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, types)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            read(&fs::read_to_string(&path)?, types);
        }
    }
    Ok(())
}

/// The generated code is laid out the same everywhere, so its indentation says what a line is about.
fn read(source: &str, types: &mut BTreeMap<String, Described>) {
    let mut name = None;
    let mut field = None;
    let mut in_schema = false;
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("fn schema_name()") {
            name =
                lines.next().and_then(|line| literal(line)).and_then(|text| serde_json::from_str::<String>(text).ok());
            in_schema = false;
            continue;
        }
        in_schema |= line.contains("json_schema!({");
        let Some(described) =
            name.as_ref().filter(|_| in_schema).map(|name: &String| types.entry(name.clone()).or_default())
        else {
            continue;
        };
        let depth = line.len() - line.trim_start().len();
        let text = line.trim_start();
        match depth {
            12 if text.starts_with("\"description\":") => described.own = literal(&text[14..]).map(str::to_owned),
            16 if text.starts_with('"') && text.ends_with('{') => {
                field = literal(text).and_then(|text| serde_json::from_str::<String>(text).ok());
            }
            20 => {
                let rest = text
                    .strip_prefix("\"description\":")
                    .or_else(|| text.split_once(".insert(\"description\".into(),").map(|(_, rest)| rest));
                if let (Some(field), Some(text)) = (&field, rest.and_then(literal)) {
                    described.fields.insert(field.clone(), text.to_owned());
                }
            }
            _ => {}
        }
    }
}

/// The first string literal of a line, which is one of JSON too.
fn literal(line: &str) -> Option<&str> {
    let start = line.find('"')?;
    let mut escaped = false;
    for (i, c) in line[start + 1..].char_indices() {
        match c {
            '"' if !escaped => return Some(&line[start..=start + 1 + i]),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}
