//! The parts of `KubeletConfiguration` that watch over the node's resources: reservations, eviction, clean-up, logs.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::cpus::{self, CpuPolicy};
use crate::memory::MemoryPolicy;
use crate::resources::{Amounts, Threshold};
use crate::shutdown::Shutdown;
use crate::swap::SwapBehavior;
use crate::topology::{Policy, Scope, TopologyPolicy};

#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    pub(crate) hard: BTreeMap<String, Threshold>,
    pub(crate) soft: BTreeMap<String, (Threshold, Duration)>,
    pub(crate) minimum_reclaim: BTreeMap<String, Threshold>,
    /// How long pressure must be over before its condition goes.
    pub(crate) transition: Duration,
    /// The longest grace period, in seconds, of a pod that a soft threshold evicts.
    pub(crate) max_grace: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ImageGc {
    /// Shares of the disk, in percent: clean-up begins above the first and ends below the second.
    pub(crate) high: u64,
    pub(crate) low: u64,
    pub(crate) min_age: Duration,
    /// Unused images older than this go whatever the disk says; zero: none do.
    pub(crate) max_age: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Logs {
    pub(crate) max_size: u64,
    pub(crate) max_files: usize,
    pub(crate) interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub eviction: Eviction,
    pub image_gc: ImageGc,
    pub logs: Logs,
    pub shutdown: Shutdown,
    pub kube_reserved: Amounts,
    pub system_reserved: Amounts,
    pub seccomp_default: bool,
    pub pod_pids_limit: i64,
    pub provider_id: String,
    pub max_images: usize,
    pub file_check_frequency: Duration,
    pub http_check_frequency: Duration,
    pub cpu_policy: CpuPolicy,
    pub memory_policy: MemoryPolicy,
    pub topology_policy: TopologyPolicy,
    pub swap: SwapBehavior,
}

impl Default for Eviction {
    fn default() -> Self {
        Eviction {
            hard: defaults(),
            soft: BTreeMap::new(),
            minimum_reclaim: BTreeMap::new(),
            transition: Duration::from_secs(300),
            max_grace: 0,
        }
    }
}

impl Eviction {
    /// For a node that shares its disk with other work: shares of a disk that is full of other things would drive away
    /// every pod, so that only what pods need to go on is guarded.
    #[must_use]
    pub fn on_a_shared_disk(self) -> Self {
        let gibibyte = || Threshold::Amount(1 << 30);
        let hard = BTreeMap::from([
            ("memory.available".to_owned(), Threshold::Amount(100 << 20)),
            ("nodefs.available".to_owned(), gibibyte()),
            ("imagefs.available".to_owned(), gibibyte()),
        ]);
        Eviction { hard, ..self }
    }
}

impl Default for ImageGc {
    fn default() -> Self {
        ImageGc { high: 85, low: 80, min_age: Duration::from_secs(120), max_age: Duration::ZERO }
    }
}

impl Default for Logs {
    fn default() -> Self {
        Logs { max_size: 10 << 20, max_files: 5, interval: Duration::from_secs(10) }
    }
}

/// Upstream's hard thresholds, which a list in the file replaces as a whole.
fn defaults() -> BTreeMap<String, Threshold> {
    BTreeMap::from([
        ("memory.available".to_owned(), Threshold::Amount(100 << 20)),
        ("nodefs.available".to_owned(), Threshold::Share(0.10)),
        ("nodefs.inodesFree".to_owned(), Threshold::Share(0.05)),
        ("imagefs.available".to_owned(), Threshold::Share(0.15)),
        ("imagefs.inodesFree".to_owned(), Threshold::Share(0.05)),
    ])
}

/// What is read here of the file.
pub(crate) const FIELDS: &[&str] = &[
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "containerLogMonitorInterval",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "fileCheckFrequency",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "kubeReserved",
    "memoryManagerPolicy",
    "memorySwap",
    "mergeDefaultEvictionSettings",
    "nodeStatusMaxImages",
    "podPidsLimit",
    "providerID",
    "reservedMemory",
    "reservedSystemCPUs",
    "seccompDefault",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "systemReserved",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
];

type Fields = BTreeMap<String, Value>;

fn map(fields: &Fields, name: &str) -> BTreeMap<String, String> {
    let entries = fields.get(name).and_then(Value::as_object).into_iter().flatten();
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    entries.map(|(k, v)| (k.clone(), text(v))).collect()
}

fn thresholds(fields: &Fields, name: &str) -> Result<Option<BTreeMap<String, Threshold>>, String> {
    if !fields.contains_key(name) {
        return Ok(None);
    }
    let parse = |(signal, text): (String, String)| match Threshold::parse(&text) {
        Some(threshold) => Ok((signal, threshold)),
        None => Err(format!("{name}: invalid eviction threshold {signal}={text}")),
    };
    map(fields, name).into_iter().map(parse).collect::<Result<_, _>>().map(Some)
}

fn duration(fields: &Fields, name: &str, default: Duration) -> Result<Duration, String> {
    match fields.get(name).and_then(Value::as_str) {
        None => Ok(default),
        Some(text) => component_base::flags::go_duration(text).map_err(|e| format!("{name}: {e}")),
    }
}

fn number(fields: &Fields, name: &str, default: i64) -> i64 {
    fields.get(name).and_then(Value::as_i64).unwrap_or(default)
}

fn amounts(fields: &Fields, name: &str) -> Result<Amounts, String> {
    let parse = |(resource, text): (String, String)| match crate::cgroups::milli(&Quantity(text.clone())) {
        Some(amount) if amount >= 0 => Ok((resource, amount)),
        _ => Err(format!("{name}: invalid quantity {text:?} of {resource}")),
    };
    map(fields, name).into_iter().map(parse).collect()
}

/// The static policy keeps CPUs for the system: those that are named, or as many as are reserved by amount.
fn cpu_policy(fields: &Fields) -> Result<CpuPolicy, String> {
    let is_static = match fields.get("cpuManagerPolicy").and_then(Value::as_str).unwrap_or("none") {
        "none" | "" => false,
        "static" => true,
        other => return Err(format!("cpuManagerPolicy: unknown policy: {other:?}")),
    };
    let named = fields.get("reservedSystemCPUs").and_then(Value::as_str).unwrap_or_default();
    let mut reserved =
        cpus::parse(named).ok_or_else(|| format!("reservedSystemCPUs: unable to parse {named:?} as a set of CPUs"))?;
    if reserved.is_empty() {
        let lists = [amounts(fields, "kubeReserved")?, amounts(fields, "systemReserved")?];
        let milli: i64 = lists.iter().filter_map(|list| list.get("cpu")).sum();
        reserved = (0..usize::try_from((milli + 999) / 1000).unwrap_or_default()).collect();
    }
    if is_static && reserved.is_empty() {
        let why = "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero";
        return Err(format!("cpuManagerPolicy: {why}"));
    }
    let options = map(fields, "cpuManagerPolicyOptions");
    if let Some((name, _)) = options.iter().find(|(_, value)| *value != "false") {
        return Err(format!("cpuManagerPolicyOptions: {name} is not supported"));
    }
    let default = CpuPolicy::default().reconcile_period;
    let reconcile_period = duration(fields, "cpuManagerReconcilePeriod", default)?.max(Duration::from_secs(1));
    Ok(CpuPolicy { is_static, reserved, reconcile_period })
}

fn shutdown(fields: &Fields) -> Result<Shutdown, String> {
    let whole = |name: &str| {
        let time = duration(fields, name, Duration::ZERO)?;
        let shown = component_base::flags::show_go_duration(time);
        match time.is_zero() || time >= Duration::from_secs(1) {
            true => Ok((time, shown)),
            false => Err(format!("invalid configuration: {name} {shown} must be either zero or otherwise >= 1 sec")),
        }
    };
    let (total, shown) = whole("shutdownGracePeriod")?;
    let (critical, of_critical) = whole("shutdownGracePeriodCriticalPods")?;
    if critical > total {
        return Err(format!(
            "invalid configuration: shutdownGracePeriodCriticalPods {of_critical} must be <= shutdownGracePeriod {shown}"
        ));
    }
    let list = fields.get("shutdownGracePeriodByPodPriority").and_then(Value::as_array).cloned().unwrap_or_default();
    if list.is_empty() {
        return Ok(Shutdown::of(total, critical));
    }
    if !total.is_zero() {
        return Err("invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time".to_owned());
    }
    let mut periods = Vec::new();
    for item in list {
        let priority = item["priority"].as_i64().unwrap_or_default().try_into();
        let seconds = item["shutdownGracePeriodSeconds"].as_u64();
        let (Ok(priority), Some(seconds)) = (priority, seconds) else {
            return Err(format!("shutdownGracePeriodByPodPriority: invalid entry {item}"));
        };
        periods.push((priority, Duration::from_secs(seconds)));
    }
    periods.sort_unstable();
    Ok(Shutdown { periods })
}

/// The static policy keeps memory for the system on the nodes that are named.
fn memory_policy(fields: &Fields) -> Result<MemoryPolicy, String> {
    let is_static = match fields.get("memoryManagerPolicy").and_then(Value::as_str).unwrap_or("None") {
        "None" | "" => false,
        "Static" => true,
        other => return Err(format!("memoryManagerPolicy: unknown policy: {other:?}")),
    };
    let mut reserved: BTreeMap<usize, BTreeMap<String, u64>> = BTreeMap::new();
    for item in fields.get("reservedMemory").and_then(Value::as_array).into_iter().flatten() {
        let node = item["numaNode"].as_u64().and_then(|n| usize::try_from(n).ok());
        let node = node.ok_or_else(|| format!("reservedMemory: invalid NUMA node {}", item["numaNode"]))?;
        for (kind, text) in item["limits"].as_object().into_iter().flatten() {
            let size = crate::cgroups::whole(&Quantity(text.as_str().unwrap_or_default().to_owned()));
            let size = size.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
            let size = size.ok_or_else(|| format!("reservedMemory: invalid quantity {text} of {kind}"))?;
            if reserved.entry(node).or_default().insert(kind.clone(), size).is_some() {
                return Err(format!("reservedMemory: duplicate entries for NUMA node {node} and resource {kind}"));
            }
        }
    }
    Ok(MemoryPolicy { is_static, reserved })
}

fn topology_policy(fields: &Fields) -> Result<TopologyPolicy, String> {
    let word = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut policy = TopologyPolicy::default();
    let name = word("topologyManagerPolicy");
    if !name.is_empty() {
        policy.policy =
            Policy::parse(&name).ok_or_else(|| format!("topologyManagerPolicy: unknown policy: {name:?}"))?;
    }
    policy.scope = match word("topologyManagerScope").as_str() {
        "" | "container" => Scope::Container,
        "pod" => Scope::Pod,
        other => return Err(format!("topologyManagerScope: unknown scope: {other:?}")),
    };
    for (name, value) in map(fields, "topologyManagerPolicyOptions") {
        let invalid = || format!("topologyManagerPolicyOptions: bad value for option {name:?}: {value:?}");
        match name.as_str() {
            "prefer-closest-numa-nodes" => policy.prefers_closest = value.parse().map_err(|_| invalid())?,
            "max-allowable-numa-nodes" => {
                let count: usize = value.parse().map_err(|_| invalid())?;
                policy.max_nodes = Some(count).filter(|n| (8..=16).contains(n)).ok_or_else(invalid)?;
            }
            _ => return Err(format!("topologyManagerPolicyOptions: unsupported option: {name:?}")),
        }
    }
    Ok(policy)
}

/// Reads the fields that this module knows and leaves the others.
pub(crate) fn of(fields: &BTreeMap<String, Value>) -> Result<Settings, String> {
    let eviction = Eviction::default();
    let (gc, logs) = (ImageGc::default(), Logs::default());
    let graces = map(fields, "evictionSoftGracePeriod");
    let mut soft = BTreeMap::new();
    for (signal, threshold) in thresholds(fields, "evictionSoft")?.unwrap_or_default() {
        let grace = graces
            .get(&signal)
            .ok_or_else(|| format!("grace period must be specified for the soft eviction threshold {signal}"))?;
        let grace = component_base::flags::go_duration(grace).map_err(|e| format!("evictionSoftGracePeriod: {e}"))?;
        soft.insert(signal, (threshold, grace));
    }
    let mut hard = thresholds(fields, "evictionHard")?.unwrap_or_else(defaults);
    if fields.get("mergeDefaultEvictionSettings").and_then(Value::as_bool) == Some(true) {
        for (signal, threshold) in defaults() {
            hard.entry(signal).or_insert(threshold);
        }
    }
    let cpu_policy = cpu_policy(fields)?;
    let (mut kube_reserved, mut system_reserved) =
        (amounts(fields, "kubeReserved")?, amounts(fields, "systemReserved")?);
    if fields.contains_key("reservedSystemCPUs") {
        // The CPUs that are named stand for all that would be reserved by amount.
        kube_reserved.remove("cpu");
        let count = i64::try_from(cpu_policy.reserved.len()).unwrap_or_default();
        system_reserved.insert("cpu".to_owned(), count * 1000);
    }
    let percent = |name: &str, default: u64| {
        u64::try_from(number(fields, name, i64::try_from(default).unwrap_or(100))).unwrap_or(default).min(100)
    };
    let size = match fields.get("containerLogMaxSize").and_then(Value::as_str) {
        None => logs.max_size,
        Some(text) => crate::cgroups::whole(&Quantity(text.to_owned()))
            .and_then(|b| u64::try_from(b).ok())
            .ok_or_else(|| format!("containerLogMaxSize: invalid quantity {text:?}"))?,
    };
    Ok(Settings {
        eviction: Eviction {
            hard,
            soft,
            minimum_reclaim: thresholds(fields, "evictionMinimumReclaim")?.unwrap_or_default(),
            transition: duration(fields, "evictionPressureTransitionPeriod", eviction.transition)?,
            max_grace: number(fields, "evictionMaxPodGracePeriod", 0),
        },
        image_gc: ImageGc {
            high: percent("imageGCHighThresholdPercent", gc.high),
            low: percent("imageGCLowThresholdPercent", gc.low),
            min_age: duration(fields, "imageMinimumGCAge", gc.min_age)?,
            max_age: duration(fields, "imageMaximumGCAge", gc.max_age)?,
        },
        logs: Logs {
            max_size: size,
            max_files: usize::try_from(number(fields, "containerLogMaxFiles", 5)).unwrap_or(logs.max_files).max(2),
            interval: duration(fields, "containerLogMonitorInterval", logs.interval)?,
        },
        shutdown: shutdown(fields)?,
        kube_reserved,
        system_reserved,
        seccomp_default: fields.get("seccompDefault").and_then(Value::as_bool) == Some(true),
        pod_pids_limit: number(fields, "podPidsLimit", -1),
        provider_id: fields.get("providerID").and_then(Value::as_str).unwrap_or_default().to_owned(),
        max_images: usize::try_from(number(fields, "nodeStatusMaxImages", 50)).unwrap_or(usize::MAX),
        file_check_frequency: duration(fields, "fileCheckFrequency", Duration::from_secs(20))?,
        cpu_policy,
        memory_policy: memory_policy(fields)?,
        topology_policy: topology_policy(fields)?,
        swap: match fields.get("memorySwap").and_then(|m| m["swapBehavior"].as_str()).unwrap_or_default() {
            "" | "NoSwap" => SwapBehavior::NoSwap,
            "LimitedSwap" => SwapBehavior::LimitedSwap,
            other => return Err(format!("memorySwap.swapBehavior: invalid value {other:?}")),
        },
        http_check_frequency: duration(fields, "httpCheckFrequency", Duration::from_secs(20))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: Value) -> Result<Settings, String> {
        of(&serde_json::from_value(file).unwrap())
    }

    #[test]
    fn thresholds_of_the_file_replace_the_defaults() {
        let got = read(serde_json::json!({"evictionHard": {"memory.available": "5%"},
            "evictionSoft": {"memory.available": "1Gi"}, "evictionSoftGracePeriod": {"memory.available": "1m30s"},
            "kubeReserved": {"cpu": "250m"}, "containerLogMaxSize": "1Mi"}))
        .unwrap();
        assert_eq!(got.eviction.hard, BTreeMap::from([("memory.available".to_owned(), Threshold::Share(0.05))]));
        assert_eq!(got.eviction.soft["memory.available"], (Threshold::Amount(1 << 30), Duration::from_secs(90)));
        assert_eq!((got.kube_reserved["cpu"], got.logs.max_size), (250, 1 << 20));
        assert_eq!(read(serde_json::json!({})).unwrap().eviction.hard.len(), 5);
        let merged = serde_json::json!({"evictionHard": {"pid.available": "10"}, "mergeDefaultEvictionSettings": true});
        assert_eq!(read(merged).unwrap().eviction.hard.len(), 6);
    }

    #[test]
    fn cpus_are_kept_for_the_system_by_name_or_by_amount() {
        let check = |file: Value, want: &str| {
            let policy = read(file).unwrap().cpu_policy;
            assert_eq!(cpus::show(&policy.reserved), want);
        };
        check(serde_json::json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "1,3"}), "1,3");
        check(serde_json::json!({"cpuManagerPolicy": "static", "kubeReserved": {"cpu": "1200m"}}), "0-1");
    }

    #[test]
    fn a_shutdown_gives_pods_time_by_their_priority() {
        let list = serde_json::json!([{"priority": 1000, "shutdownGracePeriodSeconds": 10},
            {"priority": 0, "shutdownGracePeriodSeconds": 5}]);
        let got = read(serde_json::json!({"shutdownGracePeriodByPodPriority": list})).unwrap().shutdown;
        assert_eq!(got.periods, [(0, Duration::from_secs(5)), (1000, Duration::from_secs(10))]);
    }

    #[test]
    fn resources_are_aligned_as_the_file_says() {
        let got = read(serde_json::json!({"topologyManagerPolicy": "single-numa-node", "topologyManagerScope": "pod",
            "topologyManagerPolicyOptions": {"prefer-closest-numa-nodes": "true"}, "memoryManagerPolicy": "Static",
            "reservedMemory": [{"numaNode": 1, "limits": {"memory": "1Gi"}}]}))
        .unwrap();
        let TopologyPolicy { policy, scope, prefers_closest, max_nodes } = got.topology_policy;
        assert_eq!((policy, scope, prefers_closest, max_nodes), (Policy::SingleNumaNode, Scope::Pod, true, 8));
        assert_eq!(got.memory_policy.reserved, [(1, [("memory".to_owned(), 1 << 30)].into())].into());
        assert!(got.memory_policy.is_static);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let check = |file: Value, part: &str| assert!(read(file).unwrap_err().contains(part), "{part}");
        check(serde_json::json!({"evictionHard": {"memory.available": "x"}}), "memory.available=x");
        check(serde_json::json!({"evictionSoft": {"memory.available": "1Gi"}}), "grace period must be specified");
        check(serde_json::json!({"kubeReserved": {"cpu": "-1"}}), "cpu");
        check(serde_json::json!({"cpuManagerPolicy": "static"}), "to be greater than zero");
        check(serde_json::json!({"cpuManagerPolicy": "dynamic"}), "unknown policy");
        check(serde_json::json!({"topologyManagerPolicy": "strict"}), "unknown policy");
        check(
            serde_json::json!({"shutdownGracePeriod": "10s", "shutdownGracePeriodCriticalPods": "20s"}),
            "must be <=",
        );
        check(serde_json::json!({"shutdownGracePeriod": "10ms"}), ">= 1 sec");
        let list = serde_json::json!([{"priority": 0, "shutdownGracePeriodSeconds": 5}]);
        let both = serde_json::json!({"shutdownGracePeriod": "10s", "shutdownGracePeriodByPodPriority": list});
        check(both, "Cannot specify both");
        check(serde_json::json!({"topologyManagerScope": "node"}), "unknown scope");
        let options = serde_json::json!({"max-allowable-numa-nodes": "3"});
        check(serde_json::json!({"topologyManagerPolicyOptions": options}), "bad value");
        let twice = serde_json::json!([{"numaNode": 0, "limits": {"memory": "1Gi"}},
            {"numaNode": 0, "limits": {"memory": "2Gi"}}]);
        check(serde_json::json!({"reservedMemory": twice}), "duplicate entries");
        let options = serde_json::json!({"full-pcpus-only": "true", "strict-cpu-reservation": "false"});
        check(serde_json::json!({"cpuManagerPolicyOptions": options}), "full-pcpus-only is not supported");
        check(serde_json::json!({"memorySwap": {"swapBehavior": "UnlimitedSwap"}}), "UnlimitedSwap");
    }
}
