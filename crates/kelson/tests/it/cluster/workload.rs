//! What users do with a workload.

use std::io::{BufRead, BufReader};

use super::host::holds_in_time;
use super::{OneNode, hello};

const READY: &str = "jsonpath={.status.readyReplicas}";

#[test]
fn a_workload_runs_and_kubectl_does_what_users_know() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    host.kubectl_ok(&["apply", "-f", "-"], &hello());
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=100s"], "");
    // Its controller notes the revision without a change that others would have to observe.
    let noted = "jsonpath={.metadata.generation} {.metadata.annotations.deployment\\.kubernetes\\.io/revision}";
    assert_eq!(host.kubectl_ok(&["get", "deployment", "hello", "-o", noted], ""), "1 1");

    // It answers at its ClusterIP, at the node's port, and by its name from inside of a pod.
    let ip = host.kubectl_ok(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"], "");
    host.wait_for_page(&format!("http://{ip}/"), "Hello from Kelson");
    host.wait_for_page(&format!("http://{}:30080/", host.address), "Hello from Kelson");
    let inside = |words: &[&str]| host.kubectl(&[&["exec", "deploy/hello", "--"], words].concat(), "");
    for name in ["hello", "hello.default", "hello.default.svc.cluster.local"] {
        let mut page = inside(&["wget", "-qO-", &format!("http://{name}/")]);
        let done = holds_in_time(|| {
            page = inside(&["wget", "-qO-", &format!("http://{name}/")]);
            page.out.contains("Hello from Kelson")
        });
        assert!(done, "{name}: {page:?}");
    }

    // Looking at it.
    let wide = host.kubectl_ok(&["get", "pods", "-o", "wide"], "");
    assert!(wide.contains("NOMINATED NODE") && wide.contains("1/1") && wide.contains(&host.name), "{wide}");
    let described = host.kubectl_ok(&["describe", "deployment", "hello"], "");
    assert!(described.contains("ScalingReplicaSet") && described.contains("RollingUpdateStrategy"), "{described}");
    let described = host.kubectl_ok(&["describe", "pods"], "");
    for said in ["Successfully assigned default/hello-", "already present on machine", "Started"] {
        assert!(described.contains(said), "{said}: {described}");
    }
    let explained = host.kubectl_ok(&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"], "");
    assert!(explained.contains("FIELD: maxSurge"), "{explained}");
    assert_eq!(host.kubectl_ok(&["auth", "can-i", "create", "pods"], ""), "yes\n");
    let refused = host.kubectl(&["auth", "can-i", "create", "pods", "--as=nobody"], "");
    assert_eq!((refused.ok, refused.out.as_str()), (false, "no\n"));

    // Inside of it.
    let pod = host.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"], "");
    let echoed = host.kubectl_ok(&["exec", "-i", &pod, "--", "cat"], "through the pipe");
    assert_eq!(echoed, "through the pipe");
    let failed = host.kubectl(&["exec", &pod, "--", "sh", "-c", "exit 7"], "");
    assert!(failed.err.contains("exit code 7"), "{failed:?}");
    let file = host.dir.join("copied");
    std::fs::write(&file, "copied there and back").unwrap();
    let there = format!("{pod}:/tmp/file");
    host.kubectl_ok(&["cp", file.to_str().unwrap(), &there], "");
    host.kubectl_ok(&["cp", &there, host.dir.join("back").to_str().unwrap()], "");
    assert_eq!(std::fs::read_to_string(host.dir.join("back")).unwrap(), "copied there and back");
    let mut forward = host.kubectl_command(&["port-forward", "deploy/hello", "18080:8080"]).spawn().unwrap();
    // Read on until the end: kubectl ends when nobody listens to it.
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    assert!(lines.next().is_some_and(|line| line.is_ok_and(|line| line.contains("Forwarding from"))));
    host.wait_for_page("http://127.0.0.1:18080/", "Hello from Kelson");
    forward.kill().unwrap();
    forward.wait().unwrap();

    // Changing it.
    host.kubectl_ok(&["scale", "deployment", "hello", "--replicas=3"], "");
    host.until(&["get", "deployment", "hello", "-o", READY], |n| n == "3");
    host.kubectl_ok(&["set", "env", "deployment/hello", "COLOUR=blue"], "");
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=100s"], "");
    let history = host.kubectl_ok(&["rollout", "history", "deployment/hello"], "");
    assert!(history.contains('1') && history.contains('2'), "{history}");
    host.kubectl_ok(&["rollout", "undo", "deployment/hello"], "");
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=100s"], "");
    let env =
        host.kubectl_ok(&["get", "deployment", "hello", "-o", "jsonpath={.spec.template.spec.containers[0].env}"], "");
    assert_eq!(env, "");
    host.kubectl_ok(&["set", "image", "deployment/hello", "web=kelson.local/absent:1"], "");
    let reasons = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
    host.until(&["get", "pods", "-o", reasons], |reason| reason.contains("ErrImageNeverPull"));
    host.kubectl_ok(&["rollout", "undo", "deployment/hello"], "");
    host.kubectl_ok(&["rollout", "status", "deployment/hello", "--timeout=100s"], "");

    // From the server's side.
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: green}\n";
    host.kubectl_ok(&["apply", "--server-side", "-f", "-"], config);
    let again = config.replace("green", "red");
    let refused = host.kubectl(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &again);
    assert!(!refused.ok && refused.err.contains("conflict with \"kubectl\": .data.colour"), "{refused:?}");
    host.kubectl_ok(&["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"], &again);

    host.kubectl_ok(&["delete", "-f", "-", "--timeout=100s"], &hello());
    host.until(&["get", "pods", "-o", "name"], str::is_empty);
}

#[test]
fn logs_are_served_as_they_are_written() {
    let cluster = OneNode::start(&[]);
    let host = &cluster.host;
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"talks"},"spec":{"containers":[{"name":"c",
        "image":"kelson.local/hello:1","imagePullPolicy":"Never",
        "command":["sh","-c","echo one; echo two; echo bad >&2; until [ -e /tmp/go ]; do sleep 0.1; done; echo three; exit 3"]}]}}"#;
    host.kubectl_ok(&["apply", "-f", "-"], pod);
    // What came by different ways may be mixed.
    host.until(&["logs", "talks"], |out| ["one\n", "two\n", "bad\n"].iter().all(|line| out.contains(line)));
    assert_eq!(host.kubectl_ok(&["logs", "talks", "--tail=1"], "").lines().count(), 1);
    let stamped = host.kubectl_ok(&["logs", "talks", "--timestamps", "--limit-bytes=80"], "");
    assert!(stamped.starts_with("20") && stamped.contains("Z one\n"), "{stamped}");
    assert_eq!(host.kubectl_ok(&["logs", "talks", "--since-time=2100-01-01T00:00:00Z"], ""), "");
    // Followed to its end, which comes when the container ends.
    let mut follow = host.kubectl_command(&["logs", "-f", "talks"]).spawn().unwrap();
    host.kubectl_ok(&["exec", "talks", "--", "sh", "-c", "echo > /tmp/go"], "");
    let lines: Vec<String> = BufReader::new(follow.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    follow.wait().unwrap();
    assert_eq!(lines.last().map(String::as_str), Some("three"));
    // The container that took its place says the same, and the one before can still be heard.
    host.until(&["get", "pod", "talks", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"], |n| n == "1");
    let path = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    host.until(&["get", "pod", "talks", "-o", path], |code| code == "3");
    host.until(&["logs", "talks", "--previous"], |out| out.contains("three"));
}
