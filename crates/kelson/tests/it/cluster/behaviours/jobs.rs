//! Jobs.

use serde_json::{Value, json};

use super::{Space, checks, condition, controller_of, hold, name_of, runs};

#[test]
fn jobs_behave() {
    hold(checks![
        restarts_in_place_until_done,
        gives_each_index_its_number_and_name,
        counts_failures_by_index,
        fails_an_index_by_policy,
        stops_at_too_many_failed_indexes,
        is_done_when_all_indexes_are,
        is_done_when_the_named_indexes_are,
        is_done_when_enough_are,
        ignores_disruptions_by_policy,
        adopts_and_releases_pods,
        begins_suspended_and_goes_with_its_pods,
    ]);
}

fn job(spec: Value, pod: Value, restart: &str) -> Value {
    let mut spec = spec;
    spec["template"] = json!({"metadata": {"labels": {"app": "job"}}, "spec": pod});
    spec["template"]["spec"]["restartPolicy"] = restart.into();
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "labels": {"app": "job"}}, "spec": spec})
}

fn reason<'a>(job: &'a Value, type_: &str) -> Option<&'a str> {
    let conditions = job["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == type_ && c["status"] == "True")?["reason"].as_str()
}

fn is_complete(job: &Value) -> bool {
    condition(job, "Complete") == Some("True")
}

fn has_failed(job: &Value) -> bool {
    condition(job, "Failed") == Some("True")
}

/// Succeeds with even indexes and fails with odd ones.
const EVEN: &str = "exit $((JOB_COMPLETION_INDEX % 2))";

fn restarts_in_place_until_done(space: &Space<'_>) {
    let mut pod = runs("if [ -e /data/tried ]; then exit 0; fi; echo > /data/tried; exit 1");
    pod["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    space.create(&job(json!({"completions": 2, "parallelism": 2}), pod, "OnFailure"));
    let done = space.until("job/job", is_complete);
    assert_eq!((&done["status"]["succeeded"], &done["status"]["failed"]), (&json!(2), &Value::Null));
}

fn gives_each_index_its_number_and_name(space: &Space<'_>) {
    let says = runs("echo index $JOB_COMPLETION_INDEX on $(hostname)");
    space.create(&job(json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}), says, "Never"));
    let done = space.until("job/job", is_complete);
    assert_eq!(done["status"]["completedIndexes"], "0-2");
    let mut indexes = Vec::new();
    for pod in space.list("pods", "app=job") {
        let index =
            pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap().to_owned();
        let name = name_of(&pod);
        assert!(name.starts_with(&format!("job-{index}-")), "{name}");
        assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], index);
        assert_eq!(space.kubectl_ok(&["logs", name], ""), format!("index {index} on job-{index}\n"));
        indexes.push(index);
    }
    indexes.sort_unstable();
    assert_eq!(indexes, ["0", "1", "2"]);
}

fn counts_failures_by_index(space: &Space<'_>) {
    let spec = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    space.create(&job(spec, runs(EVEN), "Never"));
    let done = space.until("job/job", has_failed);
    let status = &done["status"];
    assert_eq!((&status["failedIndexes"], &status["completedIndexes"]), (&json!("1,3"), &json!("0,2")), "{status:#}");
    assert_eq!((&status["failed"], &status["succeeded"]), (&json!(4), &json!(2)), "{status:#}");
    assert_eq!(reason(&done, "Failed"), Some("FailedIndexes"));
}

fn fails_an_index_by_policy(space: &Space<'_>) {
    let policy = json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]});
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 3,
        "podFailurePolicy": policy});
    space.create(&job(spec, runs(EVEN), "Never"));
    let done = space.until("job/job", has_failed);
    let status = &done["status"];
    assert_eq!((&status["failed"], &status["failedIndexes"]), (&json!(1), &json!("1")), "{status:#}");
}

fn stops_at_too_many_failed_indexes(space: &Space<'_>) {
    let spec = json!({"completions": 10, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0,
        "maxFailedIndexes": 1});
    space.create(&job(spec, runs("exit 1"), "Never"));
    let done = space.until("job/job", has_failed);
    assert_eq!(reason(&done, "Failed"), Some("MaxFailedIndexesExceeded"));
    assert!(done["status"]["failed"].as_u64().unwrap() < 10, "{done:#}");
}

fn is_done_when_all_indexes_are(space: &Space<'_>) {
    succeeds_by(space, &json!({"succeededIndexes": "0-1"}), "exit 0");
}

/// The other index never ends.
const FIRST_ONLY: &str = "[ $JOB_COMPLETION_INDEX = 0 ] || sleep 100000";

fn is_done_when_the_named_indexes_are(space: &Space<'_>) {
    succeeds_by(space, &json!({"succeededIndexes": "0"}), FIRST_ONLY);
}

fn is_done_when_enough_are(space: &Space<'_>) {
    succeeds_by(space, &json!({"succeededCount": 1}), FIRST_ONLY);
}

fn succeeds_by(space: &Space<'_>, rule: &Value, script: &str) {
    let spec =
        json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "successPolicy": {"rules": [rule]}});
    space.create(&job(spec, runs(script), "Never"));
    let done = space.until("job/job", is_complete);
    assert_eq!(reason(&done, "SuccessCriteriaMet"), Some("SuccessPolicy"), "{done:#}");
    assert_eq!(reason(&done, "Complete"), Some("SuccessPolicy"), "{done:#}");
    assert_eq!(done["status"]["active"], Value::Null);
}

fn ignores_disruptions_by_policy(space: &Space<'_>) {
    let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let spec = json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": policy});
    space.create(&job(spec, runs("trap 'exit 1' TERM; until [ -e /tmp/done ]; do sleep 0.1; done"), "Never"));
    let running = |pods: &[Value]| pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count() == 1;
    let pods = space.until_all("pods", "app=job", running);
    let first = name_of(&pods[0]).to_owned();
    let evicted = space.evict(&first);
    assert!(evicted.ok, "{evicted:?}");
    let pods = space.until_all("pods", "app=job", |pods| {
        pods.iter().any(|pod| name_of(pod) != first && pod["status"]["phase"] == "Running")
    });
    let second = pods.iter().map(name_of).find(|name| *name != first).unwrap();
    space.kubectl_ok(&["exec", second, "--", "sh", "-c", "echo > /tmp/done"], "");
    let done = space.until("job/job", is_complete);
    assert_eq!(done["status"]["failed"], Value::Null, "{done:#}");
}

fn adopts_and_releases_pods(space: &Space<'_>) {
    space.create(&job(json!({"completions": 4, "parallelism": 2}), runs("sleep 100000"), "Never"));
    let pods = space.until_all("pods", "app=job", |pods| pods.len() == 2);
    let pod = format!("pod/{}", name_of(&pods[0]));
    space.merge(&pod, &json!({"metadata": {"ownerReferences": null}}));
    space.until(&pod, |pod| controller_of(pod) == Some("job"));
    let labels = json!({"job-name": null, "controller-uid": null, "batch.kubernetes.io/job-name": null,
        "batch.kubernetes.io/controller-uid": null});
    space.merge(&pod, &json!({"metadata": {"labels": labels}}));
    space.until(&pod, |pod| controller_of(pod).is_none());
}

fn begins_suspended_and_goes_with_its_pods(space: &Space<'_>) {
    space.create(&job(json!({"suspend": true, "parallelism": 2}), runs("sleep 100000"), "Never"));
    space.until("job/job", |job| condition(job, "Suspended") == Some("True"));
    assert!(space.list("pods", "app=job").is_empty());
    space.merge("job/job", &json!({"spec": {"suspend": false}}));
    space.until("job/job", |job| job["status"]["active"] == 2 && condition(job, "Suspended") == Some("False"));
    space.kubectl_ok(&["delete", "job", "job", "--wait=false"], "");
    space.until_all("pods", "app=job", <[Value]>::is_empty);
    space.until("job/job", Value::is_null);
}
