//! Objects as a real apiserver v1.36 wrote them, in JSON and in protobuf, read and written again.

use std::path::Path;

use apimachinery::Value;
use apimachinery::codec::{Options, json, protobuf};
use apimachinery::meta::{GroupVersion, Gvk};
use apimachinery::schema::{Schema, TypeRef};
use base64::Engine as _;
use bytes::BytesMut;

/// The recordings are beside the project, or where `KELSON_GOLDEN` says.
fn recording(file: &str) -> Option<String> {
    let folder = std::env::var("KELSON_GOLDEN").unwrap_or_else(|_| "../../../shared/golden".to_owned());
    let path = Path::new(&folder).join("encodings").join(file);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        println!("skipped: there is no {}", path.display());
    }
    text
}

/// A part of the objects travels with the crate; the whole of it is read where it is.
fn recordings() -> Vec<String> {
    let mut texts = vec![include_str!("../data/objects.jsonl").to_owned()];
    texts.extend(recording("objects.jsonl"));
    texts.iter().flat_map(|text| text.lines().map(str::to_owned)).collect()
}

pub(crate) struct Recorded {
    pub(crate) json: serde_json::Value,
    pub(crate) protobuf: Vec<u8>,
    pub(crate) ty: &'static TypeRef,
}

pub(crate) fn recorded() -> impl Iterator<Item = Recorded> {
    recordings().into_iter().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let json = line["json"].take();
        let ty = type_of(&json);
        let protobuf = base64::engine::general_purpose::STANDARD.decode(line["protobuf"].as_str().unwrap()).unwrap();
        Recorded { json, protobuf, ty }
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
    for Recorded { json, ty, .. } in recorded() {
        let bytes = serde_json::to_vec(&json).unwrap();
        let decoded = json::decode(&bytes, ty, Options::default()).unwrap();
        assert_eq!(decoded.strict, Vec::<String>::new(), "{}", ty.name);
        assert_same(&ty.name, &json::encode_object(&decoded.value), &json);
    }
}

#[test]
fn the_stored_form_gets_its_version_spliced_in() {
    for Recorded { json, ty, .. } in recorded() {
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

#[test]
fn protobuf_reads_as_the_json_and_is_written_as_it_was() {
    for Recorded { mut json, protobuf: recorded, ty } in recorded() {
        // Kind and version of these are defaults, which protobuf does not carry.
        for template in
            json.pointer_mut("/spec/volumeClaimTemplates").and_then(|v| v.as_array_mut()).into_iter().flatten()
        {
            template.as_object_mut().unwrap().retain(|k, _| k != "kind" && k != "apiVersion");
        }
        let value = protobuf::decode(&recorded, ty).unwrap();
        assert_same(&ty.name, &json::encode_object(&value), &json);
        let written = protobuf::encode(&value, ty);
        // Upstream keeps the text of what has no schema, spaces and all; we keep its meaning.
        let exact = !ty.name.ends_with("ControllerRevision");
        assert!(written == recorded || !exact, "{}:\n{}\n{}", ty.name, written.escape_ascii(), recorded.escape_ascii());
    }
}

#[test]
fn lists_and_watch_frames_are_put_together_from_encoded_objects() {
    let Recorded { protobuf: recorded, ty, .. } = recorded().find(|r| r.ty.name.ends_with(".Pod")).unwrap();
    let list = Schema::builtin().kind(&Gvk::new("", "v1", "PodList")).unwrap();
    let raw = protobuf::unknown(&recorded).unwrap().raw;
    let metadata = Value::from([("resourceVersion", "5".into())]);
    let (before, behind) = protobuf::list_frame("v1", "PodList", &metadata, list, [raw.len(), raw.len()].into_iter());
    let mut put_together = BytesMut::from(before.as_slice());
    protobuf::put_item(&mut put_together, raw);
    protobuf::put_item(&mut put_together, raw);
    put_together.extend_from_slice(&behind);
    let mut value = protobuf::decode(&put_together, list).unwrap();
    assert_eq!(value["items"].items().len(), 2);
    assert_eq!(protobuf::encode(&value, list), put_together);
    let mut item = value["items"].items()[0].clone();
    item.set(&["kind"], "Pod");
    item.set(&["apiVersion"], "v1");
    assert_eq!(item, protobuf::decode(&recorded, ty).unwrap());
    value.remove(&["items"]);

    let frame = protobuf::watch_frame("ADDED", &recorded);
    assert_eq!(protobuf::read_watch_frame(&frame[..9]).unwrap(), None);
    let (event, object, taken) = protobuf::read_watch_frame(&frame).unwrap().unwrap();
    assert_eq!((event.as_str(), taken), ("ADDED", frame.len()));
    assert_eq!(object, recorded);
}

#[test]
fn what_upstream_left_in_etcd_is_read_and_written_as_it_was() {
    let Some(text) = recording("etcd.jsonl") else { return };
    let mut read = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let stored = base64::engine::general_purpose::STANDARD.decode(line["value"].as_str().unwrap()).unwrap();
        if !stored.starts_with(protobuf::MAGIC) {
            assert!(json::value(&stored).is_ok());
            continue;
        }
        let meta = protobuf::unknown(&stored).unwrap().meta;
        let gv = GroupVersion::parse(&meta.api_version).unwrap();
        let gvk = Gvk { group: gv.group, version: gv.version, kind: meta.kind.as_str().into() };
        let ty = Schema::builtin().kind(&gvk).unwrap_or_else(|| panic!("{gvk:?} is not in the schema"));
        let value = protobuf::decode(&stored, ty).unwrap();
        let written = protobuf::encode(&value, ty);
        if gvk.kind != "ControllerRevision" {
            assert!(written == stored, "{}:\n{}\n{}", line["key"], written.escape_ascii(), stored.escape_ascii());
        }
        read += 1;
    }
    assert!(read > 400, "{read}");
}
