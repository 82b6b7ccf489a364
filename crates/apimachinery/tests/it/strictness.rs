//! What is wrong with a document, in upstream's words.

use apimachinery::codec::{self, DecodeError, Options, json};
use apimachinery::meta::Gvk;
use apimachinery::schema::{Schema, TypeRef};

fn kind(group: &str, version: &str, kind: &str) -> &'static TypeRef {
    Schema::builtin().kind(&Gvk::new(group, version, kind)).unwrap()
}

#[track_caller]
fn strict(ty: &TypeRef, body: &str, want: &[&str]) {
    assert_eq!(json::decode(body.as_bytes(), ty, Options::default()).unwrap().strict, want, "{body}");
}

#[track_caller]
fn fails(ty: &TypeRef, body: &str, want: &str) {
    let error = json::decode(body.as_bytes(), ty, Options::default()).unwrap_err();
    assert_eq!(error.to_string(), want, "{body}");
}

#[track_caller]
fn becomes(ty: &TypeRef, body: &str, want: &str) {
    let decoded = json::decode(body.as_bytes(), ty, Options::default()).unwrap();
    assert_eq!(String::from_utf8(json::encode_object(&decoded.value)).unwrap(), want, "{body}");
    let mut again = decoded.value.clone();
    codec::normalize(&mut again, ty);
    assert_eq!(again, decoded.value, "normal form is stable");
}

#[test]
fn unknown_and_duplicate_fields_are_listed_in_the_order_of_the_document() {
    strict(
        kind("", "v1", "Pod"),
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labelz":{}},
            "spec":{"containers":[{"name":"c","image":"i","imagee":"j","image":"k"}],"unknown":1}}"#,
        &[
            r#"unknown field "metadata.labelz""#,
            r#"unknown field "spec.containers[0].imagee""#,
            r#"duplicate field "spec.containers[0].image""#,
            r#"unknown field "spec.unknown""#,
        ],
    );
    let config_map = kind("", "v1", "ConfigMap");
    strict(config_map, r#"{"data":{"k":"1","k":"2"}}"#, &[r#"duplicate field "data.k""#]);
    strict(config_map, r#"{"Data":{"a":"b"}}"#, &[r#"unknown field "Data""#]);
    let many: String = (0..200).map(|i| format!(r#""x{i}":1,"#)).collect();
    let decoded = json::decode(format!("{{{many}\"data\":{{}}}}").as_bytes(), config_map, Options::default()).unwrap();
    assert_eq!(decoded.strict.len(), 100);
}

#[test]
fn the_last_of_two_stays() {
    becomes(
        kind("", "v1", "ConfigMap"),
        r#"{"immutable":true,"data":{"a":"1","a":"2"},"immutable":false}"#,
        r#"{"metadata":{},"data":{"a":"2"},"immutable":false}"#,
    );
}

#[test]
fn values_of_a_wrong_type_are_named_as_go_names_them() {
    let config_map = kind("", "v1", "ConfigMap");
    let deployment = kind("apps", "v1", "Deployment");
    let pod = kind("", "v1", "Pod");
    fails(
        config_map,
        r#"{"data":{"k":1}}"#,
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
    );
    fails(
        deployment,
        r#"{"spec":{"replicas":"3"}}"#,
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    fails(
        deployment,
        r#"{"spec":{"replicas":3000000000}}"#,
        "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    fails(
        deployment,
        r#"{"spec":{"replicas":1.5}}"#,
        "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
    );
    fails(pod, r#"{"spec":7}"#, "json: cannot unmarshal number into Go struct field Pod.spec of type v1.PodSpec");
    fails(
        pod,
        r#"{"spec":{"containers":{}}}"#,
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    fails(
        pod,
        r#"{"spec":{"containers":[{"name":true}]}}"#,
        "json: cannot unmarshal bool into Go struct field Container.spec.containers.name of type string",
    );
    fails(
        pod,
        r#"{"spec":{"dnsPolicy":[]}}"#,
        "json: cannot unmarshal array into Go struct field PodSpec.spec.dnsPolicy of type v1.DNSPolicy",
    );
    fails(pod, "[]", "json: cannot unmarshal array into Go value of type v1.Pod");
}

#[test]
fn types_that_decode_themselves_have_words_of_their_own() {
    let pod = kind("", "v1", "Pod");
    fails(
        pod,
        r#"{"spec":{"containers":[{"name":1,"resources":{"limits":{"cpu":"much"}}}]}}"#,
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    fails(pod, r#"{"metadata":{"creationTimestamp":5}}"#, "json: cannot unmarshal number into Go value of type string");
    fails(kind("", "v1", "Secret"), r#"{"data":{"a":"%%"}}"#, "illegal base64 data at input byte 0");
    fails(
        kind("coordination.k8s.io", "v1", "Lease"),
        r#"{"spec":{"renewTime":"2020-01-01T00:00:10.5Z"}}"#,
        r#"parsing time "2020-01-01T00:00:10.5Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse ".5Z" as ".000000""#,
    );
}

#[test]
fn syntax_errors_are_gos() {
    let config_map = kind("", "v1", "ConfigMap");
    fails(config_map, r#"{"metadata": {"name": "a""#, "unexpected end of JSON input");
    fails(config_map, r#"{"metadata": x}"#, "invalid character 'x' looking for beginning of value");
    assert_eq!(json::type_meta(b""), Err(DecodeError::Syntax("unexpected end of JSON input".into())));
    let meta = json::type_meta(br#"{"x":{"kind":"no"},"kind":"Pod","apiVersion":"v1"}"#).unwrap();
    assert_eq!((meta.kind.as_str(), meta.api_version.as_str()), ("Pod", "v1"));
    assert!(json::type_meta(br#"{"kind":1}"#).is_err());
    let deep = format!("{{\"data\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    fails(kind("apps", "v1", "ControllerRevision"), &deep, "exceeded max depth");
}

#[test]
fn empties_are_dropped_and_structs_filled_in_as_go_does() {
    becomes(
        kind("", "v1", "ConfigMap"),
        r#"{"data":{"a":null},"binaryData":{},"immutable":false}"#,
        r#"{"metadata":{},"data":{"a":""},"immutable":false}"#,
    );
    becomes(
        kind("apps", "v1", "Deployment"),
        r#"{"metadata":{"creationTimestamp":null,"labels":{},"name":""},"spec":{"replicas":0,"paused":false,"template":{}},"status":null}"#,
        r#"{"metadata":{},"spec":{"replicas":0,"selector":null,"strategy":{},"template":{"metadata":{},"spec":{"containers":null}}},"status":{}}"#,
    );
    becomes(
        kind("", "v1", "Pod"),
        r#"{"spec":{"containers":[null,{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}},"args":[]}],"restartPolicy":""}}"#,
        r#"{"metadata":{},"spec":{"containers":[{"name":"","resources":{}},{"name":"","resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}]},"status":{}}"#,
    );
    becomes(kind("rbac.authorization.k8s.io", "v1", "Role"), "{}", r#"{"metadata":{},"rules":null}"#);
}

#[test]
fn custom_resources_keep_what_is_there() {
    let any = TypeRef::any();
    let options = Options { unstructured: true, ..Options::default() };
    let decoded = json::decode(br#"{"spec":{"name":"abc","x":null,"n":1.0,"name":"abd"}}"#, &any, options).unwrap();
    assert_eq!(decoded.strict, [r#"duplicate field "spec.name""#]);
    assert_eq!(json::encode(&decoded.value), br#"{"spec":{"n":1.0,"name":"abd","x":null}}"#);
}

#[test]
fn a_changed_tree_goes_through_the_same_checks() {
    let ty = kind("", "v1", "ConfigMap");
    let tree = json::value(br#"{"data":{"a":1}}"#).unwrap();
    assert_eq!(
        codec::from_value(tree, ty, Options::default()).unwrap_err().to_string(),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    let tree = json::value(br#"{"nope":1}"#).unwrap();
    let decoded = codec::from_value(tree, ty, Options::default()).unwrap();
    assert_eq!(decoded.strict_error().unwrap(), r#"strict decoding error: unknown field "nope""#);
}

#[test]
fn strategic_patches_have_the_words_of_the_converter() {
    let options = Options { converter_words: true, ..Options::default() };
    let fails = |body: &[u8]| {
        codec::from_value(json::value(body).unwrap(), kind("apps", "v1", "Deployment"), options)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(fails(br#"{"spec":[1]}"#), "cannot restore struct from: slice");
    assert_eq!(fails(br#"{"spec":{"replicas":1.5}}"#), "cannot convert float64 to int32");
    assert_eq!(fails(br#"{"spec":{"replicas":"x"}}"#), "unrecognized type: int32");
}
