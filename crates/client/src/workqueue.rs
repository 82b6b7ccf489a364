//! A queue of keys: each key at most once in it, at most one worker on a key, delays, and growing pauses for keys that
//! keep failing.
//!
//! The queue has no task of its own: a worker that waits for work also waits for the next delayed key, so that an idle
//! queue costs nothing.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

mod metrics;

pub use metrics::QueueMetrics;
use metrics::{Recorded, Work};

/// What a queue can hold.
pub trait Key: Clone + Eq + Hash + Send + 'static {}

impl<T: Clone + Eq + Hash + Send + 'static> Key for T {}

/// Pauses of a key that fails again and again: doubling from `first` up to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub last: Duration,
}

impl Default for Backoff {
    /// Upstream's controller default: 5 ms up to 1000 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(5), last: Duration::from_secs(1000) }
    }
}

impl Backoff {
    /// The pause after the `failures`th failure in a row, counted from 0.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(self.last)
    }
}

/// A handle to a queue; clones share it.
pub struct Queue<T>(Arc<Inner<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    shut: AtomicBool,
    backoff: Backoff,
    metrics: Option<Recorded>,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Keys to be worked on: those in `ready`, and those that a worker has to take up again when it is done.
    dirty: HashMap<T, Instant>,
    processing: HashMap<T, Instant>,
    delayed: BinaryHeap<Reverse<Delayed<T>>>,
    /// When each delayed key is due; an entry of `delayed` that says otherwise is out of date.
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

struct Delayed<T> {
    due: Instant,
    key: T,
}

impl<T> PartialEq for Delayed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl<T> Eq for Delayed<T> {}
impl<T> PartialOrd for Delayed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Delayed<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl<T: Key> Queue<T> {
    /// A queue whose metrics, if any, carry the label `name`.
    #[must_use]
    pub fn new(name: &str, backoff: Backoff, metrics: Option<&QueueMetrics>) -> Self {
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashMap::new(),
                processing: HashMap::new(),
                delayed: BinaryHeap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
            shut: AtomicBool::new(false),
            backoff,
            metrics: metrics.map(|metrics| metrics.of(name)),
        });
        if let Some(metrics) = metrics {
            let queue: std::sync::Weak<Inner<T>> = Arc::downgrade(&inner);
            metrics.watch(name, queue);
        }
        Self(inner)
    }

    /// Queues the key, unless it is queued already.
    pub fn add(&self, key: T) {
        if self.0.add(&mut self.0.state.lock(), key) {
            self.0.changed.notify_one();
        }
    }

    /// Queues the key once `delay` has passed; of several delays of one key the earliest holds.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        {
            let mut state = self.0.state.lock();
            if state.due.get(&key).is_some_and(|known| *known <= due) {
                return;
            }
            state.due.insert(key.clone(), due);
            state.delayed.push(Reverse(Delayed { due, key }));
        }
        self.0.changed.notify_one();
    }

    /// Queues the key after the pause that its failures so far ask for, and counts one more.
    pub fn add_rate_limited(&self, key: T) {
        let pause = {
            let mut state = self.0.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let pause = self.0.backoff.pause(*failures);
            *failures = failures.saturating_add(1);
            pause
        };
        if let Some(metrics) = &self.0.metrics {
            metrics.retried();
        }
        self.add_after(key, pause);
    }

    /// Forgets the key's failures.
    pub fn forget(&self, key: &T) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often the key failed in a row.
    #[must_use]
    pub fn failures(&self, key: &T) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or_default()
    }

    /// The next key to work on; `None` once the queue is shut down. The key is the caller's until [`Self::done`].
    pub async fn get(&self) -> Option<T> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.shut.load(Ordering::Acquire) {
                // Each worker that leaves wakes the next.
                self.0.changed.notify_one();
                return None;
            }
            let next_due = match self.0.take() {
                Ok(key) => return Some(key),
                Err(next_due) => next_due,
            };
            match next_due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Gives the key back; if it was added meanwhile it is queued again.
    pub fn done(&self, key: &T) {
        let again = {
            let mut state = self.0.state.lock();
            let started = state.processing.remove(key);
            if let (Some(metrics), Some(started)) = (&self.0.metrics, started) {
                metrics.worked(started.elapsed());
            }
            let again = state.dirty.contains_key(key);
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.0.changed.notify_one();
        }
    }

    /// Keys that wait for a worker.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets every [`Self::get`] return `None`, now and later.
    pub fn shut_down(&self) {
        self.0.shut.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }
}

impl<T: Key> Work for Inner<T> {
    fn unfinished(&self) -> (Duration, Duration) {
        let state = self.state.lock();
        let at_it = || state.processing.values().map(Instant::elapsed);
        (at_it().sum(), at_it().max().unwrap_or_default())
    }
}

impl<T: Key> Inner<T> {
    /// Whether a worker has to be woken.
    fn add(&self, state: &mut State<T>, key: T) -> bool {
        if state.dirty.contains_key(&key) {
            return false;
        }
        state.dirty.insert(key.clone(), Instant::now());
        if let Some(metrics) = &self.metrics {
            metrics.added();
        }
        if state.processing.contains_key(&key) {
            return false;
        }
        state.ready.push_back(key);
        true
    }

    /// Takes the next key, or says when the first delayed one is due.
    fn take(&self) -> Result<T, Option<Instant>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        while let Some(Reverse(first)) = state.delayed.peek() {
            if first.due > now {
                break;
            }
            let Some(Reverse(first)) = state.delayed.pop() else { break };
            if state.due.get(&first.key) == Some(&first.due) {
                state.due.remove(&first.key);
                self.add(&mut state, first.key);
            }
        }
        let next_due = state.delayed.peek().map(|Reverse(first)| first.due);
        let Some(key) = state.ready.pop_front() else { return Err(next_due) };
        let added = state.dirty.remove(&key);
        state.processing.insert(key.clone(), now);
        if let (Some(metrics), Some(added)) = (&self.metrics, added) {
            metrics.taken(now - added);
        }
        if next_due.is_some() || !state.ready.is_empty() {
            // Somebody else has to look after what is left while this worker works.
            self.changed.notify_one();
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<&'static str> {
        Queue::new("test", Backoff::default(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_worked_on_by_one() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        assert!(queue.is_empty(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_not_done_is_measured_when_somebody_asks() {
        let metrics = component_base::metrics::Metrics::new();
        let queues = metrics.register(QueueMetrics::register);
        let queue = Queue::new("test", Backoff::default(), Some(&queues));
        for key in ["a", "b"] {
            queue.add(key);
            queue.get().await.unwrap();
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        let text = metrics.text();
        assert!(text.contains("workqueue_unfinished_work_seconds{name=\"test\"} 6.0"), "{text}");
        assert!(text.contains("workqueue_longest_running_processor_seconds{name=\"test\"} 4.0"), "{text}");
        drop(queue);
        assert!(!metrics.text().contains("workqueue_unfinished_work_seconds{"));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_hold_and_the_earliest_wins() {
        let queue = queue();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(9));
        queue.add_after("soon", Duration::from_secs(5));
        queue.add_after("late", Duration::from_secs(3));
        queue.add_after("late", Duration::from_secs(30));
        assert_eq!((queue.get().await, start.elapsed().as_secs()), (Some("late"), 3));
        queue.done(&"late");
        assert_eq!((queue.get().await, start.elapsed().as_secs()), (Some("soon"), 5));
        queue.done(&"soon");
        let nothing = tokio::time::timeout(Duration::from_secs(60), queue.get()).await;
        assert!(nothing.is_err(), "an outdated delay must not queue the key again");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_worker_takes_over_the_clock_from_a_busy_one() {
        let queue = queue();
        let (first, second) = (queue.clone(), queue.clone());
        let first = tokio::spawn(async move { first.get().await });
        tokio::task::yield_now().await;
        let second = tokio::spawn(async move { second.get().await });
        tokio::task::yield_now().await;
        queue.add_after("later", Duration::from_secs(5));
        queue.add("now");
        assert_eq!(first.await.unwrap(), Some("now"));
        assert_eq!(second.await.unwrap(), Some("later"));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_pause_until_forgotten() {
        let queue = queue();
        let start = Instant::now();
        for _ in 0..4 {
            queue.add_rate_limited("a");
            assert_eq!(queue.get().await, Some("a"));
            queue.done(&"a");
        }
        assert_eq!(start.elapsed().as_millis(), 5 + 10 + 20 + 40);
        assert_eq!(queue.failures(&"a"), 4);
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
        assert_eq!(Backoff::default().pause(60), Duration::from_secs(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn shutting_down_lets_every_worker_go() {
        let queue = queue();
        let workers: Vec<_> =
            (0..3).map(|_| queue.clone()).map(|q| tokio::spawn(async move { q.get().await })).collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
