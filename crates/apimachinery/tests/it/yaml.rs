//! YAML against JSON.

use apimachinery::Value;
use apimachinery::codec::{Options, yaml};
use apimachinery::meta::Gvk;
use apimachinery::schema::Schema;

fn tree(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[track_caller]
fn reads(text: &str, want: &str) {
    assert_eq!(yaml::parse(text.as_bytes()).unwrap().value, tree(want), "{text}");
}

#[track_caller]
fn refuses(text: &str, want: &str) {
    let error = yaml::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains(want), "{text}: {error}");
}

#[test]
fn documents_become_trees() {
    reads("", "null");
    reads("a: 1\nb: [x, \"2\", 2]\nc: {d: yes}\n", r#"{"a":1,"b":["x","2",2],"c":{"d":true}}"#);
    reads("a: |\n  x\nnum: \"1\"\ne: ''\n", r#"{"a":"x\n","num":"1","e":""}"#);
    reads("1: a\ntrue: b\n", r#"{"1":"a","true":"b"}"#);
    reads("---\na: 1\n---\nb: 2\n", r#"{"a":1}"#);
    reads("a: !!str 1\nb: !!int \"2\"\nc: !!binary aGk=\n", r#"{"a":"1","b":2,"c":"hi"}"#);
}

#[test]
fn aliases_and_merges_expand_within_bounds() {
    reads("a: &x {k: 1}\nb: *x\n", r#"{"a":{"k":1},"b":{"k":1}}"#);
    reads("base: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3\n", r#"{"base":{"k":1,"l":2},"b":{"k":3,"l":2}}"#);
    let mut bomb = "a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 9].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    refuses(&bomb, "excessive aliasing");
    refuses("a: &x [*x]\n", "contains itself");
    refuses(&format!("{}1", "- ".repeat(5000)), "max depth");
    refuses(&"[".repeat(100_000), "");
}

#[test]
fn what_is_no_yaml_is_refused() {
    refuses("a: b: c", "yaml: line 1: ");
    refuses("a: *none", "yaml: line 1: ");
    refuses("a: .inf", "unsupported value");
    assert!(yaml::parse(&[0xff, 0xfe]).is_err());
}

#[test]
fn keys_that_come_twice_are_found_with_their_line() {
    let ty = Schema::builtin().kind(&Gvk::new("", "v1", "ConfigMap")).unwrap();
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ystrict}\ndata:\n  a: \"1\"\n  a: \"2\"\nextra: {}\n";
    let decoded = yaml::decode(text.as_bytes(), ty, Options::default()).unwrap();
    assert_eq!(decoded.value.str_at(&["data", "a"]), "2");
    assert_eq!(
        decoded.strict_error().unwrap(),
        "strict decoding error: yaml: unmarshal errors:\n  line 6: key \"a\" already set in map, unknown field \"extra\""
    );
    let warnings: Vec<_> = decoded.warnings().collect();
    assert_eq!(warnings, ["line 6: key \"a\" already set in map", "unknown field \"extra\""]);
}

#[test]
fn what_is_written_reads_back() {
    for json in [
        r##"{"a":"yes","b":"1","c":"","d":" x","e":"a: b","f":"#x","g":"- x","h":"null","i":"x\ny\n","j":"x\ny","k":"\n\n"}"##,
        r#"{"l":[],"m":{},"n":[[1,[2]],{"a":1,"b":["c"]},"x\ny"],"o":null,"p":1.5,"q":"1e3","r":"é\u0001","s":"a\n b\n"}"#,
        r#"{"0x1F":"0x1F","~":"~","y":"y","a b":"2020-01-01","t":"tab\t","u":"*x","v":"trailing ","w":"x:"}"#,
        r#"["a",{"b":{}}]"#,
        r#""top""#,
    ] {
        let value = tree(json);
        let text = yaml::encode(&value);
        let back = yaml::parse(&text).unwrap_or_else(|e| panic!("{e}:\n{}", String::from_utf8_lossy(&text)));
        assert_eq!(back.value, value, "{}", String::from_utf8_lossy(&text));
    }
    let text = yaml::encode(&tree(r#"{"a":{"b":[{"c":1,"d":"x y"},"e"]},"f":"g"}"#));
    assert_eq!(String::from_utf8(text).unwrap(), "a:\n  b:\n  - c: 1\n    d: x y\n  - e\nf: g\n");
}
