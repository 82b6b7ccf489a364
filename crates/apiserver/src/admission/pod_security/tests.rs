use super::*;

/// Evaluates one container (and what else the pod has) at a level and version.
#[track_caller]
fn check(at: &str, pod: &str, container: &str, want: &str) {
    let (level, version) = at.split_once(':').unwrap();
    let at = LevelVersion { level: Level::parse(level).unwrap(), version: Version::parse(version).unwrap() };
    let mut object: Value = serde_json::from_str(pod).unwrap();
    let mut one: Value = serde_json::from_str(container).unwrap();
    one.set(&["name"], "c");
    object.set(&["spec", "containers"], vec![one]);
    let findings = evaluate(at, Pod { metadata: &object["metadata"], spec: &object["spec"] });
    assert_eq!(details(&findings), want);
}

#[test]
fn baseline_keeps_a_pod_in_its_container() {
    for (pod, container, want) in [
        (r#"{"spec":{"hostNetwork":true,"hostIPC":true}}"#, "{}", "host namespaces (hostNetwork=true, hostIPC=true)"),
        (r#"{"spec":{"volumes":[{"name":"h","hostPath":{"path":"/"}}]}}"#, "{}", r#"hostPath volumes (volume "h")"#),
        ("{}", r#"{"ports":[{"hostPort":80},{"hostPort":443}]}"#, r#"hostPort (container "c" uses hostPorts 443, 80)"#),
        (
            "{}",
            r#"{"securityContext":{"privileged":true}}"#,
            r#"privileged (container "c" must not set securityContext.privileged=true)"#,
        ),
        (
            "{}",
            r#"{"securityContext":{"capabilities":{"add":["SYS_ADMIN","CHOWN"]}}}"#,
            r#"non-default capabilities (container "c" must not include "SYS_ADMIN" in securityContext.capabilities.add)"#,
        ),
        (
            "{}",
            r#"{"securityContext":{"procMount":"Unmasked"}}"#,
            r#"procMount (container "c" must not set securityContext.procMount to "Unmasked")"#,
        ),
        (
            r#"{"spec":{"securityContext":{"seLinuxOptions":{"user":"u","role":"r"}}}}"#,
            r#"{"securityContext":{"seLinuxOptions":{"type":"t"}}}"#,
            r#"seLinuxOptions (pod and container "c" set forbidden securityContext.seLinuxOptions: type "t"; user may not be set; role may not be set)"#,
        ),
        (
            "{}",
            r#"{"securityContext":{"seccompProfile":{"type":"Unconfined"}}}"#,
            r#"seccompProfile (container "c" must not set securityContext.seccompProfile.type to "Unconfined")"#,
        ),
        (
            r#"{"spec":{"securityContext":{"appArmorProfile":{"type":"Unconfined"}}}}"#,
            "{}",
            r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined")"#,
        ),
        (
            r#"{"spec":{"securityContext":{"sysctls":[{"name":"kernel.msgmax"},{"name":"net.ipv4.tcp_rmem"}]}}}"#,
            "{}",
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            r#"{"spec":{"securityContext":{"windowsOptions":{"hostProcess":true}}}}"#,
            "{}",
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            "{}",
            r#"{"livenessProbe":{"httpGet":{"host":"h"}},"lifecycle":{"preStop":{"tcpSocket":{"host":"g"}}}}"#,
            r#"probe or lifecycle host (container "c" uses probe or lifecycle hosts "g", "h")"#,
        ),
        ("{}", "{}", ""),
    ] {
        check("baseline:latest", pod, container, want);
        check("privileged:latest", pod, container, "");
    }
}

#[test]
fn restricted_wants_hardening_said() {
    const SAFE: &str = r#"{"securityContext":{"allowPrivilegeEscalation":false,"runAsNonRoot":true,"capabilities":{"drop":["ALL"]},"seccompProfile":{"type":"RuntimeDefault"}}}"#;
    check("restricted:latest", "{}", SAFE, "");
    check(
        "restricted:latest",
        r#"{"spec":{"hostIPC":true,"volumes":[{"name":"n","nfs":{}},{"name":"h","hostPath":{}}]}}"#,
        r#"{"securityContext":{"runAsUser":0,"capabilities":{"add":["SYS_TIME"]}}}"#,
        concat!(
            "host namespaces (hostIPC=true), ",
            r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), "#,
            r#"unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]; container "c" must not include "SYS_TIME" in securityContext.capabilities.add), "#,
            r#"restricted volume types (volumes "n", "h" use restricted volume types "hostPath", "nfs"), "#,
            r#"runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), "#,
            r#"runAsUser=0 (container "c" must not set runAsUser=0), "#,
            r#"seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
        ),
    );
    check(
        "restricted:latest",
        r#"{"spec":{"securityContext":{"runAsNonRoot":false}}}"#,
        SAFE,
        "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)",
    );
    check(
        "restricted:latest",
        r#"{"spec":{"os":{"name":"windows"},"securityContext":{"runAsNonRoot":true}}}"#,
        "{}",
        "",
    );
}

#[test]
fn versions_choose_the_rules() {
    let engine = r#"{"securityContext":{"seLinuxOptions":{"type":"container_engine_t"}}}"#;
    check("baseline:v1.31", "{}", engine, "");
    check(
        "baseline:v1.30",
        "{}",
        engine,
        r#"seLinuxOptions (container "c" set forbidden securityContext.seLinuxOptions: type "container_engine_t")"#,
    );
    let keepalive = r#"{"spec":{"securityContext":{"sysctls":[{"name":"net.ipv4.tcp_keepalive_time"}]}}}"#;
    check("baseline:v1.28", keepalive, "{}", "forbidden sysctls (net.ipv4.tcp_keepalive_time)");
    check("baseline:v1.99", keepalive, "{}", "");
    let probe = r#"{"livenessProbe":{"httpGet":{"host":"h"}}}"#;
    check("baseline:v1.33", "{}", probe, "");
    let unmasked = r#"{"securityContext":{"procMount":"Unmasked"}}"#;
    let told = r#"procMount (container "c" must not set securityContext.procMount to "Unmasked")"#;
    check("baseline:v1.35", r#"{"spec":{"hostUsers":false}}"#, unmasked, "");
    check("baseline:v1.34", r#"{"spec":{"hostUsers":false}}"#, unmasked, told);
    check(
        "restricted:v1.0",
        "{}",
        unmasked,
        &format!("{told}, runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)"),
    );
    let annotated = r#"{"metadata":{"annotations":{"seccomp.security.alpha.kubernetes.io/pod":"unconfined"}}}"#;
    check(
        "baseline:v1.18",
        annotated,
        "{}",
        r#"seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod="unconfined")"#,
    );
    check("baseline:v1.19", annotated, "{}", "");
}

#[test]
fn only_changes_that_matter_are_checked_again() {
    let pod = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let old = pod(r#"{"spec":{"containers":[{"name":"c","image":"a"}]}}"#);
    assert!(!is_significant(
        &pod(r#"{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"a"}]}}"#),
        &old
    ));
    assert!(is_significant(&pod(r#"{"spec":{"containers":[{"name":"c","image":"b"}]}}"#), &old));
    assert!(is_significant(
        &pod(r#"{"spec":{"containers":[{"name":"c","image":"a"}],"ephemeralContainers":[{"name":"e"}]}}"#),
        &old
    ));
}
