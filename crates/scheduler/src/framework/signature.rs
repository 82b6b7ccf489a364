//! What of a pod a plugin's answers depend on, so that pods that are the same to it share them.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// Whether answers may be kept for pods with the same signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The answer about a node depends on what was signed and on that node alone, and is good until the node changes or
    /// the nodes' epoch does.
    PerNode,
    /// It depends on more: ask every time.
    Never,
}

/// Collects what plugins sign. Equal signatures mean pods that are the same to every plugin that signed.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// Adds a value by its `Hash` form, which for the values of one plugin tells different ones apart.
    pub fn add(&mut self, value: &impl Hash) {
        value.hash(&mut Exactly(&mut self.0));
    }

    /// Adds a value by its debug form, for types that cannot be hashed. It has to show everything.
    pub fn add_debug(&mut self, value: &impl std::fmt::Debug) {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:?}");
        self.add(&text);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A "hasher" that keeps everything: what it collected is equal only for equal values.
struct Exactly<'a>(&'a mut Vec<u8>);

impl Hasher for Exactly<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_values_sign_differently() {
        let sign = |values: &[&str]| {
            let mut signature = Signature::default();
            signature.add(&values);
            signature.0
        };
        assert_eq!(sign(&["a", "b"]), sign(&["a", "b"]));
        assert_ne!(sign(&["ab"]), sign(&["a", "b"]));
        assert_ne!(sign(&["a", ""]), sign(&["", "a"]));
    }
}
