//! Bytes that somebody has tampered with. Whatever comes, each decoder gives an object or an error; and what it takes, it
//! writes and reads again as the same.
//!
//! The corpus is what a real apiserver wrote, and texts that are near the edges of what is taken.

use apimachinery::Value;
use apimachinery::apply::{self, Context, FieldSet, OneVersion};
use apimachinery::codec::{Options, cbor, from_value, json, protobuf, yaml};
use apimachinery::patch::{JsonPatch, merge, strategic_merge};
use apimachinery::quantity;
use apimachinery::schema::TypeRef;
use apimachinery::selector::{FieldSelector, LabelSelector};
use testing::fuzz::texts;

use crate::recorded::{Recorded, recorded};

/// What parsers stumble over.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"{}",
    b"[]",
    b"\"\"",
    b"true",
    b"-0",
    b"1e400",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"0.1e-9",
    b"\\u0000",
    b"\\ud800",
    b"\xff\xfe",
    b"\0",
    b"{\"",
    b"[[[[[[[[",
    b"&a [*a, *a]",
    b"<<: *a",
    b"!!binary",
    b"---\n",
    b"\t",
    b"metadata",
    b"$patch",
    b"$setElementOrder/containers",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"k8s\0",
    b"\xd9\xd9\xf7",
    b"~1",
    b"~0",
    b"/-",
    b" in (",
    b"!=",
    b"Ki",
    b"e-3",
];

fn fuzz<T>(corpus: &[(Vec<u8>, T)], check: impl Fn(&[u8], &T) -> bool) {
    testing::fuzz::fuzz(corpus, TOKENS, check);
}

fn objects(form: impl Fn(&Recorded) -> Vec<u8>) -> Vec<(Vec<u8>, &'static TypeRef)> {
    recorded().map(|object| (form(&object), object.ty)).collect()
}

fn value_of(object: &Recorded) -> Value {
    from_value(serde_json::from_value(object.json.clone()).unwrap(), object.ty, Options::default()).unwrap().value
}

#[test]
fn tampered_json() {
    fuzz(&objects(|object| json::encode(&value_of(object))), |bytes, ty| {
        // What is no JSON for one is none for the other.
        let well_formed = json::check(bytes);
        match json::decode(bytes, ty, Options::default()) {
            Ok(decoded) => {
                well_formed.unwrap();
                let again = json::decode(&json::encode(&decoded.value), ty, Options::default()).unwrap();
                assert_eq!(again.value, decoded.value, "{}", String::from_utf8_lossy(bytes));
                true
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                false
            }
        }
    });
}

#[test]
fn tampered_yaml() {
    fuzz(&objects(|object| yaml::encode(&value_of(object))), |bytes, ty| {
        let Ok(decoded) = yaml::decode(bytes, ty, Options::default()) else { return false };
        let again = json::decode(&json::encode(&decoded.value), ty, Options::default()).unwrap();
        assert_eq!(again.value, decoded.value, "{}", String::from_utf8_lossy(bytes));
        true
    });
}

#[test]
fn tampered_protobuf() {
    fuzz(&objects(|object| object.protobuf.clone()), |bytes, ty| {
        let Ok(value) = protobuf::decode(bytes, ty) else { return false };
        let again = protobuf::decode(&protobuf::encode(&value, ty), ty).unwrap();
        assert_eq!(again, value, "{bytes:?}");
        true
    });
}

#[test]
fn tampered_cbor() {
    fuzz(&objects(|object| cbor::encode(&value_of(object), object.ty)), |bytes, ty| {
        let Ok(decoded) = cbor::decode(bytes, ty, Options::default()) else { return false };
        let again = cbor::decode(&cbor::encode(&decoded.value, ty), ty, Options::default()).unwrap();
        assert_eq!(again.value, decoded.value, "{bytes:?}");
        true
    });
}

/// A tampered object is a patch of the whole one, in three ways.
#[test]
fn tampered_patches() {
    let corpus: Vec<_> = recorded()
        .map(|object| {
            let value = value_of(&object);
            (json::encode(&value), (value, object.ty))
        })
        .collect();
    fuzz(&corpus, |bytes, (whole, ty)| {
        let Ok(patch) = json::value(bytes) else { return false };
        let mut merged = whole.clone();
        merge(&mut merged, &patch);
        let once = merged.clone();
        merge(&mut merged, &patch);
        assert_eq!(merged, once, "to merge twice is to merge once");
        let mut merged = whole.clone();
        // Some patches are refused; none takes the server along.
        let _ = strategic_merge(&mut merged, patch.clone(), ty);
        let context = Context {
            ty,
            kind: whole.kind(),
            api_version: whole.api_version(),
            manager: "tamperer",
            subresource: "",
            time: "2026-01-01T00:00:00Z",
            reset: &FieldSet::default(),
            versions: &OneVersion,
        };
        let Ok(applied) = apply::apply(Some(whole), &patch, true, &context) else { return false };
        let again = apply::apply(Some(&applied), &patch, true, &context).unwrap();
        assert_eq!(again, applied, "to apply twice is to apply once: {}", String::from_utf8_lossy(bytes));
        true
    });
}

#[test]
fn tampered_json_patches() {
    let corpus = texts(
        20,
        &[
            r#"[{"op":"add","path":"/metadata/labels/a","value":"b"},{"op":"remove","path":"/metadata/labels/a"}]"#,
            r#"[{"op":"test","path":"/spec/containers/0/name","value":"c"},{"op":"replace","path":"/spec/containers/0","value":{}}]"#,
            r#"[{"op":"move","from":"/spec/containers/0","path":"/spec/containers/-"},{"op":"copy","from":"","path":"/a~1b~0c"}]"#,
        ],
    );
    let target = r#"{"metadata":{"labels":{}},"spec":{"containers":[{"name":"c"},{"name":"d"}]}}"#;
    let target: Value = serde_json::from_str(target).unwrap();
    fuzz(&corpus, |bytes, ()| JsonPatch::parse(bytes).is_ok_and(|patch| patch.apply(&mut target.clone()).is_ok()));
}

#[test]
fn tampered_selectors() {
    let corpus = texts(
        20,
        &["a=b,c!=d", "e in (f,g),!h", "example.com/i notin (j),k", "l>1,m<2", "metadata.name=x,spec.nodeName!=y\\,z"],
    );
    fuzz(&corpus, |bytes, ()| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(selector) = FieldSelector::parse(&text) {
            assert_eq!(selector.is_empty(), text.trim_matches([',', ' ']).is_empty(), "{text:?}");
        }
        // What asks for a label does not take an object without any.
        let Ok(selector) = LabelSelector::parse(&text) else { return false };
        assert!(selector.required().is_none() || !selector.matches(|_| None), "{text:?}");
        true
    });
}

#[test]
fn tampered_quantities() {
    fuzz(&texts(20, &["100m", "1.5Gi", "-3e6", "0.000001", "9223372036854775807", "12E", "1e-9"]), |bytes, ()| {
        let text = String::from_utf8_lossy(bytes);
        let Ok(canonical) = quantity::canonical(&text) else { return false };
        assert_eq!(quantity::canonical(&canonical).unwrap(), canonical, "{text:?}");
        true
    });
}
