//! How pods live: hooks, probes, restarts, changes while they run, and their end.

use std::time::Duration;

use serde_json::{Value, json};

use testing::wait::last_within;

use super::super::OneNode;
use super::super::host::Host;
use super::{LONG, Walk, apply, events_of, exec, field, fields, once, phase, pod, said_by, sh, with};

/// Runs until it is stopped, and stops at once.
const RUN: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

fn runs(host: &Host, name: &str) {
    let seen = phase(host, name, &["Running"]);
    assert_eq!(seen, "Running", "{name}\n{}", host.log());
}

fn is_ready(host: &Host, name: &str) -> String {
    field(host, &format!("pod/{name}"), ".status.conditions[?(@.type=='Ready')].status")
}

fn restarts(host: &Host, name: &str) -> String {
    field(host, &format!("pod/{name}"), ".status.containerStatuses[0].restartCount")
}

/// A container that ends so that all of its pod run again, the first time that it runs.
fn all_restart(host: &Host, walk: &mut Walk) {
    let rule = json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }]);
    let mounts = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let once_42 = format!("test -e /v/again && {{ {RUN}; }}; touch /v/again; sleep 1; exit 42");
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [with(sh("init", "echo init >> /v/order"), mounts.clone())],
        "containers": [
            with(with(sh("source", &once_42), mounts.clone()), json!({ "restartPolicy": "Never", "restartPolicyRules": rule })),
            with(sh("other", &format!("echo other >> /v/order; {RUN}")), mounts),
        ],
        "volumes": [{ "name": "v", "emptyDir": {} }],
    });
    apply(host, &[pod("all-restart", spec)]);
    let counts = || {
        let each = ["initContainerStatuses[0]", "containerStatuses[0]", "containerStatuses[1]"];
        let paths = each.map(|c| format!(".status.{c}.restartCount"));
        fields(host, "pod/all-restart", &paths.each_ref().map(String::as_str))
    };
    walk.equals("RestartAllContainers restarts every container", &last_within(LONG, counts, |c| c == "1 1 1"), "1 1 1");
    let wanted = "init other init other\n";
    let order = || exec(host, "all-restart", "cat /v/order | /bin/busybox xargs");
    let order = last_within(LONG, order, |order| order == wanted);
    walk.equals("RestartAllContainers keeps volumes and begins with the init containers", &order, wanted);
    let path = ".status.conditions[?(@.type=='AllContainersRestarting')].status";
    walk.equals("RestartAllContainers is told in a condition", &field(host, "pod/all-restart", path), "False");
    let last =
        field(host, "pod/all-restart", ".status.containerStatuses[?(@.name=='source')].lastState.terminated.exitCode");
    walk.equals("RestartAllContainers keeps what ended", &last, "42");
}

fn init_containers(host: &Host, walk: &mut Walk) {
    let order =
        |script: &str| json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }], "command": ["sh", "-c", script] });
    let step = |name: &str, script: &str| with(sh(name, ""), order(script));
    let volumes = json!([{ "name": "v", "emptyDir": {} }]);
    let good = json!({
        "initContainers": [
            step("one", "echo one >> /v/order"),
            with(step("side", "echo side >> /v/order; while :; do sleep 0.2; done"), json!({ "restartPolicy": "Always" })),
            step("two", "echo two >> /v/order"),
        ],
        "containers": [step("app", &format!("echo app >> /v/order; {RUN}"))],
        "volumes": volumes,
    });
    apply(
        host,
        &[
            pod("in-order", good),
            once("init-fails", json!({ "initContainers": [sh("bad", "exit 1")], "containers": [sh("app", "true")] })),
            pod(
                "init-fails-again",
                json!({ "initContainers": [sh("bad", "exit 1"), sh("next", "true")], "containers": [sh("app", "true")] }),
            ),
        ],
    );
    runs(host, "in-order");
    let order =
        last_within(LONG, || exec(host, "in-order", "cat /v/order | /bin/busybox xargs"), |o| o.contains("app"));
    walk.equals(
        "InitContainer should invoke init containers on a RestartAlways pod, sidecars with them",
        &order,
        "one side two app\n",
    );
    let end = phase(host, "init-fails", &["Failed", "Succeeded"]);
    walk.equals("InitContainer should not start app containers and fail the pod on a RestartNever pod", &end, "Failed");
    let started = field(host, "pod/init-fails", ".status.containerStatuses[0].state.waiting.reason");
    walk.equals("The app container of a pod whose init container failed waits", &started, "PodInitializing");
    let path = ".status.initContainerStatuses[0].restartCount";
    let count =
        last_within(LONG, || field(host, "pod/init-fails-again", path), |n| n.parse::<u32>().is_ok_and(|n| n >= 2));
    walk.check(
        "InitContainer failures are tried again on a RestartAlways pod",
        count.parse::<u32>().is_ok_and(|n| n >= 2),
        &count,
    );
    let seen = fields(
        host,
        "pod/init-fails-again",
        &[".status.phase", ".status.initContainerStatuses[1].state.waiting.reason"],
    );
    walk.equals(
        "InitContainer should not start app containers if init containers fail on a RestartAlways pod",
        &seen,
        "Pending PodInitializing",
    );
}

fn hooks(host: &Host, walk: &mut Walk) {
    let pages = "cd /tmp; for p in started-http started-exec stopped-http stopped-exec; do echo ok > $p; done; \
                 exec /bin/busybox httpd -f -vv -p 8080 -h /tmp";
    apply(host, &[pod("listener", json!({ "containers": [sh("c", pages)] }))]);
    runs(host, "listener");
    let ip = field(host, "pod/listener", ".status.podIP");
    let get = |path: &str| json!({ "httpGet": { "host": ip, "port": 8080, "path": path } });
    let run = |path: &str| json!({ "exec": { "command": ["wget", "-qO-", format!("http://{ip}:8080{path}")] } });
    let hooked = |name: &str, hook: Value| {
        pod(
            name,
            json!({ "terminationGracePeriodSeconds": 20, "containers": [with(sh("c", RUN), json!({ "lifecycle": hook }))] }),
        )
    };
    let sleeps = json!({ "preStop": { "sleep": { "seconds": 1 } }, "postStart": { "exec": { "command": ["false"] } } });
    apply(
        host,
        &[
            hooked("started-http", json!({ "postStart": get("/started-http") })),
            hooked("started-exec", json!({ "postStart": run("/started-exec") })),
            hooked("stopped-http", json!({ "preStop": get("/stopped-http") })),
            hooked("stopped-exec", json!({ "preStop": run("/stopped-exec") })),
            hooked("broken", sleeps),
        ],
    );
    let heard = || host.kubectl(&["logs", "listener"], "").out;
    for (name, what) in [
        ("started-http", "poststart http"),
        ("started-exec", "poststart exec"),
        ("stopped-http", "prestop http"),
        ("stopped-exec", "prestop exec"),
    ] {
        runs(host, name);
        host.kubectl_ok(&["delete", "pod", name, "--timeout=60s"], "");
        let seen = last_within(Duration::from_secs(5), heard, |text| text.contains(name));
        walk.contains(&format!("Container Lifecycle Hook should execute {what} hook properly"), &seen, name);
    }
    let events = || events_of(host, "broken");
    let seen = last_within(LONG, events, |text| text.contains("FailedPostStartHook"));
    walk.contains("A postStart hook that fails is told", &seen, "FailedPostStartHook");
}

fn probe(kind: &str, how: Value, more: Value) -> Value {
    json!({ kind: with(with(json!({ "periodSeconds": 1, "failureThreshold": 1 }), how), more) })
}

fn probed_pods() -> Vec<Value> {
    let web = |more: Value| with(json!({ "name": "c", "image": super::IMAGE, "imagePullPolicy": "Never" }), more);
    let exec = |words: [&str; 2]| json!({ "exec": { "command": words } });
    let get = |path: &str| json!({ "httpGet": { "path": path, "port": 8080 } });
    let tcp = json!({ "tcpSocket": { "port": 8080 } });
    let dies = with(
        sh("c", &format!("echo > /tmp/health; sleep 2; /bin/busybox rm /tmp/health; {RUN}")),
        probe("livenessProbe", exec(["cat", "/tmp/health"]), json!({})),
    );
    let lives = with(
        sh("c", &format!("echo > /tmp/health; {RUN}")),
        probe("livenessProbe", exec(["cat", "/tmp/health"]), json!({})),
    );
    let slow = with(
        sh("c", &format!("sleep 3; echo > /tmp/up; {RUN}")),
        with(
            probe("startupProbe", exec(["cat", "/tmp/up"]), json!({ "failureThreshold": 60 })),
            probe("livenessProbe", exec(["cat", "/tmp/up"]), json!({})),
        ),
    );
    [
        ("dies", dies),
        ("lives", lives),
        ("starts-slowly", slow),
        ("http-lives", web(probe("livenessProbe", get("/"), json!({})))),
        ("http-dies", web(probe("livenessProbe", get("/none"), json!({ "initialDelaySeconds": 1 })))),
        ("tcp-lives", web(probe("livenessProbe", tcp, json!({})))),
        ("ready-later", web(probe("readinessProbe", get("/"), json!({ "initialDelaySeconds": 6 })))),
        ("never-ready", web(probe("readinessProbe", exec(["false", ""]), json!({})))),
    ]
    .map(|(name, container)| pod(name, json!({ "containers": [container] })))
    .into()
}

fn probes(host: &Host, walk: &mut Walk) {
    apply(host, &probed_pods());
    for (name, behaviour) in [
        ("dies", "Probing container should be restarted with a exec \"cat /tmp/health\" liveness probe"),
        ("http-dies", "Probing container should be restarted with a /healthz http liveness probe"),
    ] {
        let count = last_within(LONG, || restarts(host, name), |n| n != "0" && !n.is_empty());
        walk.check(behaviour, count != "0" && !count.is_empty(), &count);
    }
    let started = ".status.containerStatuses[0].state.running.startedAt";
    let became = ".status.conditions[?(@.type=='Ready')].lastTransitionTime";
    let ready = last_within(LONG, || is_ready(host, "ready-later"), |r| r == "True");
    walk.equals("A pod with a readiness probe becomes ready", &ready, "True");
    let times = fields(host, "pod/ready-later", &[started, became]);
    let times: Vec<jiff::Timestamp> = times.split(' ').filter_map(|t| t.parse().ok()).collect();
    let after = if let [started, ready] = times[..] { ready.as_second() - started.as_second() } else { -1 };
    walk.check("Probing container with readiness probe should not be ready before initial delay", after >= 5, &after);
    // By now each of these was asked several times.
    for (name, behaviour) in [
        ("lives", "Probing container should *not* be restarted with a exec \"cat /tmp/health\" liveness probe"),
        ("http-lives", "Probing container should *not* be restarted with a /healthz http liveness probe"),
        ("tcp-lives", "Probing container should *not* be restarted with a tcp:8080 liveness probe"),
        ("starts-slowly", "A startup probe holds the liveness probe back"),
        ("ready-later", "Probing container with readiness probe should never restart"),
        ("never-ready", "Probing container with readiness probe that fails should never restart"),
    ] {
        walk.equals(behaviour, &restarts(host, name), "0");
    }
    walk.equals(
        "Probing container with readiness probe that fails should never be ready",
        &is_ready(host, "never-ready"),
        "False",
    );
}

fn ends(host: &Host, walk: &mut Walk) {
    let message = |name: &str, script: &str, policy: &str| {
        let policy = json!({ "terminationMessagePolicy": policy, "terminationMessagePath": "/dev/message" });
        once(name, json!({ "containers": [with(sh("c", script), policy)] }))
    };
    apply(
        host,
        &[
            message("tells", "echo -n DONE > /dev/message", "File"),
            message("logs-its-end", "echo -n wrong; exit 3", "FallbackToLogsOnError"),
            message("ends-well", "echo -n right", "FallbackToLogsOnError"),
        ],
    );
    let end = |name: &str| {
        phase(host, name, &["Succeeded", "Failed"]);
        let state = ".status.containerStatuses[0].state.terminated";
        ["exitCode", "reason", "message"]
            .map(|f| field(host, &format!("pod/{name}"), &format!("{state}.{f}")))
            .join(" ")
    };
    walk.equals(
        "Container Runtime should report termination message if TerminationMessagePath is set",
        &end("tells"),
        "0 Completed DONE",
    );
    walk.equals(
        "Container Runtime should report termination message from log output if it fails",
        &end("logs-its-end"),
        "3 Error wrong",
    );
    walk.equals(
        "Container Runtime should report termination message as empty when pod succeeds",
        &end("ends-well"),
        "0 Completed ",
    );
    let said = said_by(host, "logs-its-end");
    walk.contains("Kubelet should print the output to logs", &said, "wrong");
}

fn ephemeral_containers(host: &Host, walk: &mut Walk) {
    apply(host, &[pod("debugged", json!({ "containers": [sh("c", RUN)] }))]);
    runs(host, "debugged");
    let add = |names: &[&str]| {
        let all: Vec<Value> = names
            .iter()
            .map(|name| with(sh(name, "echo polo; sleep 1000"), json!({ "targetContainerName": "c" })))
            .collect();
        let patch = json!({ "spec": { "ephemeralContainers": all } }).to_string();
        host.kubectl_ok(
            &["patch", "pod", "debugged", "--subresource=ephemeralcontainers", "--type=strategic", "-p", &patch],
            "",
        );
    };
    let logs = |name: &str| {
        last_within(LONG, || host.kubectl(&["logs", "debugged", "-c", name], "").out, |out| out == "polo\n")
    };
    add(&["first"]);
    walk.equals("Ephemeral Containers will start an ephemeral container in an existing pod", &logs("first"), "polo\n");
    add(&["first", "second"]);
    walk.equals(
        "Ephemeral Containers should update the ephemeral containers in an existing pod",
        &logs("second"),
        "polo\n",
    );
    let names = field(host, "pod/debugged", ".status.ephemeralContainerStatuses[*].name");
    walk.equals("Both ephemeral containers are told of", &names, "first second");
}

fn changes(host: &Host, walk: &mut Walk) {
    let map = |name: &str, value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "key": value } });
    let secret = |name: &str, value: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": { "key": value } });
    let source = |kind: &str, name: &str| json!({ "name": name, kind: with(json!({ "optional": true }), if kind == "secret" { json!({ "secretName": name }) } else { json!({ "name": name }) }) });
    let labels = json!({ "name": "info", "downwardAPI": { "items": [
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } }] } });
    let projected = json!({ "name": "all", "projected": { "sources": [
        { "secret": { "name": "updated-secret", "optional": true } },
        { "configMap": { "name": "created", "optional": true, "items": [{ "key": "key", "path": "made" }] } }] } });
    let names = ["updated", "created", "deleted", "updated-secret", "info", "all"];
    let mounts: Vec<Value> = names.iter().map(|n| json!({ "name": n, "mountPath": format!("/v/{n}") })).collect();
    apply(
        host,
        &[
            map("updated", "before"),
            map("deleted", "before"),
            secret("updated-secret", "before"),
            pod(
                "sees-changes",
                json!({
                    "containers": [with(sh("c", RUN), json!({ "volumeMounts": mounts }))],
                    "volumes": [source("configMap", "updated"), source("configMap", "created"), source("configMap", "deleted"),
                        source("secret", "updated-secret"), labels, projected],
                }),
            ),
        ],
    );
    runs(host, "sees-changes");
    walk.equals(
        "ConfigMap is there before it is updated",
        &exec(host, "sees-changes", "cat /v/updated/key /v/deleted/key"),
        "beforebefore",
    );
    apply(host, &[map("updated", "after"), map("created", "new"), secret("updated-secret", "after")]);
    host.kubectl_ok(&["delete", "configmap", "deleted"], "");
    host.kubectl_ok(&["label", "pod", "sees-changes", "colour=blue"], "");
    host.kubectl_ok(&["annotate", "pod", "sees-changes", "builder=bar"], "");
    for (behaviour, script, wanted) in [
        ("Downward API volume should update labels on modification", "cat /v/info/labels", "colour=\"blue\""),
        ("Downward API volume should update annotations on modification", "cat /v/info/annotations", "builder=\"bar\""),
        ("ConfigMap updates should be reflected in volume", "cat /v/updated/key", "after"),
        ("ConfigMap optional updates should be reflected in volume: created", "cat /v/created/key", "new"),
        (
            "ConfigMap optional updates should be reflected in volume: deleted",
            "ls /v/deleted | /bin/busybox wc -l",
            "0",
        ),
        ("Secrets optional updates should be reflected in volume", "cat /v/updated-secret/key", "after"),
        ("Projected secret optional updates should be reflected in volume", "cat /v/all/key", "after"),
        ("Projected configMap optional updates should be reflected in volume", "cat /v/all/made", "new"),
    ] {
        let seen = last_within(LONG, || exec(host, "sees-changes", script), |seen| seen.contains(wanted));
        walk.contains(behaviour, &seen, wanted);
    }
}

fn mended_sub_path(host: &Host, walk: &mut Walk) {
    let env =
        json!([{ "name": "WHERE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.annotations['where']" } } }]);
    let container = with(
        sh("c", RUN),
        json!({ "env": env, "volumeMounts": [{ "name": "v", "mountPath": "/v", "subPathExpr": "$(WHERE)" }] }),
    );
    let mut mended = pod("mended", json!({ "containers": [container], "volumes": [{ "name": "v", "emptyDir": {} }] }));
    mended["metadata"]["annotations"] = json!({ "where": "/absolute" });
    apply(host, &[mended]);
    let reason = ".status.containerStatuses[0].state.waiting.reason";
    let seen = last_within(LONG, || field(host, "pod/mended", reason), |r| r == "CreateContainerConfigError");
    walk.equals("A subPath that is absolute keeps the container waiting", &seen, "CreateContainerConfigError");
    host.kubectl_ok(&["annotate", "pod", "mended", "--overwrite", "where=below"], "");
    let seen = phase(host, "mended", &["Running"]);
    walk.equals("Variable Expansion should verify that a failing subpath expansion can be modified during the lifecycle of a container", &seen, "Running");
}

fn resizes(host: &Host, walk: &mut Walk) {
    let of = |cpu: &str, memory: &str| json!({ "cpu": cpu, "memory": memory });
    let sized = |name: &str, cpu: &str, memory: &str| {
        with(sh(name, RUN), json!({ "resources": { "requests": of(cpu, memory), "limits": of(cpu, memory) } }))
    };
    apply(host, &[pod("resized", json!({ "containers": [sized("c1", "20m", "32Mi"), sized("c2", "20m", "48Mi")] }))]);
    runs(host, "resized");
    let to = json!({ "spec": { "containers": [
        { "name": "c1", "resources": { "requests": of("30m", "40Mi"), "limits": of("30m", "40Mi") } },
        { "name": "c2", "resources": { "requests": of("15m", "40Mi"), "limits": of("15m", "40Mi") } }] } });
    host.kubectl_ok(
        &["patch", "pod", "resized", "--subresource=resize", "--type=strategic", "-p", &to.to_string()],
        "",
    );
    let limits = ".status.containerStatuses[*].resources.limits";
    let (cpu, memory) = (format!("{limits}.cpu"), format!("{limits}.memory"));
    let paths = [cpu.as_str(), memory.as_str()];
    let seen = last_within(LONG, || fields(host, "pod/resized", &paths), |s| s == "30m 15m 40Mi 40Mi");
    walk.equals("Pod InPlace Resize: the status tells what containers have", &seen, "30m 15m 40Mi 40Mi");
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; \
                  cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || /bin/busybox cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    walk.equals("Pod InPlace Resize: a container's cgroup has it", &exec(host, "resized", script), "41943040\n3000\n");
    let conditions = field(host, "pod/resized", ".status.conditions[*].type");
    walk.check("Pod InPlace Resize: nothing is pending in the end", !conditions.contains("Resize"), &conditions);
    walk.equals("Pod InPlace Resize restarts nothing", &restarts(host, "resized"), "0");
    let seen = last_within(
        LONG,
        || fields(host, "pod/resized", &[".metadata.generation", ".status.observedGeneration"]),
        |s| s == "2 2",
    );
    walk.equals("Pod Generation: what was seen of the spec is told", &seen, "2 2");
}

fn handlers(host: &Host, walk: &mut Walk) {
    let class = |name: &str, handler: &str| json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": name }, "handler": handler });
    let classed =
        |name: &str, class: &str| pod(name, json!({ "runtimeClassName": class, "containers": [sh("c", RUN)] }));
    // crun takes no host whose cgroups are half v1 and half v2.
    let is_hybrid = std::path::Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
    apply(host, &[class("known", if is_hybrid { "runc" } else { "crun" }), class("unknown", "nobody-has-this")]);
    apply(host, &[classed("by-name", "known"), classed("by-nobody", "unknown")]);
    let seen = phase(host, "by-name", &["Running"]);
    walk.check(
        "RuntimeClass should run a Pod requesting a RuntimeClass with a configured handler",
        seen == "Running",
        &events_of(host, "by-name"),
    );
    let events = || events_of(host, "by-nobody");
    let seen = last_within(LONG, events, |text| text.contains("FailedCreatePodSandBox"));
    walk.contains(
        "RuntimeClass should reject a Pod requesting a RuntimeClass with an unconfigured handler",
        &seen,
        "nobody-has-this",
    );
    let unsafe_sysctl = json!({ "securityContext": { "sysctls": [{ "name": "kernel.msgmax", "value": "10000000000" }] }, "containers": [sh("c", "true")] });
    apply(host, &[once("unsafe", unsafe_sysctl)]);
    phase(host, "unsafe", &["Failed"]);
    walk.equals(
        "Sysctls should not launch unsafe, but not explicitly enabled sysctls on the node",
        &field(host, "pod/unsafe", ".status.reason"),
        "SysctlForbidden",
    );
}

/// A volume whose source comes late: the kubelet asks less and less often, and then it is there.
fn late_volumes(host: &Host, walk: &mut Walk) {
    let volumes = json!([{ "name": "late", "secret": { "secretName": "late" } }]);
    let container = with(sh("c", RUN), json!({ "volumeMounts": [{ "name": "late", "mountPath": "/late" }] }));
    apply(host, &[pod("waits-for-it", json!({ "containers": [container], "volumes": volumes }))]);
    let events = || events_of(host, "waits-for-it");
    let seen = last_within(LONG, events, |text| text.contains("FailedMount"));
    walk.contains(
        "A volume that cannot be mounted is told of",
        &seen,
        "MountVolume.SetUp failed for volume \"late\" : secret \"late\" not found",
    );
    apply(
        host,
        &[
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "late" }, "stringData": { "key": "x" } }),
        ],
    );
    walk.equals("A volume that comes late is mounted", &phase(host, "waits-for-it", &["Running"]), "Running");
}

#[test]
fn pods_live_as_they_are_told() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let mut walk = Walk::default();
    for part in [
        init_containers,
        all_restart,
        hooks,
        probes,
        ends,
        ephemeral_containers,
        changes,
        mended_sub_path,
        resizes,
        handlers,
        late_volumes,
    ] {
        part(host, &mut walk);
        host.kubectl_ok(&["delete", "pods", "--all", "--wait=false"], "");
    }
    host.until(&["get", "pods", "-o", "name"], str::is_empty);
    walk.equals("Pods should be submitted and removed", &host.kubectl_ok(&["get", "pods", "-o", "name"], ""), "");
    walk.end(host);
}
