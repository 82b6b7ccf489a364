//! Finds in an object's bytes the few facts that selections look at, without building a tree.
//!
//! Skipping through JSON costs a hundredth of decoding it, so this runs for every change that the store reports.

use std::fmt;

use apimachinery::{Map, Value};
use compact_str::CompactString;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::object::Shape;

/// What is known of an object without decoding it.
pub(super) struct Facts {
    pub labels: Box<[(CompactString, CompactString)]>,
    /// Values of the selectable fields, in the order in which the strategy lists them.
    pub fields: Box<[CompactString]>,
    /// Where in the body `metadata` ends (behind its closing brace).
    pub metadata_end: usize,
}

pub(super) fn facts_of(shape: &Shape, body: &[u8]) -> Result<Facts, serde_json::Error> {
    let text = std::str::from_utf8(body).map_err(serde::de::Error::custom)?;
    let paths: Vec<&[&str]> = shape.fields.iter().map(|(_, path)| *path).collect();
    let mut json = serde_json::Deserializer::from_str(text);
    let top = Top { paths: &paths }.deserialize(&mut json)?;
    json.end()?;

    let metadata = top.metadata.ok_or_else(|| serde::de::Error::custom("it has no metadata"))?;
    let labels: Metadata = serde_json::from_str(metadata)?;
    let fields =
        shape.fields.iter().map(|(label, _)| shape.strategy.selectable_field(&top.sparse, label).unwrap_or_default());
    Ok(Facts {
        labels: labels.labels.into_iter().collect(),
        fields: fields.collect(),
        metadata_end: metadata.as_ptr() as usize + metadata.len() - text.as_ptr() as usize,
    })
}

#[derive(serde::Deserialize)]
struct Metadata {
    #[serde(default, deserialize_with = "labels")]
    labels: Vec<(CompactString, CompactString)>,
}

fn labels<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(CompactString, CompactString)>, D::Error> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(CompactString, CompactString)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("labels")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    d.deserialize_any(Pairs)
}

/// The top of an object: its metadata as text, and what stands at the wanted paths.
struct TopFound<'de> {
    metadata: Option<&'de str>,
    sparse: Value,
}

struct Top<'a> {
    paths: &'a [&'a [&'a str]],
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = TopFound<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = TopFound<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = TopFound { metadata: None, sparse: Value::object() };
        while let Some(key) = map.next_key::<CompactString>()? {
            if key == "metadata" {
                found.metadata = Some(map.next_value::<&'de RawValue>()?.get());
            } else if let Some(value) = map.next_value_seed(Below::new(self.paths, &key))? {
                found.sparse.make_object().insert(key, value);
            }
        }
        Ok(found)
    }
}

/// What the wanted paths that begin with one key find below it; nothing when none does.
struct Below<'a> {
    /// What is left of those paths.
    rests: Vec<&'a [&'a str]>,
}

impl<'a> Below<'a> {
    fn new(paths: &[&'a [&'a str]], key: &str) -> Self {
        Below { rests: paths.iter().filter(|p| p.first() == Some(&key)).map(|p| &p[1..]).collect() }
    }
}

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        if self.rests.is_empty() {
            d.deserialize_ignored_any(IgnoredAny)?;
            Ok(None)
        } else if self.rests.iter().any(|rest| rest.is_empty()) {
            <Value as serde::Deserialize>::deserialize(d).map(Some)
        } else {
            d.deserialize_any(self)
        }
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Map::new();
        while let Some(key) = map.next_key::<CompactString>()? {
            if let Some(value) = map.next_value_seed(Below::new(&self.rests, &key))? {
                found.insert(key, value);
            }
        }
        Ok(Some(found.into()))
    }

    // Anything but an object has nothing at a path that goes on.
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fields_and_the_end_of_metadata_are_found() {
        let shape = Shape {
            prefix: "/registry/pods/".into(),
            namespaced: true,
            head: r#"{"kind":"Pod","apiVersion":"v1","metadata":{"#.into(),
            typed_items: false,
            stored_versions: Vec::new(),
            fields: &[("spec.nodeName", &["spec", "nodeName"]), ("status.phase", &["status", "phase"])],
            strategy: &Selectable,
        };
        let body = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"labels":{"b":"2","a":"1"},"name":"p"},"spec":{"containers":[{"name":"c"}],"nodeName":"n1"}}"#;
        let facts = facts_of(&shape, body).unwrap();
        assert_eq!(*facts.labels, [("b".into(), "2".into()), ("a".into(), "1".into())]);
        assert_eq!(*facts.fields, ["n1", ""]);
        assert!(body[..facts.metadata_end].ends_with(br#""name":"p"}"#));
    }

    struct Selectable;

    impl api::Strategy for Selectable {
        fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
            &[("spec.nodeName", &["spec", "nodeName"]), ("status.phase", &["status", "phase"])]
        }
    }
}
