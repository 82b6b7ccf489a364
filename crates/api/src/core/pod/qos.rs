//! How well a pod's resources are guaranteed, which decides who is evicted first.

use apimachinery::Value;
use apimachinery::quantity::Quantity;

fn amounts(resources: &Value, list: &str) -> [Quantity; 2] {
    ["cpu", "memory"]
        .map(|name| resources.at(&[list, name]).as_str().and_then(|q| q.parse::<Quantity>().ok()).unwrap_or_default())
}

/// Guaranteed, Burstable or BestEffort.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    // What the pod asks for as a whole counts alone.
    let whole = &spec["resources"];
    let parts: Vec<&Value> = if ["requests", "limits"].iter().any(|l| !whole[*l].entries().is_empty()) {
        vec![whole]
    } else {
        ["containers", "initContainers"].iter().flat_map(|l| spec[*l].items()).map(|c| &c["resources"]).collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    let mut sums = [[Quantity::default(); 2]; 2];
    for resources in parts {
        let asked = [amounts(resources, "requests"), amounts(resources, "limits")];
        any |= asked.iter().flatten().any(|q| !q.is_zero());
        guaranteed &= asked[1].iter().all(|limit| !limit.is_zero());
        for (sum, part) in sums.iter_mut().flatten().zip(asked.iter().flatten()) {
            *sum = sum.saturating_add(*part);
        }
    }
    let equal = sums[0].iter().zip(&sums[1]).all(|(request, limit)| (*request).cmp(limit).is_eq());
    match (any, guaranteed && equal) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, want: &str) {
        let pod = Value::from([("spec", serde_json::from_str(spec).unwrap())]);
        assert_eq!(qos_class(&pod), want, "{spec}");
    }

    #[test]
    fn classes_follow_from_requests_and_limits() {
        check(r#"{"containers":[{}]}"#, "BestEffort");
        check(r#"{"containers":[{"resources":{"requests":{"cpu":"1"}}}]}"#, "Burstable");
        let same = r#"{"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1000m","memory":"1Gi"}}"#;
        check(&format!(r#"{{"containers":[{{"resources":{same}}}]}}"#), "Guaranteed");
        check(&format!(r#"{{"containers":[{{"resources":{same}}},{{}}]}}"#), "Burstable");
        check(&format!(r#"{{"resources":{same},"containers":[{{}}]}}"#), "Guaranteed");
    }
}
