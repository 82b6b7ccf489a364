//! A component's metrics: a registry that is handed in, and Prometheus' text form of it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::version;

pub use prometheus_client;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A registry that several subsystems share. A counter may be registered under upstream's whole name or without its
/// `_total`, which the encoder adds if it is missing.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        Metrics::default()
    }

    /// Lets a subsystem register what it measures.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock())
    }

    /// Everything in Prometheus' text format 0.0.4, with the figures of this process.
    #[must_use]
    pub fn text(&self) -> String {
        let mut open_metrics = String::new();
        // Writing to a String cannot fail; a failing encoder of ours would show as missing lines, not as a panic.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut open_metrics, &self.0.lock()) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        let mut text = to_text_format(&open_metrics);
        text.push_str(&build_info());
        text.push_str(&process_metrics());
        text
    }
}

/// OpenMetrics names a counter's family without `_total` and ends with `# EOF`; the older format does neither.
fn to_text_format(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    // The name that the encoder made of a counter whose own name ends in `_total` already.
    let mut doubled: Option<String> = None;
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            doubled = (kind == "counter" && name.ends_with("_total")).then(|| format!("{name}_total"));
            let suffix = if kind == "counter" && doubled.is_none() { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, text)) = help.take().and_then(|h| h.split_once(' ')) {
                push_line(&mut out, format_args!("# HELP {name}{suffix} {text}"));
            }
            push_line(&mut out, format_args!("# TYPE {name}{suffix} {kind}"));
            continue;
        }
        match doubled.as_deref().and_then(|name| line.strip_prefix(name).map(|rest| (name, rest))) {
            Some((name, rest)) => push_line(&mut out, format_args!("{}{rest}", &name[..name.len() - "_total".len()])),
            None => push_line(&mut out, format_args!("{line}")),
        }
    }
    out
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

/// Which release this is, as upstream's programs say it of themselves.
fn build_info() -> String {
    const NAME: &str = "kubernetes_build_info";
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    let labels = [
        ("build_date", ""),
        ("compiler", "rustc"),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("git_version", version::GIT_VERSION),
        ("go_version", ""),
        ("major", version::MAJOR),
        ("minor", version::MINOR),
        ("platform", platform),
    ];
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let help = "A metric with a constant '1' value, labelled by what this program is.";
    format!("# HELP {NAME} {help}\n# TYPE {NAME} gauge\n{NAME}{{{}}} 1\n", labels.join(","))
}

/// The usual figures of a process, read from /proc when they are asked for.
fn process_metrics() -> String {
    let mut out = String::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(field))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    };
    let mut gauge = |name: &str, kind: &str, help: &str, value: f64| {
        push_line(&mut out, format_args!("# HELP {name} {help}"));
        push_line(&mut out, format_args!("# TYPE {name} {kind}"));
        push_line(&mut out, format_args!("{name} {value}"));
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory fit a float well enough for a gauge")]
    if let (Some(resident), Some(virtual_)) = (kib("VmRSS:"), kib("VmSize:")) {
        gauge("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", (resident * 1024) as f64);
        gauge("process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", (virtual_ * 1024) as f64);
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields after the command's name, which stands in parentheses: the 12th and 13th are user and system time in ticks,
    // the 20th the start after boot; a tick is 10 ms on every Linux that we run on.
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, f)| f.split(' ').map(|f| f.parse().unwrap_or_default()).collect())
        .unwrap_or_default();
    if let (Some(user), Some(system), Some(start)) = (fields.get(11), fields.get(12), fields.get(19)) {
        gauge("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", (user + system) / 100.0);
        if let Some(booted) = boot_time() {
            gauge(
                "process_start_time_seconds",
                "gauge",
                "Start of the process since 1970 in seconds.",
                booted + start / 100.0,
            );
        }
    }
    let open = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a count of files fits a float")]
    gauge("process_open_fds", "gauge", "Number of open file descriptors.", open as f64);
    out
}

fn boot_time() -> Option<f64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = uptime.split(' ').next()?.parse().ok()?;
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64() - up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn the_text_has_upstreams_names() {
        let metrics = Metrics::new();
        let requests: Counter = Counter::default();
        metrics.register(|r| {
            r.register("apiserver_request", "Requests", requests.clone());
            r.register("workqueue_depth", "Depth", Gauge::<i64>::default());
            r.register("scheduler_schedule_attempts_total", "Attempts", requests.clone());
        });
        requests.inc();
        let text = metrics.text();
        assert!(text.contains("# TYPE apiserver_request_total counter\napiserver_request_total 1\n"), "{text}");
        assert!(text.contains("attempts_total counter\nscheduler_schedule_attempts_total 1\n"), "{text}");
        assert!(text.contains("# TYPE workqueue_depth gauge\nworkqueue_depth 0\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        assert!(!text.contains("# EOF"));
    }
}
