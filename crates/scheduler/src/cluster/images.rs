//! Where images are: which node has which, how large each is, and on how many nodes.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::NodeIdx;

#[derive(Debug, Default)]
pub struct Images {
    known: HashMap<Arc<str>, ImageState>,
    /// The names on each node, sorted.
    on: Vec<Box<[Arc<str>]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageState {
    /// In bytes, as the first node that had it said.
    pub size: i64,
    /// On how many nodes it is.
    pub nodes: u32,
}

impl Images {
    /// The state of an image if the node has it.
    #[must_use]
    pub fn on_node(&self, node: NodeIdx, name: &str) -> Option<ImageState> {
        let names = self.on.get(node.at())?;
        names.binary_search_by(|own| (**own).cmp(name)).ok()?;
        self.known.get(name).copied()
    }

    /// Takes over a node's list; whether anything is different from before.
    pub(super) fn set(&mut self, at: NodeIdx, node: Option<&Node>) -> bool {
        if self.on.len() <= at.at() {
            self.on.resize_with(at.at() + 1, Box::default);
        }
        let images = node.and_then(|node| node.status.as_ref()).and_then(|status| status.images.as_ref());
        let listed = images.into_iter().flatten();
        let listed = listed.flat_map(|image| {
            let size = image.size_bytes.unwrap_or_default();
            image.names.iter().flatten().map(move |name| (name.as_str(), size))
        });
        let mut listed: Vec<(&str, i64)> = listed.collect();
        listed.sort_unstable();
        listed.dedup_by_key(|(name, _)| *name);
        let old = &self.on[at.at()];
        if old.len() == listed.len() && old.iter().zip(&listed).all(|(old, (new, _))| **old == **new) {
            return false;
        }
        let mut names = Vec::with_capacity(listed.len());
        for (name, size) in listed {
            if let Some((name, _)) = self.known.get_key_value(name) {
                names.push(name.clone());
            } else {
                let name: Arc<str> = name.into();
                self.known.insert(name.clone(), ImageState { size, nodes: 0 });
                names.push(name);
            }
        }
        for name in &names {
            if let Some(state) = self.known.get_mut(name) {
                state.nodes += 1;
            }
        }
        for name in std::mem::replace(&mut self.on[at.at()], names.into()) {
            if let Some(state) = self.known.get_mut(&name) {
                state.nodes -= 1;
                if state.nodes == 0 {
                    self.known.remove(&name);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(images: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"images": images}})).unwrap()
    }

    #[test]
    fn images_are_counted_over_nodes() {
        let mut images = Images::default();
        let (a, b) = (NodeIdx::new(0), NodeIdx::new(1));
        let both = node(json!([{"names": ["x:1", "x@sha"], "sizeBytes": 7}]));
        assert!(images.set(a, Some(&both)));
        assert!(!images.set(a, Some(&both)));
        assert!(images.set(b, Some(&node(json!([{"names": ["x:1"], "sizeBytes": 9}])))));
        assert_eq!(images.on_node(b, "x:1"), Some(ImageState { size: 7, nodes: 2 }));
        assert_eq!(images.on_node(b, "x@sha"), None);
        assert!(images.set(a, None));
        assert_eq!(images.on_node(b, "x:1"), Some(ImageState { size: 7, nodes: 1 }));
        images.set(b, None);
        assert!(images.known.is_empty());
    }
}
