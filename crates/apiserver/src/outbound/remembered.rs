//! Answers of servers outside that are good for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most so many answers, by what was asked.
pub(crate) struct Remembered<Q, A> {
    most: usize,
    answers: Mutex<HashMap<Q, (Instant, A)>>,
}

impl<Q: Eq + Hash, A: Clone> Remembered<Q, A> {
    pub(crate) fn new(most: usize) -> Self {
        Remembered { most, answers: Mutex::default() }
    }

    pub(crate) fn get(&self, question: &Q) -> Option<A> {
        let answers = self.answers.lock();
        answers.get(question).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    /// Keeps an answer for `ttl`. Where there is no room even without what has expired, all others are forgotten.
    pub(crate) fn put(&self, question: Q, answer: A, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if answers.len() >= self.most {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= self.most {
            answers.clear();
        }
        answers.insert(question, (now + ttl, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_while_they_are_good_and_there_is_room() {
        let hour = Duration::from_secs(3600);
        let remembered = Remembered::new(2);
        remembered.put(1, "one", hour);
        remembered.put(2, "never", Duration::ZERO);
        remembered.put(3, "gone", Duration::from_nanos(1));
        assert_eq!((remembered.get(&1), remembered.get(&2), remembered.get(&3)), (Some("one"), None, None));
        remembered.put(4, "four", hour);
        assert_eq!((remembered.get(&1), remembered.get(&4)), (Some("one"), Some("four")));
        remembered.put(5, "five", hour);
        assert_eq!((remembered.get(&1), remembered.get(&4), remembered.get(&5)), (None, None, Some("five")));
    }
}
