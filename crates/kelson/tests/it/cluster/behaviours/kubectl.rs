//! What kubectl does beside the verbs of every day.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use super::super::host::holds_in_time;
use super::{Space, checks, hold, is_ready, name_of, pod, runs, template};

#[test]
fn kubectl_behaves() {
    hold(checks![
        runs_labels_and_replaces_a_pod,
        exposes_a_controller,
        shows_the_difference,
        describes_what_there_is,
        knows_the_cluster,
        proxies,
        deletes_events_in_one_go,
        patches_limit_ranges,
    ]);
}

const IMAGE: &str = "--image=kelson.local/hello:1";

fn runs_labels_and_replaces_a_pod(space: &Space<'_>) {
    let overrides = r#"{"spec":{"terminationGracePeriodSeconds":0}}"#;
    let policy = ["--restart=Never", "--image-pull-policy=Never", "--overrides", overrides];
    space.kubectl_ok(&[&["run", "p", IMAGE], &policy[..]].concat(), "");
    let pod = space.until("pod/p", is_ready);
    assert_eq!((&pod["spec"]["restartPolicy"], &pod["metadata"]["labels"]["run"]), (&json!("Never"), &json!("p")));
    space.kubectl_ok(&["label", "pod", "p", "testing-label=value"], "");
    assert!(space.kubectl_ok(&["get", "pod", "-L", "testing-label"], "").contains("value"));
    space.kubectl_ok(&["label", "pod", "p", "testing-label-"], "");
    assert!(space.list("pods", "testing-label").is_empty());
    let mut other = space.get("pod/p");
    other["spec"]["containers"][0]["image"] = "kelson.local/other:1".into();
    space.kubectl_ok(&["replace", "-f", "-"], &other.to_string());
    let now = space.get("pod/p");
    assert_eq!(now["spec"]["containers"][0]["image"], "kelson.local/other:1");
}

fn exposes_a_controller(space: &Space<'_>) {
    let rc = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "primary"},
        "spec": {"replicas": 1, "selector": {"app": "primary"},
            "template": template("primary", runs("exec busybox httpd -f -p 8080 -h /www"))}});
    space.create(&rc);
    space.until("rc/primary", |rc| rc["status"]["readyReplicas"] == 1);
    space.kubectl_ok(&["expose", "rc", "primary", "--name=rm2", "--port=1234", "--target-port=8080"], "");
    space.kubectl_ok(&["expose", "service", "rm2", "--name=rm3", "--port=2345", "--target-port=8080"], "");
    for (name, port) in [("rm2", 1234), ("rm3", 2345)] {
        let service = space.get(&format!("service/{name}"));
        let has = &service["spec"]["ports"][0];
        assert_eq!((&has["port"], &has["targetPort"]), (&json!(port), &json!(8080)));
        let url = format!("http://{}:{port}/", service["spec"]["clusterIP"].as_str().unwrap());
        space.host.wait_for_page(&url, "Hello from Kelson");
    }
}

fn shows_the_difference(space: &Space<'_>) {
    let deployment = |image: &str| {
        let mut spec = runs("sleep 100000");
        spec["containers"][0]["image"] = image.into();
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"app": "d"}}, "template": template("d", spec)}})
        .to_string()
    };
    space.kubectl_ok(&["apply", "-f", "-"], &deployment("kelson.local/hello:1"));
    assert!(space.kubectl(&["diff", "-f", "-"], &deployment("kelson.local/hello:1")).ok);
    let said = space.kubectl(&["diff", "-f", "-"], &deployment("kelson.local/other:1"));
    assert!(!said.ok, "{said:?}");
    let lines: Vec<&str> = said.out.lines().filter(|line| line.contains("image: ")).map(str::trim_end).collect();
    assert!(lines.len() == 2 && lines[0].starts_with('-') && lines[1].starts_with('+'), "{said:?}");
}

fn describes_what_there_is(space: &Space<'_>) {
    let rc = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc"},
        "spec": {"replicas": 1, "selector": {"app": "rc"}, "template": template("rc", runs("sleep 100000"))}});
    space.create(&rc);
    space.until("rc/rc", |rc| rc["status"]["readyReplicas"] == 1);
    let pod = name_of(&space.list("pods", "app=rc")[0]).to_owned();
    for (what, wanted) in [
        (["pod", pod.as_str()], &["Controlled By:", "ReplicationController/rc", "Image ID:", "Ready:", "Status:"][..]),
        (["rc", "rc"], &["Replicas:", "1 current / 1 desired", "Pods Status:", "1 Running"]),
        (["node", &space.host.name], &["Allocated resources:", "Capacity:", "PodCIDR:", "Container Runtime Version:"]),
        (["namespace", space.name], &["Status:", "Active", "No resource quota."]),
    ] {
        let said = space.kubectl_ok(&["describe", what[0], what[1]], "");
        for text in wanted {
            assert!(said.contains(text), "describe {what:?} lacks {text:?}: {said}");
        }
    }
}

fn knows_the_cluster(space: &Space<'_>) {
    assert!(space.kubectl_ok(&["cluster-info"], "").contains("is running at"));
    assert!(space.kubectl_ok(&["api-versions"], "").lines().any(|line| line == "v1"));
    let resources = space.kubectl_ok(&["api-resources", "-o", "wide", "--no-headers"], "");
    assert!(resources.lines().any(|line| line.starts_with("deployments ") && line.contains("apps/v1")), "{resources}");
}

fn proxies(space: &Space<'_>) {
    let socket = space.host.dir.join("proxy.sock");
    let flag = format!("--unix-socket={}", socket.display());
    for flag in [flag.as_str(), "--port=0"] {
        let mut proxy = space.host.kubectl_command(&["proxy", flag]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(proxy.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        let socket = socket.display().to_string();
        let by_port = format!("http://{address}/api/");
        let args = if flag == "--port=0" {
            vec!["-s", &by_port]
        } else {
            vec!["-s", "--unix-socket", &socket, "http://localhost/api/"]
        };
        let mut said = String::new();
        let done = holds_in_time(|| {
            said = space.host.run("curl", &args).out;
            said.contains("\"v1\"")
        });
        proxy.kill().unwrap();
        proxy.wait().unwrap();
        assert!(done, "{line}: {said}");
    }
}

fn deletes_events_in_one_go(space: &Space<'_>) {
    let event = |name: &str, version: &str| {
        let involved = json!({"kind": "Pod", "namespace": space.name, "name": "p"});
        let mut event = json!({"apiVersion": version, "kind": "Event", "metadata": {"name": name, "labels": {"testevent": "true"}},
            "type": "Normal", "reason": "Test"});
        if version == "v1" {
            event["involvedObject"] = involved;
            event["message"] = "m".into();
        } else {
            event["regarding"] = involved;
            event["note"] = "m".into();
            event["action"] = "Do".into();
            event["eventTime"] = "2026-01-01T00:00:00.000000Z".into();
            event["reportingController"] = "test.example.com/c".into();
            event["reportingInstance"] = "i".into();
        }
        event
    };
    for (group, version) in [("api/v1", "v1"), ("apis/events.k8s.io/v1", "events.k8s.io/v1")] {
        for name in ["one", "two"] {
            space.create(&event(name, version));
        }
        assert_eq!(space.list("events", "testevent=true").len(), 2);
        let path = format!("/{group}/namespaces/{}/events?labelSelector=testevent%3Dtrue", space.name);
        space.kubectl_ok(&["delete", "--raw", &path], "");
        assert!(space.list("events", "testevent=true").is_empty());
    }
}

fn patches_limit_ranges(space: &Space<'_>) {
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r", "labels": {"e2e": "r"}},
        "spec": {"limits": [{"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "50m"}}]}});
    space.create(&range);
    let patch = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "300m"}, "defaultRequest": {"cpu": "30m"}}]}});
    space.merge("limitrange/r", &patch);
    space.create(&pod("p", "p", runs("exit 0")));
    let resources = space.get("pod/p")["spec"]["containers"][0]["resources"].clone();
    assert_eq!(resources, json!({"limits": {"cpu": "300m"}, "requests": {"cpu": "30m"}}));
    let path = format!("/api/v1/namespaces/{}/limitranges?labelSelector=e2e%3Dr", space.name);
    space.kubectl_ok(&["delete", "--raw", &path], "");
    space.until("limitrange/r", Value::is_null);
}
