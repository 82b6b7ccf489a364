//! Scales targets by what their pods, other objects or the world outside measure.

mod evaluate;
mod metrics;
mod normalize;
mod replicas;

use std::{collections::HashMap, time::Duration};

use apimachinery::selector::LabelSelector;
use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    events::{Recorder, reference},
    informer::{Event, Lister, NAMESPACE_INDEX, SharedInformer},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
            HorizontalPodAutoscalerStatus, MetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, api::PostParams, core::subresource::Scale};
use parking_lot::Mutex;

use self::{
    evaluate::{Evaluation, Unable},
    metrics::MetricsClient,
    normalize::{Bounds, Memory, normalize},
    replicas::{Look, Tolerance},
};
use crate::{
    context::Context,
    discovery::Resource,
    endpointslice::index_by_namespace,
    error::SyncError,
    pod_control::said,
    pod_resources::quantity,
    scaling::{ScaleClient, group_of},
};

/// Upstream's `--horizontal-pod-autoscaler-*`.
#[derive(Debug, Clone)]
pub struct AutoscalerConfig {
    pub sync_period: Duration,
    pub downscale_stabilization: Duration,
    pub tolerance: f64,
    pub cpu_initialization_period: Duration,
    pub initial_readiness_delay: Duration,
}

impl Default for AutoscalerConfig {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

pub(crate) struct HorizontalPodAutoscalerController {
    client: Client,
    recorder: Recorder,
    autoscalers: SharedInformer<HorizontalPodAutoscaler>,
    lister: Lister<HorizontalPodAutoscaler>,
    pods: SharedInformer<Pod>,
    pod_lister: Lister<Pod>,
    scales: ScaleClient,
    metrics: MetricsClient,
    config: AutoscalerConfig,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

impl HorizontalPodAutoscalerController {
    pub(crate) fn new(context: &Context) -> Self {
        let autoscalers = context.informers.informer::<HorizontalPodAutoscaler>();
        let pods = context.informers.informer::<Pod>();
        pods.add_index(NAMESPACE_INDEX, index_by_namespace);
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
            lister: autoscalers.lister(),
            autoscalers,
            pod_lister: pods.lister(),
            pods,
            scales: ScaleClient::new(context.client.clone()),
            metrics: MetricsClient::new(context.client.clone()),
            config: context.config.autoscaler.clone(),
            memory: Mutex::default(),
        }
    }
}

fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    condition_type: &str,
    value: bool,
    reason: &str,
    message: impl Into<String>,
) {
    let value = if value { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == condition_type);
    let since = known.as_ref().filter(|known| known.status == value).and_then(|k| k.last_transition_time.clone());
    let wanted = HorizontalPodAutoscalerCondition {
        type_: condition_type.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or(Time(Timestamp::now()))),
    };
    match known {
        Some(known) => *known = wanted,
        None => conditions.push(wanted),
    }
}

/// Everything that one look works with.
struct Work<'a> {
    key: &'a ObjectKey,
    autoscaler: &'a HorizontalPodAutoscaler,
    spec: &'a HorizontalPodAutoscalerSpec,
    scale: &'a Scale,
    current: i32,
}

/// What the metrics together want.
struct Wanted {
    replicas: i32,
    metric: String,
    statuses: Vec<MetricStatus>,
    /// Of metrics that said nothing, though others did.
    failure: Option<String>,
}

impl HorizontalPodAutoscalerController {
    fn warn(&self, work: &Work, reason: &str, message: &str) {
        self.recorder.warning(&reference(work.autoscaler), reason, message);
    }

    fn tolerance(&self, spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
        let behavior = spec.behavior.as_ref();
        let own = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            let own = rules.and_then(|rules| rules.tolerance.as_ref()).map(|own| quantity(own).as_f64());
            own.unwrap_or(self.config.tolerance)
        };
        Tolerance {
            down: own(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
            up: own(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
        }
    }

    /// The largest proposal. A metric that fails keeps the others from scaling down.
    async fn ask_metrics(&self, work: &Work<'_>, status: &mut HorizontalPodAutoscalerStatus) -> Result<Wanted, String> {
        let selector_text = work.scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        if selector_text.is_empty() {
            set_condition(
                status,
                "ScalingActive",
                false,
                "InvalidSelector",
                "the HPA target's scale is missing a selector",
            );
            self.warn(work, "SelectorRequired", "selector is required");
            return Err("selector is required".to_owned());
        }
        let selector = LabelSelector::parse(&selector_text).map_err(|err| {
            let message = format!("couldn't convert selector into a corresponding internal selector object: {err}");
            set_condition(status, "ScalingActive", false, "InvalidSelector", message.clone());
            self.warn(work, "InvalidSelector", &message);
            message
        })?;
        let in_namespace = self.pod_lister.in_namespace(work.key.namespace()).into_iter();
        let is_selected = |pod: &Pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.matches(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
        };
        let pods: Vec<_> = in_namespace.filter(|pod| is_selected(pod)).collect();
        let status_replicas = work.scale.status.as_ref().map_or(0, |status| status.replicas);
        let evaluation = Evaluation {
            metrics: &self.metrics,
            scales: &self.scales,
            namespace: work.key.namespace(),
            selector: &selector_text,
            status_replicas,
            look: Look {
                current: work.current,
                pods: &pods,
                tolerance: self.tolerance(work.spec),
                now: Timestamp::now(),
                cpu_initialization: self.config.cpu_initialization_period,
                initial_readiness: self.config.initial_readiness_delay,
            },
            pods: &pods,
        };
        let metrics = work.spec.metrics.as_deref().unwrap_or_default();
        let (mut best, mut statuses, mut failures) = (None, Vec::new(), Vec::new());
        for metric in metrics {
            match evaluation.evaluate(metric).await {
                Ok(proposed) => {
                    statuses.push(proposed.status);
                    if best.as_ref().is_none_or(|(replicas, _)| proposed.replicas > *replicas) {
                        best = Some((proposed.replicas, proposed.name));
                    }
                }
                Err(unable) => {
                    self.warn(work, unable.reason, &unable.message);
                    failures.push(unable);
                }
            }
        }
        status.current_metrics = (!statuses.is_empty()).then(|| statuses.clone());
        let failure = failures.first().map(|Unable { error, .. }| {
            format!("invalid metrics ({} invalid out of {}), first error is: {error}", failures.len(), metrics.len())
        });
        match (best, &failure, failures.first()) {
            (Some((replicas, metric)), _, first) if first.is_none() || replicas >= work.current => {
                let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
                set_condition(status, "ScalingActive", true, "ValidMetricFound", message);
                Ok(Wanted { replicas, metric, statuses, failure })
            }
            (_, Some(failure), Some(first)) => {
                let message = format!("the HPA was unable to compute the replica count: {}", first.message);
                set_condition(status, "ScalingActive", false, first.reason, message);
                Err(failure.clone())
            }
            _ => Ok(Wanted { replicas: work.current, metric: String::new(), statuses, failure }),
        }
    }

    /// How many there should be, and why, if that is another number than there are.
    async fn decide(
        &self,
        work: &Work<'_>,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<Option<(i32, String)>, String> {
        let least = work.spec.min_replicas.unwrap_or(1);
        let most = work.spec.max_replicas;
        if work.current == 0 && least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            set_condition(status, "ScalingActive", false, "ScalingDisabled", message);
            return Ok(None);
        }
        if work.current > most {
            return Ok(Some((most, "Current number of replicas above Spec.MaxReplicas".to_owned())));
        }
        if work.current < least {
            return Ok(Some((least, "Current number of replicas below Spec.MinReplicas".to_owned())));
        }
        let wanted = self.ask_metrics(work, status).await.inspect_err(|err| {
            self.warn(work, "FailedComputeMetricsReplicas", err);
        })?;
        if let Some(failure) = &wanted.failure {
            tracing::debug!(autoscaler = %work.key, failure, "some metrics say nothing");
        }
        status.current_metrics = (!wanted.statuses.is_empty()).then_some(wanted.statuses);
        let normal = {
            let mut all = self.memory.lock();
            let memory = all.entry(work.key.clone()).or_default();
            let now = Timestamp::now();
            memory.drop_old(now);
            if memory.recommendations.is_empty() {
                // Whoever starts anew does not forget what somebody found right before.
                memory.recommendations.push((now, work.current));
            }
            let bounds = Bounds { current: work.current, least, most };
            let behavior = work.spec.behavior.as_ref();
            normalize(memory, behavior, bounds, wanted.replicas, self.config.downscale_stabilization, now)
        };
        set_condition(status, "AbleToScale", true, normal.able.0, normal.able.1);
        set_condition(status, "ScalingLimited", normal.is_limited, normal.limited.0, normal.limited.1);
        let why = if wanted.replicas > work.current {
            format!("{} above target", wanted.metric)
        } else if wanted.replicas < work.current {
            "All metrics below target".to_owned()
        } else {
            String::new()
        };
        Ok((normal.replicas != work.current).then_some((normal.replicas, why)))
    }

    async fn rescale(
        &self,
        work: &Work<'_>,
        resource: &Resource,
        status: &mut HorizontalPodAutoscalerStatus,
        to: i32,
        why: &str,
    ) -> Result<(), SyncError> {
        let mut scale = work.scale.clone();
        scale.spec.get_or_insert_default().replicas = Some(to);
        let target = &work.spec.scale_target_ref.name;
        match self.scales.replace(resource, work.key.namespace(), target, &scale).await {
            Ok(_) => {
                let message = format!("the HPA controller was able to update the target scale to {to}");
                set_condition(status, "AbleToScale", true, "SucceededRescale", message);
                let message = format!("New size: {to}; reason: {why}");
                self.recorder.normal(&reference(work.autoscaler), "SuccessfulRescale", message);
                let now = Timestamp::now();
                self.memory.lock().entry(work.key.clone()).or_default().scaled(now, work.current, to);
                status.last_scale_time = Some(Time(now));
                status.desired_replicas = to;
                Ok(())
            }
            Err(err) => {
                let text = said(&err);
                self.warn(work, "FailedRescale", &format!("New size: {to}; reason: {why}; error: {text}"));
                let message = format!("the HPA controller was unable to update the target scale: {text}");
                set_condition(status, "AbleToScale", false, "FailedUpdateScale", message);
                Err(err.into())
            }
        }
    }

    /// The target's scale, or what is said about not having it.
    async fn target(&self, key: &ObjectKey, spec: &HorizontalPodAutoscalerSpec) -> Result<(Resource, Scale), String> {
        let target = &spec.scale_target_ref;
        let group = group_of(target.api_version.as_deref().unwrap_or_default());
        let found = self.scales.resource(group, &target.kind).await.map_err(|err| said(&err))?;
        let resource = found.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", target.kind))?;
        let scale = self.scales.get(&resource, key.namespace(), &target.name).await.map_err(|err| said(&err))?;
        Ok((resource, scale))
    }

    async fn look(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        spec: &HorizontalPodAutoscalerSpec,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), SyncError> {
        let (resource, scale) = match self.target(key, spec).await {
            Ok(found) => found,
            Err(err) => {
                self.recorder.warning(&reference(autoscaler), "FailedGetScale", err.clone());
                let message = format!("the HPA controller was unable to get the target's current scale: {err}");
                set_condition(status, "AbleToScale", false, "FailedGetScale", message);
                return Err(SyncError::NotYet(err));
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        set_condition(status, "AbleToScale", true, "SucceededGetScale", message);
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        status.current_replicas = Some(current);
        let work = Work { key, autoscaler, spec, scale: &scale, current };
        match self.decide(&work, status).await {
            Err(err) => Err(SyncError::NotYet(err)),
            Ok(None) => {
                status.desired_replicas = current;
                Ok(())
            }
            Ok(Some((to, why))) => self.rescale(&work, &resource, status, to, &why).await,
        }
    }
}

impl Controller for HorizontalPodAutoscalerController {
    const NAME: &'static str = "horizontalpodautoscaler";
    type Error = SyncError;

    fn watches(&self, watches: &mut Watches) {
        watches.map(&self.autoscalers, |event| {
            // Our own writes of the status are no reason to look again before the next turn.
            let matters = match event {
                Event::Updated { old, new } => old.spec != new.spec,
                Event::Added(_) | Event::Deleted(_) => true,
            };
            matters.then(|| event.key())
        });
        watches.read(&self.pods);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(autoscaler) = self.lister.get(key) else {
            self.memory.lock().remove(key);
            return Ok(Action::await_change());
        };
        if autoscaler.metadata.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let mut status = autoscaler.status.clone().unwrap_or_default();
        let outcome = self.look(key, &autoscaler, &autoscaler.spec, &mut status).await;
        status.observed_generation = autoscaler.metadata.generation;
        if autoscaler.status.as_ref() != Some(&status) {
            let mut written = (*autoscaler).clone();
            written.status = Some(status);
            let api = Api::<HorizontalPodAutoscaler>::namespaced(self.client.clone(), key.namespace());
            match api.replace_status(key.name(), &PostParams::default(), &written).await {
                Err(err) if err.is_not_found() || err.is_conflict() => {}
                Err(err) => {
                    self.recorder.warning(&reference(&*autoscaler), "FailedUpdateStatus", said(&err));
                    return Err(err.into());
                }
                Ok(_) => {}
            }
        }
        if let Err(err) = outcome {
            tracing::debug!(autoscaler = %key, %err, "autoscaler cannot be worked on");
        }
        Ok(Action::requeue(self.config.sync_period))
    }
}
