//! Objects for tests.

use std::sync::Arc;

use bytes::Bytes;
use storage::Revision;

use api::Strategy;

use super::ring::Change;
use super::{Object, Shape};

pub(super) fn shape() -> Shape {
    struct Pods;
    impl api::Strategy for Pods {
        fn selectable_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
            &[("spec.nodeName", &["spec", "nodeName"])]
        }
    }
    Shape {
        prefix: "/registry/pods/".into(),
        namespaced: true,
        head: r#"{"kind":"Pod","apiVersion":"v1","metadata":{"#.into(),
        typed_items: false,
        stored_versions: Vec::new(),
        fields: Pods.selectable_fields(),
        strategy: &Pods,
    }
}

/// A pod of namespace `ns` on a node.
pub(super) fn pod(name: &str, node: &str, revision: u64) -> Arc<Object> {
    let shape = shape();
    let body = format!(
        r#"{}"labels":{{"app":"web"}},"name":"{name}","namespace":"ns"}},"spec":{{"nodeName":"{node}"}}}}"#,
        shape.head
    );
    Arc::new(Object::read(&shape, shape.key("ns", name), Bytes::from(body), Revision(revision)).unwrap())
}

pub(super) fn created(name: &str, revision: u64) -> Change {
    Change { revision: Revision(revision), current: Some(pod(name, "n1", revision)), previous: None }
}
