//! Where `/registry` lies in an etcd that is shared with others.

use crate::Key;

/// What every key of this crate's users begins with.
const REGISTRY: &str = "/registry";

/// Translates keys between [`crate::Storage`] and etcd.
#[derive(Clone, Debug)]
pub(super) struct KeyMap {
    /// Stands in etcd for `/registry`; `None` when it is just that.
    prefix: Option<String>,
}

impl KeyMap {
    /// `prefix` as in `--etcd-prefix`: slashes at its ends say nothing.
    pub(super) fn new(prefix: &str) -> Self {
        let prefix = format!("/{}", prefix.trim_matches('/'));
        KeyMap { prefix: (prefix != REGISTRY).then_some(prefix) }
    }

    /// As etcd has it.
    pub(super) fn outward(&self, key: &str) -> Vec<u8> {
        match (&self.prefix, key.strip_prefix(REGISTRY)) {
            (Some(prefix), Some(rest)) => [prefix.trim_end_matches('/'), rest].concat().into_bytes(),
            _ => key.as_bytes().to_vec(),
        }
    }

    /// From what etcd has; `None` for a key that nobody here wrote.
    pub(super) fn inward(&self, key: &[u8]) -> Option<Key> {
        let key = std::str::from_utf8(key).ok()?;
        match &self.prefix {
            None => Some(Key::new(key)),
            Some(prefix) => {
                let rest = key.strip_prefix(prefix.trim_end_matches('/'))?;
                Some(Key([REGISTRY, rest].concat().into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_stands_for_the_registry() {
        for (prefix, outward) in [
            ("/registry", "/registry/pods/a"),
            ("registry/", "/registry/pods/a"),
            ("/kubernetes.io", "/kubernetes.io/pods/a"),
            ("/a/b", "/a/b/pods/a"),
            ("/", "/pods/a"),
        ] {
            let map = KeyMap::new(prefix);
            assert_eq!(String::from_utf8(map.outward("/registry/pods/a")).unwrap(), outward);
            assert_eq!(map.inward(outward.as_bytes()).unwrap().as_str(), "/registry/pods/a");
        }
        assert_eq!(KeyMap::new("/mine").inward(b"/others/a"), None);
        assert_eq!(KeyMap::new("/mine").outward("/registry0"), b"/mine0", "the end of a range is mapped too");
    }
}
