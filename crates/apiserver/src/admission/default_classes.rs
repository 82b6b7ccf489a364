//! DefaultStorageClass and DefaultIngressClass: the class of what names none.

use std::cmp::Reverse;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::lister::Lister;

/// One of the two plugins.
pub(super) struct DefaultClass {
    pub lister: Arc<dyn Lister>,
    pub kind: &'static Kind,
}

pub(super) struct Kind {
    plugin: &'static str,
    /// What gets a class.
    group: &'static str,
    resource: &'static str,
    field: &'static str,
    /// The field's older form.
    annotation: &'static str,
    classes: &'static str,
    marks: &'static [&'static str],
}

pub(super) const STORAGE: Kind = Kind {
    plugin: "DefaultStorageClass",
    group: "",
    resource: "persistentvolumeclaims",
    field: "storageClassName",
    annotation: "volume.beta.kubernetes.io/storage-class",
    classes: "storageclasses.storage.k8s.io",
    marks: &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"],
};

pub(super) const INGRESS: Kind = Kind {
    plugin: "DefaultIngressClass",
    group: "networking.k8s.io",
    resource: "ingresses",
    field: "ingressClassName",
    annotation: "kubernetes.io/ingress.class",
    classes: "ingressclasses.networking.k8s.io",
    marks: &["ingressclass.kubernetes.io/is-default-class"],
};

#[async_trait]
impl Plugin for DefaultClass {
    fn name(&self) -> &'static str {
        self.kind.plugin
    }

    fn handles(&self, request: &Request) -> bool {
        request.operation == Operation::Create && request.is(self.kind.group, self.kind.resource)
    }

    async fn admit(&self, request: &mut Request) -> Result<(), Status> {
        let has_annotation = request.object.annotation(self.kind.annotation).is_some();
        if has_annotation || !request.object.at(&["spec", self.kind.field]).is_null() {
            return Ok(());
        }
        if let Some(class) = choose(self.kind, &self.lister.list(self.kind.classes, "")) {
            request.object.set(&["spec", self.kind.field], class.name());
        }
        Ok(())
    }
}

/// Of several default classes the newest, and of those the first by name.
fn choose<'a>(kind: &Kind, classes: &'a [Arc<Value>]) -> Option<&'a Arc<Value>> {
    let is_default = |class: &&Arc<Value>| kind.marks.iter().any(|mark| class.annotation(mark) == Some("true"));
    classes.iter().filter(is_default).min_by_key(|class| {
        let made = class.meta("creationTimestamp").as_str().unwrap_or_default().to_owned();
        (Reverse(made), class.name().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(classes: &[(&str, &str, &str)], want: Option<&str>) {
        let class = |(name, made, default): &(&str, &str, &str)| {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}","creationTimestamp":"{made}","annotations":{{"storageclass.kubernetes.io/is-default-class":"{default}"}}}}}}"#
            );
            Arc::new(serde_json::from_str::<Value>(&text).unwrap())
        };
        let classes: Vec<_> = classes.iter().map(class).collect();
        assert_eq!(choose(&STORAGE, &classes).map(|c| c.name()), want);
    }

    #[test]
    fn the_newest_default_class_is_taken() {
        check(&[("a", "2026-01-01T00:00:00Z", "false")], None);
        check(&[("a", "2026-01-01T00:00:00Z", "true"), ("b", "2026-01-02T00:00:00Z", "true")], Some("b"));
        check(&[("b", "2026-01-01T00:00:00Z", "true"), ("a", "2026-01-01T00:00:00Z", "true")], Some("a"));
    }
}
