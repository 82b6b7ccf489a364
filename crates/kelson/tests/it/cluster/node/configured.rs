//! What a KubeletConfiguration file makes of a node, and how it defends itself against its pods.

use serde_json::json;

use testing::wait::last_within;

use super::super::OneNode;
use super::super::host::Host;
use super::{LONG, Walk, apply, exec, field, once, phase, pod, said_by, sh, with};

const RUN: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cpuManagerPolicy: static
reservedSystemCPUs: '0'
podPidsLimit: 40
allowedUnsafeSysctls: ['kernel.msg*']
containerLogMaxSize: 20Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 1s
evictionHard: {nodefs.available: 60Mi}
evictionPressureTransitionPeriod: 5s
";

fn cpus(host: &Host, walk: &mut Walk) {
    let whole = json!({ "cpu": "1", "memory": "32Mi" });
    let alone = with(sh("c", RUN), json!({ "resources": { "requests": whole, "limits": whole } }));
    let allowed = |name: &str| exec(host, name, "/bin/busybox grep Cpus_allowed_list /proc/self/status");
    apply(host, &[pod("shares", json!({ "containers": [sh("c", RUN)] }))]);
    phase(host, "shares", &["Running"]);
    walk.equals("CPU manager: everybody shares what nobody has alone", &allowed("shares"), "Cpus_allowed_list:\t0-1\n");
    apply(host, &[pod("alone", json!({ "containers": [alone] }))]);
    phase(host, "alone", &["Running"]);
    walk.equals("CPU manager: a whole CPU is one container's alone", &allowed("alone"), "Cpus_allowed_list:\t1\n");
    let seen = last_within(LONG, || allowed("shares"), |s| s.ends_with("\t0\n"));
    walk.equals("CPU manager: the others move to what is left", &seen, "Cpus_allowed_list:\t0\n");
    host.kubectl_ok(&["delete", "pod", "alone", "--timeout=60s"], "");
    let seen = last_within(LONG, || allowed("shares"), |s| s.ends_with("\t0-1\n"));
    walk.equals("CPU manager: and get it back", &seen, "Cpus_allowed_list:\t0-1\n");
    host.kubectl_ok(&["delete", "pod", "shares", "--timeout=60s"], "");
}

fn limits(host: &Host, walk: &mut Walk) {
    let forks = "i=0; while [ $i -lt 100 ]; do sleep 3 & i=$((i+1)); done; wait; echo unlimited";
    let sysctls = json!({ "sysctls": [{ "name": "kernel.msgmax", "value": "9000" }] });
    apply(
        host,
        &[
            once("forks", json!({ "containers": [sh("c", forks)] })),
            once(
                "tuned",
                json!({ "securityContext": sysctls, "containers": [sh("c", "cat /proc/sys/kernel/msgmax")] }),
            ),
        ],
    );
    let seen = said_by(host, "forks");
    walk.contains("A pod that forks without end stops at its limit", &seen, "can't fork");
    walk.contains("A parameter that the node allows can be set", &said_by(host, "tuned"), "\n9000\n");
}

fn logs(host: &Host, walk: &mut Walk) {
    let floods = "i=0; while [ $i -lt 2000 ]; do echo line $i of a flood that goes on and on; i=$((i+1)); done; echo end; sleep 1000";
    apply(host, &[pod("floods", json!({ "containers": [sh("c", floods)] }))]);
    phase(host, "floods", &["Running"]);
    let uid = field(host, "pod/floods", ".metadata.uid");
    let dir = host.dir.join(format!("logs/pods/default_floods_{uid}/c"));
    let names = || {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(" ")
    };
    let seen = last_within(LONG, names, |seen| seen.contains("0.log.2"));
    walk.contains("A log that floods is rotated", &seen, "0.log.2");
    let all = || host.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/logs/", host.name)], "").out;
    walk.contains("The node's own logs are shown", &all(), "<pre>");
    host.kubectl_ok(&["delete", "pod", "floods", "--timeout=60s"], "");
}

fn full_disk(host: &Host, walk: &mut Walk) {
    let fills = format!("/bin/busybox dd if=/dev/zero of=/scratch/big bs=1M count=160 2>/dev/null; {RUN}");
    let scratch = json!([{ "name": "scratch", "emptyDir": {} }]);
    let container = with(sh("c", &fills), json!({ "volumeMounts": [{ "name": "scratch", "mountPath": "/scratch" }] }));
    apply(
        host,
        &[
            pod("modest", json!({ "containers": [sh("c", RUN)] })),
            pod("greedy", json!({ "containers": [container], "volumes": scratch })),
        ],
    );
    phase(host, "modest", &["Running"]);
    walk.equals("Eviction: the pod that fills the disk goes", &phase(host, "greedy", &["Failed"]), "Failed");
    walk.equals("Eviction: its status says so", &field(host, "pod/greedy", ".status.reason"), "Evicted");
    let message = field(host, "pod/greedy", ".status.message");
    walk.contains(
        "Eviction: and why",
        &message,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 60Mi",
    );
    let disruption = field(host, "pod/greedy", ".status.conditions[?(@.type=='DisruptionTarget')].reason");
    walk.equals("Eviction: controllers can tell it from a failure", &disruption, "TerminationByKubelet");
    let pressure =
        || field(host, &format!("node/{}", host.name), ".status.conditions[?(@.type=='DiskPressure')].status");
    walk.equals("Eviction: the node tells of the pressure", &last_within(LONG, pressure, |s| s == "True"), "True");
    walk.equals("Eviction: and that it is over", &last_within(LONG, pressure, |s| s == "False"), "False");
    walk.equals("Eviction: the others run on", &field(host, "pod/modest", ".status.phase"), "Running");
    host.kubectl_ok(&["delete", "pods", "--all", "--timeout=60s"], "");
}

#[test]
fn a_node_is_what_its_configuration_says() {
    let cluster = OneNode::prepared(|host| {
        let file = host.dir.with_extension("yaml");
        std::fs::write(&file, CONFIG).unwrap();
        // A small disk of its own for what pods write.
        let disk = host.dir.join("kubelet");
        std::fs::create_dir_all(&disk).unwrap();
        nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=200M"))
            .unwrap();
        vec![format!("--kubelet-config={}", file.display())]
    });
    let host = &cluster.host;
    let mut walk = Walk::default();
    cpus(host, &mut walk);
    limits(host, &mut walk);
    logs(host, &mut walk);
    full_disk(host, &mut walk);
    walk.end(host);
}
