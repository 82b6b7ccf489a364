//! What the node, its pods and its containers use: `/stats/summary`, `/metrics/resource` and `/metrics/cadvisor`, all from
//! one look at the runtime and the kernel.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_cri::v1::ContainerStats;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::context::Context;
use crate::labels;
use crate::pod::plan;
use crate::runtime::{Phase, RuntimeError};

/// One container as the runtime measures it.
struct Measured {
    uid: String,
    pod: String,
    namespace: String,
    container: String,
    id: String,
    image: String,
    /// Seconds since 1970.
    started: f64,
    cpu_nanos: u64,
    cpu_nano_cores: Option<u64>,
    working_set: u64,
    usage: u64,
    rss: u64,
    page_faults: u64,
    major_page_faults: u64,
    swap: u64,
    layer_bytes: u64,
    layer_inodes: u64,
}

pub(super) struct Snapshot {
    containers: Vec<Measured>,
    node_cpu_seconds: f64,
    memory_total: u64,
    memory_available: u64,
    at: Timestamp,
}

/// Of containers that run; what others have left behind would be counted again and again.
fn measured(stats: ContainerStats, running: &BTreeMap<String, i64>, images: &Images) -> Option<Measured> {
    let attributes = stats.attributes?;
    let created = *running.get(&attributes.id)?;
    let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
    let value = |v: Option<k8s_cri::v1::UInt64Value>| v.map(|v| v.value).unwrap_or_default();
    let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
    let layer = stats.writable_layer.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a metric is a float")]
    let started = created as f64 / 1e9;
    Some(Measured {
        uid: label(labels::POD_UID),
        pod: label(labels::POD_NAME),
        namespace: label(labels::POD_NAMESPACE),
        container: label(labels::CONTAINER_NAME),
        image: images.get(&(label(labels::POD_UID), label(labels::CONTAINER_NAME))).cloned().unwrap_or_default(),
        id: attributes.id,
        started,
        cpu_nanos: value(cpu.usage_core_nano_seconds),
        cpu_nano_cores: cpu.usage_nano_cores.map(|v| v.value),
        working_set: value(memory.working_set_bytes),
        usage: value(memory.usage_bytes),
        rss: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        swap: value(stats.swap.and_then(|s| s.swap_usage_bytes)),
        layer_bytes: value(layer.used_bytes),
        layer_inodes: value(layer.inodes_used),
    })
}

/// By pod uid and container name.
type Images = BTreeMap<(String, String), String>;

fn images_of(pods: &[Arc<Pod>]) -> Images {
    let all = pods.iter().flat_map(|p| {
        let uid = p.metadata.uid.clone().unwrap_or_default();
        let containers = plan::containers(p).iter().chain(plan::init_containers(p));
        containers.map(move |c| ((uid.clone(), c.name.clone()), c.image.clone().unwrap_or_default()))
    });
    all.collect()
}

/// CPU time of the machine from `/proc/stat`, in seconds: everything but idle and waiting for disks.
fn busy_seconds(stat: &str) -> f64 {
    const TICKS_A_SECOND: f64 = 100.0;
    let line = stat.lines().find(|l| l.starts_with("cpu ")).unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are counted as users already.
    [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum::<f64>() / TICKS_A_SECOND
}

impl Snapshot {
    pub(super) async fn take(context: &Context) -> Result<Self, RuntimeError> {
        let stats = context.runtime.container_stats().await?;
        let pods = context.runtime.list().await?;
        let running = pods.values().flat_map(|p| &p.containers).filter(|c| c.phase == Phase::Running);
        let running = running.map(|c| (c.id.clone(), c.created_at)).collect();
        let images = images_of(&context.admitted.all());
        let mut containers: Vec<Measured> = stats.into_iter().filter_map(|s| measured(s, &running, &images)).collect();
        containers.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |name: &str| {
            meminfo.lines().find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches(" kB").parse::<u64>().ok())
        };
        Ok(Snapshot {
            containers,
            node_cpu_seconds: busy_seconds(&std::fs::read_to_string("/proc/stat").unwrap_or_default()),
            memory_total: kib("MemTotal:").unwrap_or_default() * 1024,
            memory_available: kib("MemAvailable:").unwrap_or_default() * 1024,
            at: Timestamp::now(),
        })
    }

    fn by_pod(&self) -> BTreeMap<&str, Vec<&Measured>> {
        let mut pods: BTreeMap<&str, Vec<&Measured>> = BTreeMap::new();
        for container in &self.containers {
            pods.entry(&container.uid).or_default().push(container);
        }
        pods
    }

    /// What metrics servers read.
    pub(super) fn resource_metrics(&self) -> String {
        let at = self.at.as_millisecond();
        let mut text = Text::default();
        let node = |value: f64| vec![(String::new(), value, Some(at))];
        text.family(
            "node_cpu_usage_seconds_total",
            "CPU time that the node has used",
            "counter",
            node(self.node_cpu_seconds),
        );
        let used = self.memory_total.saturating_sub(self.memory_available);
        text.family("node_memory_working_set_bytes", "Memory of the node in use", "gauge", node(float(used)));
        let each = |of: fn(&Measured) -> f64| {
            self.containers.iter().map(|m| (labels_of(m), of(m), Some(at))).collect::<Vec<_>>()
        };
        text.family(
            "container_cpu_usage_seconds_total",
            "CPU time that a container has used",
            "counter",
            each(|m| float(m.cpu_nanos) / 1e9),
        );
        text.family(
            "container_memory_working_set_bytes",
            "Memory of a container in use",
            "gauge",
            each(|m| float(m.working_set)),
        );
        text.family("container_swap_usage_bytes", "Swap of a container in use", "gauge", each(|m| float(m.swap)));
        let starts = self.containers.iter().map(|m| (labels_of(m), m.started, None)).collect();
        text.family("container_start_time_seconds", "When a container started, since 1970", "gauge", starts);
        let pods = |of: fn(&Measured) -> f64| {
            let sum = |all: &Vec<&Measured>| all.iter().map(|m| of(m)).sum::<f64>();
            let named = |m: &Measured| format!("namespace=\"{}\",pod=\"{}\"", m.namespace, m.pod);
            self.by_pod().values().map(|all| (named(all[0]), sum(all), Some(at))).collect::<Vec<_>>()
        };
        text.family(
            "pod_cpu_usage_seconds_total",
            "CPU time that a pod has used",
            "counter",
            pods(|m| float(m.cpu_nanos) / 1e9),
        );
        text.family("pod_memory_working_set_bytes", "Memory of a pod in use", "gauge", pods(|m| float(m.working_set)));
        text.family("pod_swap_usage_bytes", "Swap of a pod in use", "gauge", pods(|m| float(m.swap)));
        text.family(
            "resource_scrape_error",
            "1 if the measurements could not be taken",
            "gauge",
            vec![(String::new(), 0.0, None)],
        );
        text.0
    }

    pub(super) fn cadvisor_metrics(&self, cpus: i64) -> String {
        let at = Some(self.at.as_millisecond());
        let mut text = Text::default();
        let each = |more: &str, of: fn(&Measured) -> f64| {
            let labels = |m: &Measured| {
                let (image, id) = (&m.image, &m.id);
                format!(
                    "container=\"{}\",{more}id=\"{id}\",image=\"{image}\",name=\"{id}\",namespace=\"{}\",pod=\"{}\"",
                    m.container, m.namespace, m.pod
                )
            };
            self.containers.iter().map(|m| (labels(m), of(m), at)).collect::<Vec<_>>()
        };
        text.family(
            "container_cpu_usage_seconds_total",
            "CPU time that a container has used",
            "counter",
            each("cpu=\"total\",", |m| float(m.cpu_nanos) / 1e9),
        );
        text.family(
            "container_fs_usage_bytes",
            "Bytes of a container's own layer",
            "gauge",
            each("device=\"\",", |m| float(m.layer_bytes)),
        );
        text.family("container_memory_rss", "Anonymous memory of a container", "gauge", each("", |m| float(m.rss)));
        text.family("container_memory_swap", "Swap of a container", "gauge", each("", |m| float(m.swap)));
        text.family(
            "container_memory_usage_bytes",
            "Memory of a container with its caches",
            "gauge",
            each("", |m| float(m.usage)),
        );
        text.family(
            "container_memory_working_set_bytes",
            "Memory of a container in use",
            "gauge",
            each("", |m| float(m.working_set)),
        );
        text.family(
            "container_start_time_seconds",
            "When a container started, since 1970",
            "gauge",
            each("", |m| m.started),
        );
        let machine = |value: f64| vec![("boot_id=\"\",machine_id=\"\",system_uuid=\"\"".to_owned(), value, None)];
        text.family(
            "machine_cpu_cores",
            "Logical CPUs",
            "gauge",
            machine(float(u64::try_from(cpus).unwrap_or_default())),
        );
        text.family("machine_memory_bytes", "Memory of the machine", "gauge", machine(float(self.memory_total)));
        text.0
    }

    pub(super) fn summary(&self, context: &Context) -> Value {
        let time = self.at.to_string();
        let pods: Vec<Value> = self.by_pod().values().map(|all| self.pod(all, context)).collect();
        let disk = nix::sys::statvfs::statvfs(&context.root).ok().map(|d| {
            json!({"time": time, "availableBytes": d.blocks_available() * d.fragment_size(),
                "capacityBytes": d.blocks() * d.fragment_size(),
                "usedBytes": (d.blocks() - d.blocks_free()) * d.fragment_size(),
                "inodesFree": d.files_free(), "inodes": d.files(), "inodesUsed": d.files() - d.files_free()})
        });
        let used = self.memory_total.saturating_sub(self.memory_available);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of seconds")]
        let nanos = (self.node_cpu_seconds * 1e9) as u64;
        json!({
            "node": {
                "nodeName": context.node_name,
                "cpu": {"time": time, "usageCoreNanoSeconds": nanos},
                "memory": {"time": time, "availableBytes": self.memory_available, "usageBytes": used, "workingSetBytes": used},
                "fs": disk,
                "runtime": {"imageFs": disk},
            },
            "pods": pods,
        })
    }

    fn pod(&self, all: &[&Measured], context: &Context) -> Value {
        let time = self.at.to_string();
        let sum = |of: fn(&Measured) -> u64| all.iter().map(|m| of(m)).sum::<u64>();
        #[expect(clippy::cast_possible_truncation, reason = "a time of this century")]
        let since = |seconds: f64| Timestamp::from_millisecond((seconds * 1e3) as i64).unwrap_or(self.at).to_string();
        let containers: Vec<Value> = all
            .iter()
            .map(|m| {
                json!({
                    "name": m.container, "startTime": since(m.started),
                    "cpu": {"time": time, "usageNanoCores": m.cpu_nano_cores, "usageCoreNanoSeconds": m.cpu_nanos},
                    "memory": {"time": time, "usageBytes": m.usage, "workingSetBytes": m.working_set, "rssBytes": m.rss,
                        "pageFaults": m.page_faults, "majorPageFaults": m.major_page_faults},
                    "rootfs": {"time": time, "usedBytes": m.layer_bytes, "inodesUsed": m.layer_inodes},
                    "swap": {"time": time, "swapUsageBytes": m.swap},
                })
            })
            .collect();
        let volumes = crate::volumes::pod_dir(&context.root, &all[0].uid).join("volumes/kubernetes.io~empty-dir");
        let volumes: Vec<Value> = std::fs::read_dir(volumes)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|e| {
                let used = crate::eviction::size_of_tree(&e.path());
                json!({"time": time, "name": e.file_name().to_string_lossy(), "usedBytes": used})
            })
            .collect();
        json!({
            "podRef": {"name": all[0].pod, "namespace": all[0].namespace, "uid": all[0].uid},
            "startTime": since(all.iter().map(|m| m.started).fold(f64::INFINITY, f64::min)),
            "containers": containers,
            "cpu": {"time": time, "usageCoreNanoSeconds": sum(|m| m.cpu_nanos)},
            "memory": {"time": time, "usageBytes": sum(|m| m.usage), "workingSetBytes": sum(|m| m.working_set),
                "rssBytes": sum(|m| m.rss)},
            "volume": volumes,
            "ephemeral-storage": {"time": time, "usedBytes": sum(|m| m.layer_bytes)},
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric is a float")]
fn float(value: u64) -> f64 {
    value as f64
}

fn labels_of(m: &Measured) -> String {
    format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", m.container, m.namespace, m.pod)
}

/// The text form of metrics, with timestamps, which the registry does not write.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Values as (labels, value, time in ms); nothing is written of a family without any.
    fn family(&mut self, name: &str, help: &str, kind: &str, values: Vec<(String, f64, Option<i64>)>) {
        if values.is_empty() {
            return;
        }
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
        for (labels, value, at) in values {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let at = at.map(|ms| format!(" {ms}")).unwrap_or_default();
            let _ = writeln!(self.0, "{name}{labels} {value}{at}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_no_use_of_the_cpu() {
        assert!((busy_seconds("cpu  100 50 50 9000 800 0 100 0 40 0\ncpu0 1") - 3.0).abs() < 1e-9);
        assert!(busy_seconds("").abs() < 1e-9);
    }

    #[test]
    fn families_have_their_head_once() {
        let mut text = Text::default();
        text.family("a", "help", "gauge", vec![("x=\"1\"".into(), 1.5, Some(7)), (String::new(), 2.0, None)]);
        text.family("b", "help", "gauge", Vec::new());
        assert_eq!(text.0, "# HELP a help\n# TYPE a gauge\na{x=\"1\"} 1.5 7\na 2\n");
    }
}
