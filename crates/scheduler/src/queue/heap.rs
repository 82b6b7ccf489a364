//! A heap whose order somebody else decides and from which anything can be taken by its key.

use std::collections::HashMap;

use crate::pod::Uid;

/// An item that knows its key.
pub(crate) trait Keyed {
    fn key(&self) -> &Uid;
}

#[derive(Debug)]
pub(crate) struct Heap<T> {
    items: Vec<T>,
    places: HashMap<Uid, usize>,
}

impl<T> Default for Heap<T> {
    fn default() -> Self {
        Self { items: Vec::new(), places: HashMap::new() }
    }
}

/// `before` must be the same order in every call on one heap.
impl<T: Keyed> Heap<T> {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn get_mut(&mut self, key: &Uid) -> Option<&mut T> {
        self.places.get(key).map(|at| &mut self.items[*at])
    }

    pub(crate) fn peek(&self) -> Option<&T> {
        self.items.first()
    }

    /// Puts an item in, replacing one with the same key.
    pub(crate) fn push(&mut self, item: T, before: impl Fn(&T, &T) -> bool) {
        self.remove(&item.key().clone(), &before);
        let at = self.items.len();
        self.places.insert(item.key().clone(), at);
        self.items.push(item);
        self.rise(at, &before);
    }

    pub(crate) fn pop(&mut self, before: impl Fn(&T, &T) -> bool) -> Option<T> {
        (!self.items.is_empty()).then(|| self.take(0, &before))
    }

    pub(crate) fn remove(&mut self, key: &Uid, before: impl Fn(&T, &T) -> bool) -> Option<T> {
        let at = *self.places.get(key)?;
        Some(self.take(at, &before))
    }

    fn take(&mut self, at: usize, before: &impl Fn(&T, &T) -> bool) -> T {
        let item = self.items.swap_remove(at);
        self.places.remove(item.key());
        if at < self.items.len() {
            self.places.insert(self.items[at].key().clone(), at);
            self.sink(at, before);
            self.rise(at, before);
        }
        item
    }

    fn rise(&mut self, mut at: usize, before: &impl Fn(&T, &T) -> bool) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if !before(&self.items[at], &self.items[parent]) {
                return;
            }
            self.swap(at, parent);
            at = parent;
        }
    }

    fn sink(&mut self, mut at: usize, before: &impl Fn(&T, &T) -> bool) {
        loop {
            let mut first = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.items.len() && before(&self.items[child], &self.items[first]) {
                    first = child;
                }
            }
            if first == at {
                return;
            }
            self.swap(at, first);
            at = first;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.items.swap(a, b);
        for at in [a, b] {
            if let Some(place) = self.places.get_mut(self.items[at].key()) {
                *place = at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Item(Uid, u32);

    impl Keyed for Item {
        fn key(&self) -> &Uid {
            &self.0
        }
    }

    fn before(a: &Item, b: &Item) -> bool {
        a.1 < b.1
    }

    #[test]
    fn comes_out_in_order_whatever_was_taken_out_between() {
        let mut heap = Heap::default();
        for n in [5, 3, 9, 1, 7, 2, 8, 4, 6, 0] {
            heap.push(Item(n.to_string().as_str().into(), n), before);
        }
        assert_eq!(heap.remove(&"3".into(), before).map(|item| item.1), Some(3));
        heap.push(Item("9".into(), 0), before);
        assert!(heap.get_mut(&"4".into()).is_some() && heap.get_mut(&"3".into()).is_none());
        let mut order = Vec::new();
        while let Some(item) = heap.pop(before) {
            order.push(item.1);
        }
        assert_eq!(order, [0, 0, 1, 2, 4, 5, 6, 7, 8]);
        assert!(heap.places.is_empty());
    }
}
