//! [`ObjectKey`]: which object of a kind is meant, as `namespace/name`, or `name` alone for cluster-scoped kinds.

use std::{borrow::Borrow, fmt, sync::Arc};

use kube::Resource;

/// `namespace/name` or `name`: one shared allocation, cheap to clone into queues and indexes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

impl ObjectKey {
    /// The key of an object in a namespace; an empty namespace means a cluster-scoped object.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        if namespace.is_empty() { Self::cluster(name) } else { Self(format!("{namespace}/{name}").into()) }
    }

    /// The key of a cluster-scoped object.
    #[must_use]
    pub fn cluster(name: &str) -> Self {
        Self(name.into())
    }

    /// The key of `object`.
    #[must_use]
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    /// The namespace, empty for a cluster-scoped object.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the text form, as the keys of upstream's queues and logs have it.
impl From<&str> for ObjectKey {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Lets a map by key be asked with a `&str`.
impl Borrow<str> for ObjectKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ObjectKey;

    #[test]
    fn splits_into_namespace_and_name() {
        let key = ObjectKey::new("default", "web");
        assert_eq!((key.namespace(), key.name(), key.as_str()), ("default", "web", "default/web"));
        let key = ObjectKey::new("", "node1");
        assert_eq!((key.namespace(), key.name()), ("", "node1"));
        assert_eq!(key, ObjectKey::from("node1"));
    }
}
