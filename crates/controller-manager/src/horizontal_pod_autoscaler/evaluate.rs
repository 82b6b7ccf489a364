//! One metric of an autoscaler's spec: what it proposes, and what the status says of it.

use std::sync::Arc;

use apimachinery::quantity::{Format, Quantity as Exact};
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus, MetricIdentifier,
            MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
            ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};

use super::{
    metrics::MetricsClient,
    replicas::{Look, Proposal, Target, requests},
};
use crate::{
    pod_resources::quantity,
    scaling::{ScaleClient, group_of},
    selector::selector_of,
};

/// What one metric says.
#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) replicas: i32,
    /// As events and conditions name it.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why one metric says nothing.
#[derive(Debug)]
pub(super) struct Unable {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// With the metric in front, as the reconcile's own error has it.
    pub(super) error: String,
}

pub(super) struct Evaluation<'a> {
    pub(super) metrics: &'a MetricsClient,
    pub(super) scales: &'a ScaleClient,
    pub(super) namespace: &'a str,
    /// Of the target's pods.
    pub(super) selector: &'a str,
    pub(super) status_replicas: i32,
    pub(super) look: Look<'a>,
    pub(super) pods: &'a [Arc<Pod>],
}

fn milli(quantity: &Quantity) -> i64 {
    crate::pod_resources::quantity(quantity).milli_value()
}

fn amount(milli: i64) -> Option<Quantity> {
    Some(Quantity(Exact::from_milli(milli, Format::DecimalSi).to_string()))
}

fn average(proposal: &Proposal) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: amount(proposal.average_milli),
        value: None,
    }
}

fn selector_text(selector: Option<&LabelSelector>) -> Result<String, String> {
    let selector = selector_of(selector).map_err(|err| err.to_string())?;
    Ok(selector.map(|selector| selector.to_string()).unwrap_or_default())
}

fn name_of(metric: &MetricIdentifier) -> Result<(&str, String), String> {
    Ok((&metric.name, selector_text(metric.selector.as_ref())?))
}

impl Evaluation<'_> {
    pub(super) async fn evaluate(&self, spec: &MetricSpec) -> Result<Proposed, Unable> {
        let unable = |reason, what: &str| {
            let what = format!("failed to get {what}");
            move |message: String| Unable { reason, error: format!("{what}: {message}"), message }
        };
        match (spec.type_.as_str(), &spec.object, &spec.pods, &spec.resource, &spec.container_resource, &spec.external)
        {
            ("Object", Some(source), ..) => self
                .object(&source.described_object, &source.metric, &source.target)
                .await
                .map_err(unable("FailedGetObjectMetric", "object metric value")),
            ("Pods", _, Some(source), ..) => self
                .pods(&source.metric, &source.target)
                .await
                .map_err(unable("FailedGetPodsMetric", "pods metric value")),
            ("Resource", _, _, Some(source), ..) => {
                let what = format!("{} resource metric value", source.name);
                let proposal = self.resource(&source.name, None, &source.target).await;
                let proposal = proposal.map_err(unable("FailedGetResourceMetric", &what))?;
                let current = average(&proposal);
                let status = ResourceMetricStatus { name: source.name.clone(), current };
                Ok(Proposed {
                    replicas: proposal.replicas,
                    name: resource_name(&source.name, "resource", &proposal),
                    status: MetricStatus { type_: spec.type_.clone(), resource: Some(status), ..Default::default() },
                })
            }
            ("ContainerResource", _, _, _, Some(source), _) => {
                let what = format!("{} container metric value", source.name);
                let proposal = self.resource(&source.name, Some(&source.container), &source.target).await;
                let proposal = proposal.map_err(unable("FailedGetContainerResourceMetric", &what))?;
                let status = ContainerResourceMetricStatus {
                    name: source.name.clone(),
                    container: source.container.clone(),
                    current: average(&proposal),
                };
                let status =
                    MetricStatus { type_: spec.type_.clone(), container_resource: Some(status), ..Default::default() };
                let name = resource_name(&source.name, "container resource", &proposal);
                Ok(Proposed { replicas: proposal.replicas, name, status })
            }
            ("External", .., Some(source)) => {
                let what = format!("{} external metric value", source.metric.name);
                let proposed = self.external(&source.metric, &source.target).await;
                proposed.map_err(unable("FailedGetExternalMetric", &what))
            }
            (other, ..) => {
                let message = format!("unknown metric source type {other:?}");
                Err(Unable { reason: "InvalidMetricSourceType", error: message.clone(), message })
            }
        }
    }

    async fn resource(&self, name: &str, container: Option<&str>, target: &MetricTarget) -> Result<Proposal, String> {
        let samples = async |what: &str| {
            let samples = self.metrics.resource(self.namespace, self.selector, name, container).await;
            samples
                .map_err(|err| format!("failed to get {name} {what}: unable to get metrics for resource {name}: {err}"))
        };
        let is_cpu = name == "cpu";
        if let Some(value) = &target.average_value {
            let samples = samples("usage").await?;
            let proposal = self.look.by_samples(samples, Target::Average(milli(value)), is_cpu);
            return proposal.map_err(|err| format!("failed to get {name} usage: {err}"));
        }
        let percent = target.average_utilization.ok_or(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set",
        )?;
        let samples = samples("utilization").await?;
        let failed = |err| format!("failed to get {name} utilization: {err}");
        let requests = requests(self.pods, container, name).map_err(failed)?;
        self.look.by_samples(samples, Target::Utilization(percent, &requests), is_cpu).map_err(failed)
    }

    async fn pods(&self, metric: &MetricIdentifier, target: &MetricTarget) -> Result<Proposed, String> {
        let (name, metric_selector) = name_of(metric)?;
        let wanted = target.average_value.as_ref().map(milli).unwrap_or_default();
        let samples = self.metrics.pods(self.namespace, self.selector, name, &metric_selector).await;
        let samples = samples.map_err(|err| format!("unable to get metric {name}: {err}"))?;
        let proposal = self.look.by_samples(samples, Target::Average(wanted), false)?;
        let status = PodsMetricStatus { metric: metric.clone(), current: average(&proposal) };
        Ok(Proposed {
            replicas: proposal.replicas,
            name: format!("pods metric {name}"),
            status: MetricStatus { type_: "Pods".to_owned(), pods: Some(status), ..Default::default() },
        })
    }

    async fn object(
        &self,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
        target: &MetricTarget,
    ) -> Result<Proposed, String> {
        let (name, metric_selector) = name_of(metric)?;
        let group = group_of(object.api_version.as_deref().unwrap_or_default());
        let resource = self.scales.resource(group, &object.kind).await.map_err(|err| crate::pod_control::said(&err))?;
        let resource = resource.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", object.kind))?;
        let usage = self.metrics.object(self.namespace, &resource.name(), object, name, &metric_selector).await;
        let usage = usage.map_err(|err| {
            format!("unable to get metric {name}: {} on {} {}/{err}", object.kind, self.namespace, object.name)
        })?;
        let (replicas, current) = self
            .together(usage, target)
            .ok_or("invalid object metric source: neither a value target nor an average value target was set")?;
        let status = ObjectMetricStatus { described_object: object.clone(), metric: metric.clone(), current };
        Ok(Proposed {
            replicas,
            name: format!("{} metric {name}", object.kind),
            status: MetricStatus { type_: "Object".to_owned(), object: Some(status), ..Default::default() },
        })
    }

    async fn external(&self, metric: &MetricIdentifier, target: &MetricTarget) -> Result<Proposed, String> {
        let (name, metric_selector) = name_of(metric)?;
        let usage = self.metrics.external(self.namespace, name, &metric_selector).await.map_err(|err| {
            let selector = format!("{metric_selector:?}");
            format!("unable to get external metric {}/{name}/{selector}: {err}", self.namespace)
        })?;
        let (replicas, current) = self
            .together(usage, target)
            .ok_or("invalid external metric source: neither a value target nor an average value target was set")?;
        let status = ExternalMetricStatus { metric: metric.clone(), current };
        Ok(Proposed {
            replicas,
            name: format!("external metric {name}({metric_selector})"),
            status: MetricStatus { type_: "External".to_owned(), external: Some(status), ..Default::default() },
        })
    }

    /// One value for all pods.
    fn together(&self, usage: i64, target: &MetricTarget) -> Option<(i32, MetricValueStatus)> {
        if let Some(wanted) = &target.value {
            let status = MetricValueStatus { value: amount(usage), ..MetricValueStatus::default() };
            return Some((self.look.by_value(usage, milli(wanted)), status));
        }
        let wanted = target.average_value.as_ref()?;
        let (replicas, each) = self.look.by_average(usage, quantity(wanted).milli_value(), self.status_replicas);
        Some((replicas, MetricValueStatus { average_value: amount(each), ..MetricValueStatus::default() }))
    }
}

fn resource_name(name: &str, what: &str, proposal: &Proposal) -> String {
    match proposal.utilization {
        Some(_) => format!("{name} {what} utilization (percentage of request)"),
        None => format!("{name} {what}"),
    }
}
