//! From the API's words about a pod to the CRI's: sandbox and container configurations. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext, VolumeMount,
};

use super::sysctls;
use crate::plugins::device_plugin::{ContainerAllocateResponse, DeviceSpec};
use crate::swap::{self, Swap};
use crate::volumes::{Source, Volumes};
use crate::{cgroups, env, labels};

/// What the configurations depend on besides the pod.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub log_root: PathBuf,
    pub cgroup_root: Option<String>,
    pub node_memory: i64,
    pub swap: Swap,
    pub node_name: String,
    pub seccomp_default: bool,
    pub cluster_domain: String,
    pub dns: cri::DnsConfig,
}

/// `<namespace>_<name>_<uid>` below the log root, as upstream lays logs out.
pub(crate) fn log_dir(root: &Path, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    root.join(format!("{}_{}_{}", part(&meta.namespace), part(&meta.name), part(&meta.uid)))
}

fn namespace_options(pod: &Pod) -> cri::NamespaceOption {
    let spec = pod.spec.as_ref();
    let on = |field: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(field) == Some(true);
    let (pod_mode, container, node) =
        (cri::NamespaceMode::Pod as i32, cri::NamespaceMode::Container as i32, cri::NamespaceMode::Node as i32);
    let pid = match (on(|s| s.host_pid), on(|s| s.share_process_namespace)) {
        (true, _) => node,
        (_, true) => pod_mode,
        _ => container,
    };
    cri::NamespaceOption {
        network: if on(|s| s.host_network) { node } else { pod_mode },
        ipc: if on(|s| s.host_ipc) { node } else { pod_mode },
        pid,
        ..Default::default()
    }
}

pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network) == Some(true)
}

/// The name that the pod's containers see as their host's.
pub(crate) fn hostname(pod: &Pod, node_name: &str) -> String {
    if is_host_network(pod) {
        return node_name.to_owned();
    }
    let given = pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = given.or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    // A host name has at most 63 characters, and upstream leaves none of `-.` at its end.
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The kernel's host name of the pod: with its domain where the pod asks for that. Linux takes 64 characters.
fn kernel_hostname(pod: &Pod, host: &Host) -> Result<String, String> {
    if is_host_network(pod) {
        return Ok(String::new());
    }
    let name = hostname(pod, &host.node_name);
    let Some(spec) = pod.spec.as_ref() else { return Ok(name) };
    if let Some(given) = spec.hostname_override.clone().filter(|h| !h.is_empty()) {
        return Ok(given);
    }
    let Some(domain) = domain_of(pod, &host.cluster_domain).filter(|_| spec.set_hostname_as_fqdn == Some(true)) else {
        return Ok(name);
    };
    let full = format!("{name}.{domain}");
    if full.len() > 64 {
        let (long, pod) = (full.len(), pod.metadata.name.as_deref().unwrap_or_default());
        return Err(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {long} characters requested) for pod {pod}"
        ));
    }
    Ok(full)
}

/// The domain below which the pod has its name: only pods with a subdomain have one.
fn domain_of(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let sub = pod.spec.as_ref()?.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{sub}.{namespace}.svc.{cluster_domain}"))
}

pub(crate) fn sandbox(pod: &Pod, attempt: u32, host: &Host) -> Result<cri::PodSandboxConfig, String> {
    let meta = &pod.metadata;
    let context = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let privileged = pod
        .spec
        .iter()
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
        .any(|c| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    let port_mappings = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
    let port_mappings =
        port_mappings.filter(|p| p.host_port.unwrap_or_default() > 0 && !is_host_network(pod)).map(|p| {
            let protocol = match p.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            };
            cri::PortMapping {
                protocol: protocol as i32,
                container_port: p.container_port,
                host_port: p.host_port.unwrap_or_default(),
                host_ip: p.host_ip.clone().unwrap_or_default(),
            }
        });
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            attempt,
        }),
        hostname: kernel_hostname(pod, host)?,
        log_directory: log_dir(&host.log_root, pod).to_string_lossy().into_owned(),
        dns_config: Some(host.dns.clone()),
        port_mappings: port_mappings.collect(),
        labels: labels::of_pod(pod),
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: host.cgroup_root.as_ref().map(|root| cgroups::pod_cgroup(pod, root)).unwrap_or_default(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespace_options(pod)),
                run_as_user: context.run_as_user.map(|value| cri::Int64Value { value }),
                run_as_group: context.run_as_user.and(context.run_as_group).map(|value| cri::Int64Value { value }),
                supplemental_groups: groups(&context),
                supplemental_groups_policy: groups_policy(&context),
                privileged,
                seccomp: Some(seccomp(context.seccomp_profile.as_ref(), true)),
                ..Default::default()
            }),
            sysctls: context.sysctls.iter().flatten().map(|s| (sysctls::dotted(&s.name), s.value.clone())).collect(),
            ..Default::default()
        }),
        windows: None,
    })
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

/// Whether the groups that the image's user has there count too (KEP-3619).
fn groups_policy(context: &PodSecurityContext) -> i32 {
    let policy = match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    };
    policy as i32
}

fn apparmor(profile: &AppArmorProfile) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match profile.type_.as_str() {
        "Localhost" => ProfileType::Localhost,
        "Unconfined" => ProfileType::Unconfined,
        _ => ProfileType::RuntimeDefault,
    };
    let name = profile.localhost_profile.clone().unwrap_or_default();
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: name }
}

fn seccomp(profile: Option<&SeccompProfile>, default_runtime: bool) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        Some("Localhost") => ProfileType::Localhost,
        Some(_) => ProfileType::Unconfined,
        None if default_runtime => ProfileType::RuntimeDefault,
        None => ProfileType::Unconfined,
    };
    let file = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: file }
}

/// What a container configuration is made of.
pub(crate) struct Made<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image_ref: &'a str,
    pub env: Vec<(String, String)>,
    pub volumes: &'a Volumes,
    /// The managed `/etc/hosts`.
    pub hosts_file: PathBuf,
    /// The file on the host that takes the termination message.
    pub termination_file: PathBuf,
    /// The container whose processes an ephemeral container sees.
    pub target_id: Option<String>,
    /// By volume mount: where on the host its subPath is mounted.
    pub sub_paths: &'a BTreeMap<String, PathBuf>,
    /// What its device plugins want it to have.
    pub devices: &'a ContainerAllocateResponse,
    /// What its claims give it, by the names of the Container Device Interface.
    pub cdi_devices: Vec<String>,
    /// The CPUs that it may run on; empty: all.
    pub cpus: String,
    /// The NUMA nodes that it has memory of; empty: all.
    pub memory_nodes: String,
    /// Whether its runtime can make mounts below a mount read-only too.
    pub recursive_read_only: bool,
    pub host: &'a Host,
}

pub(crate) fn container(m: &Made<'_>) -> Result<cri::ContainerConfig, String> {
    let c = m.container;
    let vars: BTreeMap<&str, &str> = m.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expand = |words: Option<&Vec<String>>| -> Vec<String> {
        words.into_iter().flatten().map(|w| env::expand(w, |name| vars.get(name).copied())).collect()
    };
    let path = c.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let mut annotations = HashMap::new();
    annotations.insert(labels::HASH.to_owned(), labels::hash_of(c));
    annotations.insert(labels::RESTART_COUNT.to_owned(), m.attempt.to_string());
    annotations.insert(labels::TERMINATION_PATH.to_owned(), path.to_owned());
    let policy = c.termination_message_policy.as_deref().unwrap_or("File");
    annotations.insert(labels::TERMINATION_POLICY.to_owned(), policy.to_owned());
    let grace = m.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    annotations.insert(labels::GRACE_PERIOD.to_owned(), grace.to_string());
    annotations.extend(m.devices.annotations.clone());

    let (limits, burstable) = cgroups::limits_of(c.resources.as_ref(), m.host.node_memory);
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: limits.cpu_shares,
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period,
        memory_limit_in_bytes: limits.memory_bytes,
        oom_score_adj: cgroups::oom_score_adj(m.pod, burstable),
        cpuset_cpus: m.cpus.clone(),
        cpuset_mems: m.memory_nodes.clone(),
        hugepage_limits: hugepage_limits(c),
        ..Default::default()
    };
    swap::limit(&mut resources, m.pod, c, m.host.swap, m.host.node_memory);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: c.name.clone(), attempt: m.attempt }),
        image: Some(cri::ImageSpec {
            image: m.image_ref.to_owned(),
            user_specified_image: c.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(c.command.as_ref()),
        args: expand(c.args.as_ref()),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: m.env.iter().map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: mounts(m, path)?,
        devices: devices(m)?,
        cdi_devices: m.cdi_devices.iter().map(|name| cri::CdiDevice { name: name.clone() }).collect(),
        labels: labels::of_container(m.pod, c),
        annotations,
        log_path: format!("{}/{}.log", c.name, m.attempt),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig { resources: Some(resources), security_context: Some(security(m)) }),
        ..Default::default()
    })
}

fn mounts(m: &Made<'_>, termination_path: &str) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    for mount in m.container.volume_mounts.iter().flatten() {
        let volume = m.volumes.get(&mount.name).ok_or_else(|| format!("volume \"{}\" is not mounted", mount.name))?;
        let sub_path = m.sub_paths.get(&mount.mount_path);
        let mut made = volume_mount(mount, volume, sub_path, is_read_only(m.pod, &mount.name))?;
        made.recursive_read_only = recursive_read_only(mount, m.recursive_read_only)?;
        mounts.push(made);
    }
    mounts.extend(m.devices.mounts.iter().map(|mount| cri::Mount {
        readonly: mount.read_only,
        ..plain_mount(&mount.container_path, Path::new(&mount.host_path))
    }));
    let taken = |path: &str| m.container.volume_mounts.iter().flatten().any(|v| v.mount_path == path);
    if !taken("/etc/hosts") {
        mounts.push(plain_mount("/etc/hosts", &m.hosts_file));
    }
    if !taken(termination_path) {
        mounts.push(plain_mount(termination_path, &m.termination_file));
    }
    Ok(mounts)
}

/// `sub_path` is where the part of the volume lies that the mount asks for, if it asks for one.
fn volume_mount(
    mount: &VolumeMount,
    volume: &Source,
    sub_path: Option<&PathBuf>,
    read_only: bool,
) -> Result<cri::Mount, String> {
    let has_sub_path =
        [&mount.sub_path, &mount.sub_path_expr].iter().any(|p| p.as_deref().is_some_and(|p| !p.is_empty()));
    let path = match volume {
        Source::Image(_) if has_sub_path => {
            // The CRI version spoken here cannot name a part of an image.
            return Err(format!("subPath of image volume \"{}\" is not supported on this node", mount.name));
        }
        Source::Image(id) => {
            return Ok(cri::Mount {
                container_path: mount.mount_path.clone(),
                image: Some(cri::ImageSpec { image: id.clone(), ..Default::default() }),
                readonly: true,
                ..Default::default()
            });
        }
        Source::Device(_) => return Err(format!("volume \"{}\" is a device and cannot be mounted", mount.name)),
        Source::Path(_) if has_sub_path => {
            sub_path.ok_or_else(|| format!("subPath of {} is not prepared", mount.mount_path))?
        }
        Source::Path(path) => path,
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    Ok(cri::Mount {
        readonly: mount.read_only == Some(true) || read_only,
        propagation: propagation as i32,
        ..plain_mount(&mount.mount_path, path)
    })
}

pub(crate) fn wants_recursive_read_only(mount: &VolumeMount) -> bool {
    mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled")
}

/// Whether what is mounted below is read-only too (KEP-3857), where the mount asks for it and the runtime can do it.
fn recursive_read_only(mount: &VolumeMount, is_supported: bool) -> Result<bool, String> {
    let name = &mount.name;
    if !wants_recursive_read_only(mount) {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return Err(format!("volume {name:?} requested recursive read-only mode, but it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|p| *p != "None") {
        return Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation {propagation:?}"
        ));
    }
    match mount.recursive_read_only.as_deref() {
        Some("IfPossible") => Ok(is_supported),
        Some("Enabled") if is_supported => Ok(true),
        Some("Enabled") => {
            Err(format!("volume {name:?} requested recursive read-only mode, but it is not supported by the runtime"))
        }
        other => Err(format!("unknown recursive read-only mode {:?}", other.unwrap_or_default())),
    }
}

/// Whether the volume itself is for reading only, whatever its mounts say.
fn is_read_only(pod: &Pod, volume: &str) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.find(|v| v.name == volume).is_some_and(|v| {
        let claim = v.persistent_volume_claim.as_ref().and_then(|c| c.read_only);
        claim.or_else(|| v.csi.as_ref().and_then(|c| c.read_only)) == Some(true)
    })
}

/// Bytes of huge pages, by their size as the kernel names it: `2MB`.
fn hugepage_limits(container: &Container) -> Vec<cri::HugepageLimit> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let sizes = limits.into_iter().flatten().filter_map(|(name, amount)| {
        let page_size = name.strip_prefix("hugepages-")?.replace('i', "B");
        let limit = u64::try_from(cgroups::whole(amount)?).ok()?;
        Some(cri::HugepageLimit { page_size, limit })
    });
    sizes.collect()
}

/// What device plugins give, and the volumes that are devices.
fn devices(m: &Made<'_>) -> Result<Vec<cri::Device>, String> {
    let mut all: Vec<cri::Device> = m.devices.devices.iter().map(device).collect();
    for wanted in m.container.volume_devices.iter().flatten() {
        let Some(Source::Device(path)) = m.volumes.get(&wanted.name) else {
            return Err(format!("volume \"{}\" is not there as a device", wanted.name));
        };
        let permissions = if is_read_only(m.pod, &wanted.name) { "r" } else { "mrw" };
        all.push(cri::Device {
            container_path: wanted.device_path.clone(),
            host_path: path.to_string_lossy().into_owned(),
            permissions: permissions.to_owned(),
        });
    }
    Ok(all)
}

fn device(device: &DeviceSpec) -> cri::Device {
    cri::Device {
        container_path: device.container_path.clone(),
        host_path: device.host_path.clone(),
        permissions: device.permissions.clone(),
    }
}

fn plain_mount(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// Paths of /proc and /sys that a container does not see, and those that it cannot write, unless `procMount` says so.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn security(m: &Made<'_>) -> cri::LinuxContainerSecurityContext {
    let (pod, container) = (m.pod, m.container);
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own: SecurityContext = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(ToString::to_string).collect() };
    let capabilities = own.capabilities.clone().map(|c| cri::Capability {
        add_capabilities: c.add.unwrap_or_default(),
        drop_capabilities: c.drop.unwrap_or_default(),
        ..Default::default()
    });
    let profile = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    cri::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(match &m.target_id {
            Some(id) => cri::NamespaceOption {
                pid: cri::NamespaceMode::Target as i32,
                target_id: id.clone(),
                ..namespace_options(pod)
            },
            None => namespace_options(pod),
        }),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_group: group.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        supplemental_groups_policy: groups_policy(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(seccomp(profile, m.host.seccomp_default)),
        apparmor: own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref()).map(apparmor),
        ..Default::default()
    }
}

/// The managed hosts file, worded as upstream's: the host's own with the pod's aliases for a pod on the host's network.
pub(crate) fn hosts_file(pod: &Pod, ips: &[String], domain: &str, node_name: &str, of_host: &str) -> String {
    if is_host_network(pod) {
        return format!("# Kubernetes-managed hosts file (host network).\n{of_host}") + &aliases(pod);
    }
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod, node_name);
    let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for ip in ips {
        match subdomain {
            Some(sub) => text.push_str(&format!("{ip}\t{host}.{sub}.{namespace}.svc.{domain}\t{host}\n")),
            None => text.push_str(&format!("{ip}\t{host}\n")),
        }
    }
    text + &aliases(pod)
}

fn aliases(pod: &Pod) -> String {
    let aliases: Vec<_> = pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten()).collect();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_the_part_of_the_volume_that_it_asks_for() {
        let check = |volume: Source, sub_path: Option<&str>, want: Result<&str, &str>| {
            let mount =
                VolumeMount { name: "v".into(), sub_path: sub_path.map(str::to_owned), ..VolumeMount::default() };
            let got = volume_mount(&mount, &volume, Some(&"/bound".into()), false);
            let got = got.map(|m| m.image.map_or(m.host_path, |image| image.image));
            assert_eq!(got.as_deref().map_err(String::as_str), want, "{volume:?} {sub_path:?}");
        };
        let (path, image) = (|| Source::Path("/whole".into()), || Source::Image("sha256:1".into()));
        check(path(), None, Ok("/whole"));
        check(path(), Some("a"), Ok("/bound"));
        check(image(), None, Ok("sha256:1"));
        check(image(), Some("a"), Err("subPath of image volume \"v\" is not supported on this node"));
    }

    #[test]
    fn mounts_below_a_mount_are_read_only_too_where_that_can_be() {
        let check = |mode: Option<&str>, read_only: bool, is_supported: bool, want: Result<bool, &str>| {
            let mount = VolumeMount {
                name: "v".into(),
                read_only: Some(read_only),
                recursive_read_only: mode.map(str::to_owned),
                ..VolumeMount::default()
            };
            let got = recursive_read_only(&mount, is_supported);
            let got = got.map_err(|e| e.rsplit("but it is ").next().unwrap_or_default().to_owned());
            assert_eq!(got, want.map_err(str::to_owned), "{mode:?} {read_only} {is_supported}");
        };
        check(None, true, true, Ok(false));
        check(Some("Disabled"), true, true, Ok(false));
        check(Some("IfPossible"), true, false, Ok(false));
        check(Some("IfPossible"), true, true, Ok(true));
        check(Some("Enabled"), true, true, Ok(true));
        check(Some("Enabled"), true, false, Err("not supported by the runtime"));
        check(Some("Enabled"), false, true, Err("not read-only"));
    }

    #[test]
    fn huge_pages_are_limited_by_their_size() {
        let container = serde_json::json!({"name": "c", "resources": {"limits":
            {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "memory": "1Gi"}}});
        let limits = hugepage_limits(&serde_json::from_value(container).unwrap());
        let limits: Vec<_> = limits.iter().map(|l| (l.page_size.as_str(), l.limit)).collect();
        assert_eq!(limits, [("1GB", 1 << 30), ("2MB", 4 << 20)]);
    }
}
