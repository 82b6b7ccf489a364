//! How a Service may change.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use super::service_rules::{is_headless, needs_health_check};
use crate::validation::same;

const STAYS: &str = "may not change once set";

pub(super) fn validate(service: &Value, old: &Value) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let (spec, was) = (&service["spec"], &old["spec"]);
    let is = |s: &Value, kind: &str| s.str_at(&["type"]) == kind;
    if !is(spec, "ExternalName") && !is(was, "ExternalName") {
        let (headless, was_headless) = (is_headless(spec), is_headless(was));
        if !(headless && was_headless) {
            primary_stays("clusterIPs", spec, was, &mut errs);
        }
        if headless == was_headless && !headless {
            primary_stays("ipFamilies", spec, was, &mut errs);
        }
    }
    if is(spec, "LoadBalancer") && is(was, "LoadBalancer") && spec["loadBalancerClass"] != was["loadBalancerClass"] {
        errs.invalid(&Cursor::root(service).fields(&["spec", "loadBalancerClass"]), STAYS);
    }
    errs
}

/// The first value stays for good; the second may come, and may go if the policy says so.
fn primary_stays(field: &str, spec: &Value, was: &Value, errs: &mut FieldErrors) {
    let path = Path::new("spec").child(field);
    let (new, old) = (spec[field].items(), was[field].items());
    let single = if field == "clusterIPs" { "clusterIP" } else { "ipFamily" };
    let shown = || Value::from(new.to_vec());
    if new.len() == old.len() {
        for (i, _) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| new != old) {
            errs.invalid_value(&path.index(i), shown(), STAYS);
        }
        return;
    }
    if let (Some(first), Some(before)) = (new.first(), old.first())
        && first != before
    {
        errs.invalid_value(&path.index(0), shown(), STAYS);
    }
    if old.len() > new.len() {
        if new.is_empty() {
            errs.invalid_value(&path.index(0), shown(), format!("primary {single} can not be unset"));
        }
        if new.len() == 1 && spec.str_at(&["ipFamilyPolicy"]) != "SingleStack" {
            errs.invalid_value(
                &Path::new("spec.ipFamilyPolicy"),
                spec["ipFamilyPolicy"].clone(),
                format!("must be set to 'SingleStack' when releasing the secondary {single}"),
            );
        }
    }
}

fn has_cluster_ip(spec: &Value) -> bool {
    matches!(spec.str_at(&["type"]), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(spec: &Value) -> bool {
    match spec.str_at(&["type"]) {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

fn is_balanced(spec: &Value) -> bool {
    spec.str_at(&["type"]) == "LoadBalancer"
}

fn routes_from_outside(spec: &Value) -> bool {
    matches!(spec.str_at(&["type"]), "NodePort" | "LoadBalancer")
}

/// Fields, and the Services that need them.
type Need = (&'static [&'static str], fn(&Value) -> bool);

const NEEDS: &[Need] = &[
    (&["clusterIP", "clusterIPs"], has_cluster_ip),
    (&["ipFamilies"], has_cluster_ip),
    (&["ipFamilyPolicy"], has_cluster_ip),
    (&["healthCheckNodePort"], needs_health_check),
    (&["allocateLoadBalancerNodePorts"], is_balanced),
    (&["loadBalancerClass"], is_balanced),
    (&["externalTrafficPolicy"], routes_from_outside),
];

/// What the server may have filled in, and what the new type has no use for, goes; what the client changed does not.
pub(super) fn drop_what_no_longer_applies(service: &mut Value, old: &Value) {
    let was = &old["spec"];
    for (fields, needs) in NEEDS {
        let spec = &service["spec"];
        let unchanged = fields.iter().all(|f| same(&spec[*f], &was[*f]));
        if needs(was) && !needs(spec) && unchanged {
            for field in *fields {
                service.remove(&["spec", field]);
            }
        }
    }
    let numbers = |s: &Value| s["ports"].items().iter().map(|p| p["nodePort"].clone()).collect::<Vec<_>>();
    if has_node_ports(was) && !has_node_ports(&service["spec"]) {
        let known = numbers(was);
        let unchanged = numbers(&service["spec"]).iter().all(|n| n.is_empty_value() || known.contains(n));
        if unchanged && !service["spec"]["ports"].is_null() {
            for port in service.entry(&["spec", "ports"]).items_mut() {
                port.remove(&["nodePort"]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::assert_findings;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_first_address_stays() {
        let old = json(r#"{"spec":{"type":"ClusterIP","clusterIPs":["a","b"]}}"#);
        let check = |ips: &str, want: &[&str]| {
            let new = json(&format!(r#"{{"spec":{{"type":"ClusterIP","clusterIPs":{ips}}}}}"#));
            assert_findings(&validate(&new, &old), want);
        };
        check(r#"["a","b"]"#, &[]);
        check(r#"["x","b"]"#, &[r#"spec.clusterIPs[0]: Invalid value: ["x","b"]: may not change once set"#]);
        check(
            r#"["a"]"#,
            &[
                "spec.ipFamilyPolicy: Invalid value: null: must be set to 'SingleStack' when releasing the secondary clusterIP",
            ],
        );
    }

    #[test]
    fn what_was_allocated_goes_with_the_type() {
        let old = json(
            r#"{"spec":{"type":"NodePort","clusterIP":"a","clusterIPs":["a"],"externalTrafficPolicy":"Cluster","ports":[{"port":1,"nodePort":30000}]}}"#,
        );
        let mut new = old.clone();
        new.set(&["spec", "type"], "ClusterIP");
        drop_what_no_longer_applies(&mut new, &old);
        assert_eq!(
            new,
            json(r#"{"spec":{"type":"ClusterIP","clusterIP":"a","clusterIPs":["a"],"ports":[{"port":1}]}}"#)
        );
    }
}
