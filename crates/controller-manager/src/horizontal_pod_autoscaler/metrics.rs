//! Asks the three metrics APIs, which are extensions that a cluster may lack.

use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use kube::Client;
use serde::Deserialize;

use super::replicas::{Sample, Samples};
use crate::{pod_control::said, pod_resources::quantity};

pub(super) struct MetricsClient {
    client: Client,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

type Amount = k8s_openapi::apimachinery::pkg::api::resource::Quantity;

#[derive(Deserialize)]
struct PodMetrics {
    #[serde(default)]
    metadata: kube::core::ObjectMeta,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: std::collections::BTreeMap<String, Amount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    #[serde(default)]
    described_object: Described,
    timestamp: Timestamp,
    #[serde(alias = "window")]
    window_seconds: Option<i64>,
    value: Amount,
}

#[derive(Deserialize, Default)]
struct Described {
    #[serde(default)]
    name: String,
}

/// How long a value of a custom metric is taken to stand for.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);

fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }
    text
}

impl MetricsClient {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<Vec<T>, kube::Error> {
        let request = Request::get(url).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok(self.client.request::<List<T>>(request).await?.items)
    }

    /// What pods use of a resource, all their containers or one of them.
    pub(super) async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let query = query(&[("labelSelector", selector)]);
        let url = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods{query}");
        let pods: Vec<PodMetrics> = self.get(&url).await.map_err(|err| {
            format!("unable to fetch metrics from resource metrics API: {}", asked(&err, "get pods.metrics.k8s.io"))
        })?;
        if pods.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        samples_of(&pods, resource, container, namespace)
    }

    /// The version that the server prefers.
    async fn custom_base(&self) -> Result<String, kube::Error> {
        let groups = self.client.list_api_groups().await?;
        let group = groups.groups.into_iter().find(|group| group.name == "custom.metrics.k8s.io");
        let preferred = group.and_then(|group| group.preferred_version).map(|version| version.version);
        Ok(format!("/apis/custom.metrics.k8s.io/{}", preferred.as_deref().unwrap_or("v1beta1")))
    }

    pub(super) async fn pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &str,
        metric_selector: &str,
    ) -> Result<Samples, String> {
        let failed = |err: kube::Error| {
            format!(
                "unable to fetch metrics from custom metrics API: {}",
                asked(&err, "get pods.custom.metrics.k8s.io")
            )
        };
        let base = self.custom_base().await.map_err(failed)?;
        let query = query(&[("labelSelector", selector), ("metricLabelSelector", metric_selector)]);
        let values: Vec<MetricValue> =
            self.get(&format!("{base}/namespaces/{namespace}/pods/*/{metric}{query}")).await.map_err(failed)?;
        if values.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(values
            .into_iter()
            .map(|value| {
                let window = value.window_seconds.map_or(WINDOW, SignedDuration::from_secs);
                let milli = quantity(&value.value).milli_value();
                (value.described_object.name, Sample { milli, at: value.timestamp, window })
            })
            .collect())
    }

    /// One object's metric, in thousandths. `resource` is `name.group` of its kind; namespaces describe themselves.
    pub(super) async fn object(
        &self,
        namespace: &str,
        resource: &str,
        object: &CrossVersionObjectReference,
        metric: &str,
        metric_selector: &str,
    ) -> Result<i64, String> {
        let failed = |err: kube::Error| {
            let what = format!("get {resource}.custom.metrics.k8s.io {}", object.name);
            format!("unable to fetch metrics from custom metrics API: {}", asked(&err, &what))
        };
        let base = self.custom_base().await.map_err(failed)?;
        let query = query(&[("metricLabelSelector", metric_selector)]);
        let name = &object.name;
        let path = match resource {
            "namespaces" => format!("namespaces/{name}/metrics/{metric}"),
            _ => format!("namespaces/{namespace}/{resource}/{name}/{metric}"),
        };
        let values: Vec<MetricValue> = self.get(&format!("{base}/{path}{query}")).await.map_err(failed)?;
        let value = values.first().ok_or("no metrics returned from custom metrics API")?;
        Ok(quantity(&value.value).milli_value())
    }

    /// All values of a metric from outside the cluster together, in thousandths.
    pub(super) async fn external(&self, namespace: &str, metric: &str, selector: &str) -> Result<i64, String> {
        let query = query(&[("labelSelector", selector)]);
        let url = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}{query}");
        let values: Vec<MetricValue> = self.get(&url).await.map_err(|err| {
            let what = format!("get {metric}.external.metrics.k8s.io");
            format!("unable to fetch metrics from external metrics API: {}", asked(&err, &what))
        })?;
        if values.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(values.iter().fold(0, |sum, value| sum.saturating_add(quantity(&value.value).milli_value())))
    }
}

/// What the server said; a path that it does not know is told as clients tell it.
fn asked(err: &kube::Error, what: &str) -> String {
    use client::error::ApiError;
    match err.status() {
        Some(status) if status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty()) => {
            format!("the server could not find the requested resource ({what})")
        }
        _ => said(err),
    }
}

fn samples_of(
    pods: &[PodMetrics],
    resource: &str,
    container: Option<&str>,
    namespace: &str,
) -> Result<Samples, String> {
    let mut samples = Samples::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let mut counted = pod.containers.iter().filter(|one| container.is_none_or(|name| one.name == name)).peekable();
        if let (Some(container), None) = (container, counted.peek()) {
            return Err(format!("container {container} not present in metrics for pod {namespace}/{name}"));
        }
        // A pod with a part unmeasured counts as not measured.
        let amounts = counted.map(|one| one.usage.get(resource).map(|amount| quantity(amount).milli_value()));
        let Some(milli) = amounts.sum::<Option<i64>>() else { continue };
        let window = component_base::flags::go_duration(&pod.window).unwrap_or_default();
        let window = SignedDuration::try_from(window).unwrap_or_default();
        samples.insert(name, Sample { milli, at: pod.timestamp, window });
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Vec<PodMetrics> {
        let pod = |name: &str, containers: serde_json::Value| {
            json!({ "metadata": { "name": name }, "timestamp": "2026-01-01T00:00:00Z", "window": "30s",
                    "containers": containers })
        };
        let list = json!([
            pod("a", json!([{ "name": "x", "usage": { "cpu": "100m" } }, { "name": "y", "usage": { "cpu": "1" } }])),
            pod("b", json!([{ "name": "x", "usage": { "cpu": "100m" } }, { "name": "y", "usage": {} }])),
        ]);
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn containers_add_up_and_a_missing_one_leaves_the_pod_out() {
        let all = samples_of(&pods(), "cpu", None, "ns").unwrap();
        assert_eq!((all.len(), all["a"].milli, all["a"].window), (1, 1100, SignedDuration::from_secs(30)));
        let one = samples_of(&pods(), "cpu", Some("x"), "ns").unwrap();
        assert_eq!((one["a"].milli, one["b"].milli), (100, 100));
        let err = samples_of(&pods(), "cpu", Some("z"), "ns").unwrap_err();
        assert_eq!(err, "container z not present in metrics for pod ns/a");
    }

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(query(&[("labelSelector", "a=b,c in (d)"), ("x", "")]), "?labelSelector=a%3Db%2Cc+in+%28d%29");
    }
}
