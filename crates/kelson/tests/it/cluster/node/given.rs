//! What a pod is given: environment, arguments, files, volumes, identities. Each pod runs once and says what it sees.

use serde_json::{Value, json};

use super::super::OneNode;
use super::{IMAGE, Walk, apply, field, fields, once, said_by, sh, with};

/// A pod that runs once, and what it must say: behaviour and text.
struct Case {
    name: &'static str,
    spec: Value,
    says: Vec<(&'static str, String)>,
}

fn case(name: &'static str, spec: Value, says: &[(&'static str, &str)]) -> Case {
    Case { name, spec, says: says.iter().map(|(behaviour, text)| (*behaviour, (*text).to_owned())).collect() }
}

/// A volume, where it is mounted, and a script's line that shows a file of it: mode, owner's group, and content.
fn shown(path: &str) -> String {
    format!("echo {path}: $(/bin/busybox stat -L -c '%A %u:%g' {path}) $(cat {path})")
}

fn mounts(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(name, path)| json!({ "name": name, "mountPath": path })).collect()
}

fn maps() -> Vec<Value> {
    let map = |kind: &str, name: &str, more: Value| {
        with(json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } }), more)
    };
    vec![
        map(
            "ConfigMap",
            "settings",
            json!({ "data": { "colour": "green", "deep": "value" }, "binaryData": { "raw": "3q2+7w==" } }),
        ),
        map("Secret", "keys", json!({ "stringData": { "key": "opens", "other": "door" } })),
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "elsewhere" } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys", "namespace": "elsewhere" },
                "stringData": { "key": "another" } }),
    ]
}

fn from_env(allocatable_cpu: &str, host_ip: &str) -> Case {
    let env = |name: &str, from: Value| json!({ "name": name, "valueFrom": from });
    let of_field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let of_resource = |name: &str| json!({ "resourceFieldRef": { "resource": name } });
    let container = with(
        sh("c", ""),
        json!({
            // Without a shell, which would drop what is no name of a variable to it.
            "command": ["/bin/busybox", "env"],
            "envFrom": [
                { "configMapRef": { "name": "settings" } },
                { "prefix": "p-", "configMapRef": { "name": "settings" } },
                { "prefix": "2.", "configMapRef": { "name": "settings" } },
                { "prefix": "S_", "secretRef": { "name": "keys" } },
                { "configMapRef": { "name": "absent", "optional": true } },
            ],
            "env": [
                env("FROM_MAP", json!({ "configMapKeyRef": { "name": "settings", "key": "colour" } })),
                env("FROM_SECRET", json!({ "secretKeyRef": { "name": "keys", "key": "key" } })),
                env("NAME", of_field("metadata.name")),
                env("HOST_IP", of_field("status.hostIP")),
                env("HOST_IPS", of_field("status.hostIPs")),
                env("POD_IP", of_field("status.podIP")),
                env("CPU_LIMIT", of_resource("limits.cpu")),
                env("CPU_REQUEST", json!({ "resourceFieldRef": { "resource": "requests.cpu", "divisor": "1m" } })),
                env("MEMORY_LIMIT", of_resource("limits.memory")),
                { "name": "FIRST", "value": "one" },
                { "name": "SECOND", "value": "$(FIRST) and two" },
            ],
            "resources": { "requests": { "cpu": "15m", "memory": "8Mi" }, "limits": { "memory": "32Mi" } },
        }),
    );
    let texts = [
        ("ConfigMap should be consumable via the environment", "\ncolour=green\n".to_owned()),
        (
            "ConfigMap should be consumable as environment variable names with various prefixes",
            "\n2.colour=green\n".into(),
        ),
        ("ConfigMap prefixes may hold dashes", "\np-colour=green\n".into()),
        ("ConfigMap should be consumable via environment variable", "\nFROM_MAP=green\n".into()),
        ("Secrets should be consumable via the environment", "\nS_key=opens\n".into()),
        ("Secrets should be consumable from pods in env vars", "\nFROM_SECRET=opens\n".into()),
        ("Downward API should provide pod name as an env var", "\nNAME=environment\n".into()),
        ("Downward API should provide host IP as an env var", format!("\nHOST_IP={host_ip}\n")),
        ("Downward API should provide hostIPs as an env var", format!("\nHOST_IPS={host_ip}\n")),
        ("Downward API should provide pod IP as an env var", "\nPOD_IP=10.244.".into()),
        ("Downward API should provide container's requests.cpu as env vars", "\nCPU_REQUEST=15\n".into()),
        ("Downward API should provide container's limits.memory as env vars", "\nMEMORY_LIMIT=33554432\n".into()),
        (
            "Downward API should provide default limits.cpu from node allocatable",
            format!("\nCPU_LIMIT={allocatable_cpu}\n"),
        ),
        ("Variable Expansion should allow composing env vars into new env vars", "\nSECOND=one and two\n".into()),
        ("Services' variables are there", "\nKUBERNETES_SERVICE_HOST=10.96.0.1\n".into()),
    ];
    Case { name: "environment", spec: json!({ "containers": [container] }), says: texts.into() }
}

fn words() -> Vec<Case> {
    let hello = |more: Value| with(json!({ "name": "c", "image": IMAGE, "imagePullPolicy": "Never" }), more);
    let env = json!([{ "name": "WORD", "value": "heard" }]);
    vec![
        case(
            "command-expanded",
            json!({ "containers": [hello(json!({ "command": ["/bin/busybox", "echo", "$(WORD) $(NONE) $$(WORD)"], "env": env }))] }),
            &[(
                "Variable Expansion should allow substituting values in a container's command",
                "heard $(NONE) $(WORD)",
            )],
        ),
        case(
            "args-expanded",
            json!({ "containers": [hello(json!({ "command": ["/bin/busybox"], "args": ["echo", "$(WORD)"], "env": env }))] }),
            &[("Variable Expansion should allow substituting values in a container's args", "\nheard\n")],
        ),
        case(
            "args-alone",
            json!({ "containers": [hello(json!({ "args": ["/bin/busybox", "echo", "instead"] }))] }),
            &[("Containers should be able to override the image's default arguments (container cmd)", "\ninstead\n")],
        ),
    ]
}

fn config_map_volumes() -> Case {
    let items = json!([{ "key": "deep", "path": "path/to/deep", "mode": 0o400 }]);
    let map = |more: Value| json!({ "configMap": with(json!({ "name": "settings" }), more) });
    let volume = |name: &str, source: Value| with(json!({ "name": name }), source);
    let script = [
        shown("/plain/colour"),
        shown("/mode/colour"),
        shown("/items/path/to/deep"),
        "ls /items".into(),
        shown("/projected/colour"),
        shown("/projected/secret/key"),
        "cat /plain/raw | /bin/busybox hexdump -e '\"%x\"' ; echo".into(),
        "ls /optional | /bin/busybox wc -l".into(),
        "echo sub: $(cat /etc/colour)".into(),
    ];
    let projected = json!({ "projected": { "sources": [
        { "configMap": { "name": "settings", "items": [{ "key": "colour", "path": "colour" }] } },
        { "secret": { "name": "keys", "items": [{ "key": "key", "path": "secret/key", "mode": 0o440 }] } }] } });
    let container = with(
        sh("c", &script.join("\n")),
        json!({ "volumeMounts": [
            { "name": "plain", "mountPath": "/plain" }, { "name": "mode", "mountPath": "/mode" },
            { "name": "items", "mountPath": "/items" }, { "name": "projected", "mountPath": "/projected" },
            { "name": "optional", "mountPath": "/optional" },
            { "name": "plain", "mountPath": "/etc/colour", "subPath": "colour" },
        ] }),
    );
    let volumes = json!([
        volume("plain", map(json!({}))),
        volume("mode", map(json!({ "defaultMode": 0o400 }))),
        volume("items", map(json!({ "items": items }))),
        volume("projected", projected),
        volume("optional", json!({ "configMap": { "name": "absent", "optional": true } })),
    ]);
    case(
        "config-map-volumes",
        json!({ "containers": [container], "volumes": volumes }),
        &[
            ("ConfigMap should be consumable from pods in volume", "/plain/colour: -rw-r--r-- 0:0 green"),
            (
                "ConfigMap should be consumable from pods in volume with defaultMode set",
                "/mode/colour: -r-------- 0:0 green",
            ),
            ("ConfigMap should be consumable in multiple volumes in the same pod", "/mode/colour:"),
            (
                "ConfigMap should be consumable from pods in volume with mappings and Item mode set",
                "/items/path/to/deep: -r-------- 0:0 value",
            ),
            ("ConfigMap items leave the other keys out", "\npath\n"),
            ("ConfigMap binary data should be reflected in volume", "efbeadde"),
            ("Projected configMap should be consumable from pods in volume", "/projected/colour: -rw-r--r-- 0:0 green"),
            (
                "Projected secret should be consumable with mappings and Item Mode set",
                "/projected/secret/key: -r--r----- 0:0 opens",
            ),
            ("An optional ConfigMap that is not there gives an empty volume", "\n0\n"),
            (
                "Subpath Atomic writer volumes should support subpaths with configmap pod with mountPath of existing file",
                "sub: green",
            ),
        ],
    )
}

fn secret_volumes() -> Vec<Case> {
    let secret =
        |name: &str, more: Value| json!({ "name": name, "secret": with(json!({ "secretName": "keys" }), more) });
    let script = [shown("/a/key"), shown("/b/new/key"), "/bin/busybox mount | /bin/busybox grep ' /a '".into()];
    let root = json!({
        "containers": [with(sh("c", &script.join("\n")), json!({ "volumeMounts": mounts(&[("a", "/a"), ("b", "/b")]) }))],
        "volumes": [secret("a", json!({})), secret("b", json!({ "items": [{ "key": "key", "path": "new/key" }] }))],
    });
    let script =
        [shown("/a/key"), shown("/p/colour"), "echo to > /scratch/file".into(), shown("/scratch/file"), "id".into()];
    let user = json!({
        "securityContext": { "runAsUser": 1000, "fsGroup": 1001 },
        "containers": [with(sh("c", &script.join("\n")),
            json!({ "volumeMounts": mounts(&[("a", "/a"), ("p", "/p"), ("scratch", "/scratch")]) }))],
        "volumes": [
            secret("a", json!({ "defaultMode": 0o440 })),
            { "name": "p", "projected": { "sources": [{ "configMap": { "name": "settings" } }] } },
            { "name": "scratch", "emptyDir": {} },
        ],
    });
    vec![
        case(
            "secret-volumes",
            root,
            &[
                ("Secrets should be consumable from pods in volume", "/a/key: -rw-r--r-- 0:0 opens"),
                ("Secrets should be consumable from pods in volume with mappings", "/b/new/key: -rw-r--r-- 0:0 opens"),
                ("Secrets should be consumable in multiple volumes in a pod", "/b/new/key:"),
                (
                    "Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace",
                    "opens",
                ),
                ("Secrets lie in memory", "tmpfs on /a "),
            ],
        ),
        case(
            "as-a-user",
            user,
            &[
                (
                    "Secrets should be consumable from pods in volume as non-root with defaultMode and fsGroup set",
                    "/a/key: -r--r----- 0:1001 opens",
                ),
                (
                    "Projected configMap should be consumable from pods in volume as non-root",
                    "/p/colour: -rw-r--r-- 0:1001 green",
                ),
                ("New files on a volume belong to the fsGroup", "1000:1001 to"),
                ("The fsGroup is one of the user's groups", "groups=0,1001"),
            ],
        ),
    ]
}

fn downward_volumes(allocatable_cpu: &str, allocatable_memory: &str) -> Case {
    let of_field = |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
    let of = |path: &str, resource: &str, container: &str| json!({ "path": path, "resourceFieldRef": { "containerName": container, "resource": resource } });
    let items = json!([
        with(of_field("name", "metadata.name"), json!({ "mode": 0o400 })),
        of_field("labels", "metadata.labels"),
        of("cpu-limit", "limits.cpu", "c"),
        of("memory-limit", "limits.memory", "c"),
        with(
            json!({ "path": "cpu-request" }),
            json!({ "resourceFieldRef": { "containerName": "c", "resource": "requests.cpu", "divisor": "1m" } })
        ),
        of("memory-request", "requests.memory", "c"),
        of("default-cpu", "limits.cpu", "free"),
        of("default-memory", "limits.memory", "free"),
    ]);
    let files = [
        "name",
        "labels",
        "cpu-limit",
        "memory-limit",
        "cpu-request",
        "memory-request",
        "default-cpu",
        "default-memory",
    ];
    let script: Vec<String> = files.iter().map(|f| shown(&format!("/down/{f}"))).collect();
    let script = format!("{}\n{}\n{}", script.join("\n"), shown("/projected/name"), "echo sub: $(cat /one)");
    let container = with(
        sh("c", &script),
        json!({
            "resources": { "requests": { "cpu": "20m", "memory": "8Mi" }, "limits": { "cpu": "1", "memory": "32Mi" } },
            "volumeMounts": [
                { "name": "down", "mountPath": "/down" }, { "name": "projected", "mountPath": "/projected" },
                { "name": "down", "mountPath": "/one", "subPath": "name" }],
        }),
    );
    let projected = json!({ "name": "projected", "projected": { "defaultMode": 0o400, "sources": [
        { "downwardAPI": { "items": [of_field("name", "metadata.name")] } }] } });
    let texts = [
        ("Downward API volume should provide podname only", "/down/name: -r-------- 0:0 downward".to_owned()),
        ("Downward API volume should set mode on item file", "/down/name: -r--------".into()),
        ("Downward API volume should provide labels", "app=\"downward\"".into()),
        ("Downward API volume should provide container's cpu limit", "/down/cpu-limit: -rw-r--r-- 0:0 1\n".into()),
        (
            "Downward API volume should provide container's memory limit",
            "memory-limit: -rw-r--r-- 0:0 33554432\n".into(),
        ),
        ("Downward API volume should provide container's cpu request", "cpu-request: -rw-r--r-- 0:0 20\n".into()),
        (
            "Downward API volume should provide container's memory request",
            "memory-request: -rw-r--r-- 0:0 8388608\n".into(),
        ),
        (
            "Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set",
            format!("default-cpu: -rw-r--r-- 0:0 {allocatable_cpu}\n"),
        ),
        (
            "Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set",
            format!("default-memory: -rw-r--r-- 0:0 {allocatable_memory}\n"),
        ),
        ("Projected downwardAPI should set DefaultMode on files", "/projected/name: -r-------- 0:0 downward".into()),
        ("Subpath Atomic writer volumes should support subpaths with downward pod", "sub: downward".into()),
    ];
    let spec = json!({ "containers": [container, sh("free", "true")],
        "volumes": [{ "name": "down", "downwardAPI": { "items": items } }, projected] });
    Case { name: "downward", spec, says: texts.into() }
}

fn empty_dirs() -> Case {
    let script = |dir: &str| {
        format!(
            "{{ /bin/busybox mount | /bin/busybox grep -q \"tmpfs on {dir} \" && echo {dir} in memory; }}\n\
             echo {dir}: $(/bin/busybox stat -c %A {dir})\n\
             for m in 0644 0666 0777; do echo content > {dir}/$m-$(id -u); /bin/busybox chmod $m {dir}/$m-$(id -u); \
             echo $(id -u) {dir} $(/bin/busybox stat -c %A {dir}/$m-$(id -u)) $(cat {dir}/$m-$(id -u)); done"
        )
    };
    let script = format!("{}\n{}", script("/disk"), script("/memory"));
    let all = json!({ "volumeMounts": mounts(&[("disk", "/disk"), ("memory", "/memory")]) });
    let root = with(sh("root", &script), all.clone());
    let user = with(with(sh("user", &script), all), json!({ "securityContext": { "runAsUser": 1001 } }));
    let reader = with(
        sh("reader", "until cat /disk/0777-0 2>/dev/null; do sleep 0.1; done; echo shared"),
        json!({ "volumeMounts": mounts(&[("disk", "/disk")]) }),
    );
    case(
        "empty-dirs",
        json!({ "containers": [root, user, reader], "volumes": [
            { "name": "disk", "emptyDir": {} }, { "name": "memory", "emptyDir": { "medium": "Memory" } }] }),
        &[
            ("EmptyDir volumes volume on default medium should have the correct mode", "/disk: drwxrwxrwx"),
            ("EmptyDir volumes volume on tmpfs should have the correct mode", "/memory: drwxrwxrwx"),
            ("EmptyDir volumes with medium Memory are a tmpfs", "/memory in memory"),
            ("EmptyDir volumes should support (root,0644,default)", "0 /disk -rw-r--r-- content"),
            ("EmptyDir volumes should support (root,0666,default)", "0 /disk -rw-rw-rw- content"),
            ("EmptyDir volumes should support (root,0777,default)", "0 /disk -rwxrwxrwx content"),
            ("EmptyDir volumes should support (root,0644,tmpfs)", "0 /memory -rw-r--r-- content"),
            ("EmptyDir volumes should support (root,0666,tmpfs)", "0 /memory -rw-rw-rw- content"),
            ("EmptyDir volumes should support (root,0777,tmpfs)", "0 /memory -rwxrwxrwx content"),
            ("EmptyDir volumes should support (non-root,0644,default)", "1001 /disk -rw-r--r-- content"),
            ("EmptyDir volumes should support (non-root,0666,tmpfs)", "1001 /memory -rw-rw-rw- content"),
            ("EmptyDir volumes should support (non-root,0777,tmpfs)", "1001 /memory -rwxrwxrwx content"),
            ("EmptyDir volumes pod should support shared volumes between containers", "\nshared\n"),
        ],
    )
}

fn sub_paths() -> Case {
    let expression = json!([{ "name": "v", "mountPath": "/logs", "subPathExpr": "$(WHO)/logs" }]);
    let writer = with(
        sh("writer", "echo written > /logs/file; echo wrote"),
        json!({ "env": [{ "name": "WHO", "value": "me" }], "volumeMounts": expression,
                "securityContext": { "runAsUser": 1000 } }),
    );
    let reader = with(
        sh(
            "reader",
            "until cat /v/me/logs/file 2>/dev/null; do sleep 0.1; done; echo $(/bin/busybox stat -c %A /v/me)",
        ),
        json!({ "volumeMounts": mounts(&[("v", "/v")]) }),
    );
    case(
        "sub-paths",
        json!({ "containers": [writer, reader], "volumes": [{ "name": "v", "emptyDir": {} }] }),
        &[
            ("Variable Expansion should allow substituting values in a volume subpath", "\nwrote\n"),
            ("Variable Expansion should succeed in writing subpaths in container", "\nwritten\n"),
            ("A subPath that was made has the rights of its volume", "drwxrwxrwx"),
        ],
    )
}

/// Variables from a file that an init container has left.
fn from_file() -> Case {
    let volumes = json!([{ "name": "env", "emptyDir": {} }]);
    let writer = with(
        sh("writer", "echo \"GREETING='hello there'\" > /env/file"),
        json!({ "volumeMounts": mounts(&[("env", "/env")]) }),
    );
    let key = |key: &str, optional: bool| json!({ "fileKeyRef": { "volumeName": "env", "path": "file", "key": key, "optional": optional } });
    let env = json!([{ "name": "HEARD", "valueFrom": key("GREETING", false) }, { "name": "NONE", "valueFrom": key("X", true) }]);
    let reader = with(sh("reader", "echo \"$HEARD.$NONE.\""), json!({ "env": env }));
    case(
        "from-file",
        json!({ "initContainers": [writer], "containers": [reader], "volumes": volumes }),
        &[("EnvFiles: a variable comes from a file that an init container wrote", "hello there..")],
    )
}

fn identities() -> Vec<Case> {
    let secured =
        |name: &str, script: &str, context: Value| with(sh(name, script), json!({ "securityContext": context }));
    let user = secured("user", "id", json!({ "runAsUser": 65534 }));
    let fixed = secured("fixed", "echo x > /file || echo cannot write", json!({ "readOnlyRootFilesystem": true }));
    let free = secured("free", "echo x > /file && echo can write", json!({ "readOnlyRootFilesystem": false }));
    let no_more = secured(
        "no-more",
        "/bin/busybox grep NoNewPrivs /proc/self/status",
        json!({ "allowPrivilegeEscalation": false, "runAsUser": 1000 }),
    );
    let token = sh("token", "cd /var/run/secrets/kubernetes.io/serviceaccount && ls && cat namespace");
    vec![
        case(
            "identities",
            json!({ "containers": [user, fixed, free, no_more, token] }),
            &[
                ("Security Context should run the container with uid 65534", "uid=65534"),
                ("Kubelet should not write to root filesystem", "\ncannot write\n"),
                (
                    "Security Context should run the container with writable rootfs when readOnlyRootFilesystem=false",
                    "\ncan write\n",
                ),
                ("Security Context should not allow privilege escalation when false", "NoNewPrivs:\t1"),
                ("ServiceAccounts should mount an API token into pods", "ca.crt\nnamespace\ntoken"),
            ],
        ),
        case(
            "sysctls",
            json!({
                "securityContext": { "sysctls": [
                    { "name": "kernel.shm_rmid_forced", "value": "1" },
                    { "name": "net/ipv4/ip_unprivileged_port_start", "value": "42" }] },
                "containers": [sh("c", "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start")],
            }),
            &[
                ("Sysctls should support sysctls", "\n1\n"),
                ("Sysctls should support sysctls with slashes as separator", "\n42\n"),
            ],
        ),
        case(
            "hosts",
            json!({
                "hostname": "it", "subdomain": "sub",
                "hostAliases": [{ "ip": "192.0.2.9", "hostnames": ["alias", "other"] }],
                "containers": [
                    sh("managed", "cat /etc/hosts; hostname; cat /etc/resolv.conf"),
                    with(sh("own", "echo own: $(cat /etc/hosts)"),
                        json!({ "volumeMounts": [{ "name": "v", "mountPath": "/etc/hosts", "subPath": "colour" }] })),
                ],
                "volumes": [{ "name": "v", "configMap": { "name": "settings" } }],
            }),
            &[
                ("KubeletManagedEtcHosts: the file is managed", "# Kubernetes-managed hosts file.\n"),
                ("KubeletManagedEtcHosts: a container's own mount stays", "own: green"),
                ("Host aliases are in it", "192.0.2.9\talias\tother"),
                ("DNS should provide DNS for pods for Hostname", "\tit.sub.default.svc.cluster.local\tit\n"),
                ("A pod's resolver is the cluster's", "nameserver 10.96.0.10"),
                (
                    "A pod searches its namespace first",
                    "search default.svc.cluster.local svc.cluster.local cluster.local",
                ),
            ],
        ),
        case(
            "hosts-of-host",
            json!({ "hostNetwork": true, "containers": [sh("c", "cat /etc/hosts")] }),
            &[(
                "KubeletManagedEtcHosts: on the host's network it is the host's",
                "# Kubernetes-managed hosts file (host network).\n",
            )],
        ),
    ]
}

/// Pods that must not start, the waiting reason or the pod's reason, and part of the message.
fn refused(host: &super::super::host::Host, walk: &mut Walk) {
    let mounted = |more: Value| json!([with(json!({ "name": "v", "mountPath": "/v" }), more)]);
    let volumes = json!([{ "name": "v", "emptyDir": {} }]);
    let variable = json!([{ "name": "UP", "value": "/up" }]);
    let absolute =
        with(sh("c", "true"), json!({ "env": variable, "volumeMounts": mounted(json!({ "subPathExpr": "$(UP)" })) }));
    let lacking = with(
        sh("c", "true"),
        json!({ "env": [{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "no" } } }] }),
    );
    let root = with(sh("c", "true"), json!({ "securityContext": { "runAsNonRoot": true } }));
    let link = with(sh("first", "/bin/busybox ln -s / /v/out"), json!({ "volumeMounts": mounted(json!({})) }));
    let through = with(sh("c", "cat /v/shadow"), json!({ "volumeMounts": mounted(json!({ "subPath": "out/etc" })) }));
    apply(
        host,
        &[
            once("absolute", json!({ "containers": [absolute], "volumes": volumes })),
            once("lacking", json!({ "containers": [lacking] })),
            once("as-root", json!({ "containers": [root] })),
            once("through-a-link", json!({ "initContainers": [link], "containers": [through], "volumes": volumes })),
        ],
    );
    for (name, behaviour, text) in [
        (
            "absolute",
            "Variable Expansion should fail substituting values in a volume subpath with absolute path",
            "error SubPath `/up` must not be an absolute path",
        ),
        (
            "lacking",
            "A Secret's key that is not there keeps the container waiting",
            "couldn't find key no in Secret default/keys",
        ),
        ("as-root", "Security Context should not run with an explicit root user ID", "image will run as root"),
        (
            "through-a-link",
            "A subPath does not follow a link out of its volume",
            "failed to prepare subPath for volumeMount",
        ),
    ] {
        let waiting = ".status.containerStatuses[0].state.waiting";
        let (reason, message) = (format!("{waiting}.reason"), format!("{waiting}.message"));
        let ask = || fields(host, &format!("pod/{name}"), &[&reason, &message]);
        let seen = super::last_within(super::LONG, ask, |seen| seen.contains("CreateContainerConfigError"));
        walk.contains(behaviour, &seen, text);
    }
}

#[test]
fn pods_are_given_what_they_ask_for() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let node = format!("node/{}", host.name);
    let cpu = field(host, &node, ".status.allocatable.cpu");
    let memory = field(host, &node, ".status.allocatable.memory");
    let memory = memory.strip_suffix("Ki").and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib * 1024);
    let memory = memory.map_or_else(|| field(host, &node, ".status.allocatable.memory"), |bytes| bytes.to_string());
    apply(host, &maps());
    let mut cases = vec![
        from_env(&cpu, &host.address),
        config_map_volumes(),
        downward_volumes(&cpu, &memory),
        empty_dirs(),
        sub_paths(),
        from_file(),
    ];
    cases.extend(words());
    cases.extend(secret_volumes());
    cases.extend(identities());
    apply(host, &cases.iter().map(|c| once(c.name, c.spec.clone())).collect::<Vec<_>>());
    let mut walk = Walk::default();
    for case in &cases {
        let said = said_by(host, case.name);
        for (behaviour, text) in &case.says {
            walk.contains(behaviour, &said, text);
        }
    }
    refused(host, &mut walk);
    walk.end(host);
}
