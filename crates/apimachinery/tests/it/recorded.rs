//! Objects as a real apiserver v1.36 wrote them, in JSON and in protobuf, read and written again.

use std::path::Path;

use apimachinery::Value;
use apimachinery::codec::{Options, json};
use apimachinery::meta::{GroupVersion, Gvk};
use apimachinery::schema::{Schema, TypeRef};

/// A part of the recording travels with the crate; the whole of it is read where it is.
fn recordings() -> Vec<String> {
    let mut texts = vec![include_str!("../data/objects.jsonl").to_owned()];
    let folder = std::env::var("KELSON_GOLDEN").unwrap_or_else(|_| "../../../shared/golden".to_owned());
    let path = Path::new(&folder).join("encodings/objects.jsonl");
    match std::fs::read_to_string(&path) {
        Ok(text) => texts.push(text),
        Err(_) => println!("skipped: no recordings in {}; only the part in tests/data is checked", path.display()),
    }
    texts.iter().flat_map(|text| text.lines().map(str::to_owned)).collect()
}

struct Recorded {
    json: serde_json::Value,
    ty: &'static TypeRef,
}

fn recorded() -> impl Iterator<Item = Recorded> {
    recordings().into_iter().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let json = line["json"].take();
        let ty = type_of(&json);
        Recorded { json, ty }
    })
}

fn type_of(json: &serde_json::Value) -> &'static TypeRef {
    let gv = GroupVersion::parse(json["apiVersion"].as_str().unwrap()).unwrap();
    let gvk = Gvk { group: gv.group, version: gv.version, kind: json["kind"].as_str().unwrap().into() };
    Schema::builtin().kind(&gvk).unwrap_or_else(|| panic!("{gvk:?} is not in the schema"))
}

#[track_caller]
fn assert_same(name: &str, got: &[u8], want: &serde_json::Value) {
    let got: serde_json::Value = serde_json::from_slice(got).unwrap();
    if got != *want {
        let pretty = |v: &serde_json::Value| serde_json::to_string_pretty(v).unwrap();
        let (got, want) = (pretty(&got), pretty(want));
        let differing: Vec<_> = got.lines().zip(want.lines()).filter(|(a, b)| a != b).take(5).collect();
        panic!("{name}: {differing:#?}");
    }
}

#[test]
fn json_comes_back_as_it_was() {
    for Recorded { json, ty } in recorded() {
        let bytes = serde_json::to_vec(&json).unwrap();
        let decoded = json::decode(&bytes, ty, Options::default()).unwrap();
        assert_eq!(decoded.strict, Vec::<String>::new(), "{}", ty.name);
        assert_same(&ty.name, &json::encode_object(&decoded.value), &json);
    }
}

#[test]
fn the_stored_form_gets_its_version_spliced_in() {
    for Recorded { json, ty } in recorded() {
        let bytes = serde_json::to_vec(&json).unwrap();
        let value = json::decode(&bytes, ty, Options::default()).unwrap().value;
        let stored = json::encode_storage(&value);
        assert!(json::decode(&stored, ty, Options::default()).unwrap().value.resource_version().is_empty());

        let mut out = Vec::new();
        json::write_with_version(&mut out, &stored, value.resource_version());
        assert_same(&ty.name, &out, &json);

        let mut item = Vec::new();
        json::write_item(&mut item, &stored, value.resource_version());
        let mut bare = json.clone();
        bare.as_object_mut().unwrap().retain(|k, _| k != "kind" && k != "apiVersion");
        assert_same(&ty.name, &item, &bare);
    }
}

#[test]
fn splicing_into_empty_metadata_and_none() {
    let mut out = Vec::new();
    json::write_with_version(&mut out, br#"{"kind":"X","metadata":{},"a":1}"#, "7");
    assert_eq!(out, br#"{"kind":"X","metadata":{"resourceVersion":"7"},"a":1}"#);
    assert_eq!(json::splice_offset(br#"{"kind":"\"metadata\":{"}"#), None);
    assert_eq!(json::encode_storage(&Value::from([("kind", "X".into())])), &br#"{"kind":"X"}"#[..]);
}
