//! Who asks for what. Pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use crate::proxier::ServiceId;

/// Things by key that Services ask for, each with a value. Of several that ask for the same key, the one known longest has its
/// way until it no longer asks: the same one for every key, whenever each was asked for, so that what belongs together is of one.
pub(crate) struct Claims<K, V> {
    /// In the Services' order.
    claims: HashMap<K, Vec<(ServiceId, V)>>,
    /// What was changed since the last time that changes were asked for, as it was then.
    touched: BTreeMap<K, Option<V>>,
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Self {
        Claims { claims: HashMap::new(), touched: BTreeMap::new() }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Changed<K, V> {
    pub key: K,
    pub before: Option<V>,
    pub now: Option<V>,
}

impl<K: Hash + Ord + Clone, V: Clone + PartialEq> Claims<K, V> {
    /// A Service asks for `new` instead of `old`.
    pub(crate) fn replace(&mut self, service: ServiceId, old: BTreeMap<K, V>, new: BTreeMap<K, V>) {
        for key in old.into_keys().filter(|key| !new.contains_key(key)) {
            self.touch(&key);
            if let Some(claims) = self.claims.get_mut(&key) {
                if let Ok(at) = claims.binary_search_by_key(&service, |(owner, _)| *owner) {
                    claims.remove(at);
                }
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
        for (key, value) in new {
            self.touch(&key);
            let claims = self.claims.entry(key).or_default();
            match claims.binary_search_by_key(&service, |(owner, _)| *owner) {
                Ok(at) => claims[at].1 = value,
                Err(at) => {
                    claims.reserve_exact(1); // nearly all have just one
                    claims.insert(at, (service, value));
                }
            }
        }
    }

    pub(crate) fn now(&self, key: &K) -> Option<&V> {
        self.claims.get(key).and_then(|claims| claims.first()).map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.claims.iter().filter_map(|(key, claims)| claims.first().map(|(_, value)| (key, value)))
    }

    /// What differs from the last time, in the keys' order.
    pub(crate) fn changes(&mut self) -> Vec<Changed<K, V>> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let changed = touched.map(|(key, before)| {
            let now = self.now(&key).cloned();
            Changed { key, before, now }
        });
        changed.filter(|changed| changed.before != changed.now).collect()
    }

    fn touch(&mut self, key: &K) {
        if !self.touched.contains_key(key) {
            self.touched.insert(key.clone(), self.now(key).cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(items: &[(&'static str, u8)]) -> BTreeMap<&'static str, u8> {
        items.iter().copied().collect()
    }

    fn shown(claims: &mut Claims<&'static str, u8>) -> Vec<String> {
        claims.changes().iter().map(|c| format!("{} {:?} -> {:?}", c.key, c.before, c.now)).collect()
    }

    #[test]
    fn the_first_has_its_way_until_it_gives_up() {
        let (a, b) = (ServiceId(1), ServiceId(2));
        let mut claims = Claims::default();
        claims.replace(a, map(&[]), map(&[("x", 1)]));
        claims.replace(b, map(&[]), map(&[("x", 2), ("y", 2)]));
        assert_eq!(shown(&mut claims), ["x None -> Some(1)", "y None -> Some(2)"]);
        claims.replace(b, map(&[("x", 2), ("y", 2)]), map(&[("x", 3), ("y", 2)]));
        assert!(shown(&mut claims).is_empty());
        claims.replace(a, map(&[("x", 1)]), map(&[]));
        assert_eq!(shown(&mut claims), ["x Some(1) -> Some(3)"]);
        claims.replace(b, map(&[("x", 3), ("y", 2)]), map(&[]));
        assert_eq!(shown(&mut claims), ["x Some(3) -> None", "y Some(2) -> None"]);
        assert_eq!(claims.iter().count(), 0);
    }

    #[test]
    fn what_is_taken_and_given_at_once_is_one_change() {
        let mut claims = Claims::default();
        claims.replace(ServiceId(1), map(&[]), map(&[("x", 1)]));
        claims.changes();
        claims.replace(ServiceId(2), map(&[]), map(&[("x", 2)]));
        claims.replace(ServiceId(1), map(&[("x", 1)]), map(&[]));
        assert_eq!(shown(&mut claims), ["x Some(1) -> Some(2)"]);
    }
}
