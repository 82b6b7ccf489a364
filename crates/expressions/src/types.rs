//! What a schema says about values, for expressions that are written against one.

use std::collections::BTreeMap;
use std::sync::Arc;

use compact_str::CompactString;

/// The type of an expression or of a value that a schema describes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Type {
    #[default]
    Dyn,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>),
    Object(Arc<ObjectType>),
}

/// An object with known fields, by their names as expressions write them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    pub fields: BTreeMap<CompactString, FieldType>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FieldType {
    /// As the object has it.
    pub name: CompactString,
    pub ty: Type,
}

pub(super) static DYN: Type = Type::Dyn;

const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as an expression writes it; `None` for one that cannot be written.
#[must_use]
pub fn escape(name: &str) -> Option<CompactString> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__").into());
    }
    let mut out = CompactString::default();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = after;
            continue;
        }
        match c {
            'a'..='z' | 'A'..='Z' | '_' => out.push(c),
            '0'..='9' if !out.is_empty() => out.push(c),
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    (!out.is_empty()).then_some(out)
}

impl ObjectType {
    /// From properties by their real names; those that no expression can write are left out.
    #[must_use]
    pub fn new(properties: impl IntoIterator<Item = (CompactString, Type)>) -> Self {
        let named = |(name, ty): (CompactString, Type)| Some((escape(&name)?, FieldType { name, ty }));
        ObjectType { fields: properties.into_iter().filter_map(named).collect() }
    }

    /// From fields that expressions write as they are, reserved words too: those of what the server itself describes.
    #[must_use]
    pub fn exact(fields: impl IntoIterator<Item = (CompactString, Type)>) -> Self {
        ObjectType { fields: fields.into_iter().map(|(name, ty)| (name.clone(), FieldType { name, ty })).collect() }
    }

    #[must_use]
    pub fn field(&self, name: &str) -> Option<&FieldType> {
        self.fields.get(name)
    }
}
