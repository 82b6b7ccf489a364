//! PrioritySort: higher priority first, then who waits longer.

use crate::framework::{Plugin, QueueSort};
use crate::queue::QueuedPod;

pub(super) struct PrioritySort;

impl Plugin for PrioritySort {
    const NAME: &'static str = "PrioritySort";
}

impl QueueSort for PrioritySort {
    fn before(&self, a: &QueuedPod, b: &QueuedPod) -> bool {
        (b.pod.priority, a.since) < (a.pod.priority, b.since)
    }
}
