//! From measurements to what is used: CPU as the difference of two, memory as the last one. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::exposition::Line;

/// Namespace and name of a pod.
pub(crate) type PodKey = (String, String);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    cpu_seconds: f64,
    memory_bytes: f64,
    at: Timestamp,
}

/// What one look at a kubelet's `/metrics/resource` gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    node: Option<Point>,
    /// By pod and container.
    containers: BTreeMap<PodKey, BTreeMap<String, Point>>,
}

/// What somebody uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Billionths of a CPU.
    pub(crate) cpu_nanos: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) at: Timestamp,
    /// How long it was measured for.
    pub(crate) window: SignedDuration,
}

/// The last two looks at a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    before: Option<Sample>,
    now: Option<Sample>,
}

impl Sample {
    pub(crate) fn of(lines: &[Line]) -> Self {
        let find = |name: &str, labels: &BTreeMap<String, String>| {
            lines.iter().find(|l| l.name == name && l.labels == *labels).map(|l| l.value)
        };
        let point = |cpu: &Line, memory: &str| {
            Some(Point {
                cpu_seconds: cpu.value,
                memory_bytes: find(memory, &cpu.labels)?,
                at: Timestamp::from_millisecond(cpu.at?).ok()?,
            })
        };
        let mut sample = Sample::default();
        for line in lines {
            let label = |name: &str| line.labels.get(name).cloned().unwrap_or_default();
            match line.name.as_str() {
                "node_cpu_usage_seconds_total" => sample.node = point(line, "node_memory_working_set_bytes"),
                "container_cpu_usage_seconds_total" => {
                    if let Some(point) = point(line, "container_memory_working_set_bytes") {
                        let of_pod = sample.containers.entry((label("namespace"), label("pod"))).or_default();
                        of_pod.insert(label("container"), point);
                    }
                }
                _ => {}
            }
        }
        sample
    }
}

impl Window {
    pub(crate) fn add(&mut self, sample: Sample) {
        self.before = self.now.replace(sample);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.before.is_some()
    }

    pub(crate) fn node(&self) -> Option<Usage> {
        between(self.before.as_ref()?.node?, self.now.as_ref()?.node?)
    }

    /// What the containers of a pod use. Nothing while one of them has been measured only once.
    pub(crate) fn pod(&self, key: &PodKey) -> Option<BTreeMap<String, Usage>> {
        let before = self.before.as_ref()?.containers.get(key)?;
        let now = self.now.as_ref()?.containers.get(key)?;
        let each = now.iter().map(|(name, point)| Some((name.clone(), between(*before.get(name)?, *point)?)));
        each.collect()
    }
}

/// A counter that went back belongs to a container that was started again.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked not to be negative")]
fn between(before: Point, now: Point) -> Option<Usage> {
    let window = now.at.duration_since(before.at);
    let used = now.cpu_seconds - before.cpu_seconds;
    if !window.is_positive() || used < 0.0 {
        return None;
    }
    Some(Usage {
        cpu_nanos: (used / window.as_secs_f64() * 1e9) as u64,
        memory_bytes: now.memory_bytes.max(0.0) as u64,
        at: now.at,
        window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::parse;

    fn sample(cpu: &str, at: i64) -> Sample {
        let labels = "container=\"c\",namespace=\"ns\",pod=\"p\"";
        let text = format!(
            "node_cpu_usage_seconds_total {cpu} {at}\nnode_memory_working_set_bytes 4096 {at}\n\
             container_cpu_usage_seconds_total{{{labels}}} {cpu} {at}\n\
             container_memory_working_set_bytes{{{labels}}} 2048 {at}\n"
        );
        Sample::of(&parse(&text))
    }

    fn key() -> PodKey {
        ("ns".to_owned(), "p".to_owned())
    }

    #[test]
    fn cpu_is_what_came_between_two_measurements() {
        let mut window = Window::default();
        window.add(sample("10", 1_000));
        assert_eq!((window.node(), window.pod(&key())), (None, None));
        window.add(sample("12.5", 11_000));
        let usage = window.node().unwrap();
        assert_eq!((usage.cpu_nanos, usage.memory_bytes), (250_000_000, 4096));
        assert_eq!(usage.window, SignedDuration::from_secs(10));
        let pod = window.pod(&key()).unwrap();
        assert_eq!((pod["c"].cpu_nanos, pod["c"].memory_bytes), (250_000_000, 2048));
    }

    #[test]
    fn a_container_that_was_started_again_is_measured_anew() {
        let mut window = Window::default();
        window.add(sample("10", 1_000));
        window.add(sample("1", 11_000));
        assert_eq!(window.pod(&key()), None);
        window.add(sample("2", 21_000));
        assert_eq!(window.pod(&key()).unwrap()["c"].cpu_nanos, 100_000_000);
    }
}
