//! Which pods have a worker: the API's pods of this node, the static ones, and what is left over in the runtime.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::events::reference;
use client::informer::SharedInformer;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{self, Host};
use super::worker::{Desired, Worker};
use crate::context::Context;
use crate::orphans::Orphans;
use crate::runtime::PodState;
use crate::static_pods;
use crate::static_url::Named;

/// How often the runtime is asked what runs (upstream's generic PLEG).
const RELIST: Duration = Duration::from_secs(1);
const MIRROR_PATIENCE: Duration = Duration::from_secs(5);

/// The pods that have a worker.
#[derive(Clone, Default)]
pub(crate) struct Pods(Arc<Mutex<HashMap<String, Handle>>>);

struct Handle {
    desired: watch::Sender<Desired>,
    woken: Arc<Notify>,
}

impl Pods {
    /// All pods that should run here, with their current status.
    pub(crate) fn list(&self, context: &Context) -> Vec<Pod> {
        let workers = self.0.lock();
        workers.values().map(|h| with_status(context, desired_pod(&h.desired.borrow()))).collect()
    }

    pub(crate) fn find(&self, context: &Context, namespace: &str, name: &str) -> Option<Pod> {
        let is = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        let workers = self.0.lock();
        let all = workers.values().map(|h| h.desired.borrow().clone()).filter(|d| is(desired_pod(d)));
        // One that goes may still be there when the next of its name has come.
        let found = all.min_by_key(|desired| matches!(desired, Desired::Stop { .. }))?;
        Some(with_status(context, desired_pod(&found)))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

fn desired_pod(desired: &Desired) -> &Arc<Pod> {
    match desired {
        Desired::Run(pod) | Desired::Stop { pod, .. } => pod,
    }
}

fn with_status(context: &Context, pod: &Arc<Pod>) -> Pod {
    let mut pod = (**pod).clone();
    if let Some(status) = context.statuses.current(pod.metadata.uid.as_deref().unwrap_or_default()) {
        pod.status = Some(status);
    }
    pod
}

pub(crate) struct Manager {
    pub context: Arc<Context>,
    pub pods: Pods,
    /// `None` without an apiserver.
    pub informer: Option<SharedInformer<Pod>>,
    pub static_dir: Option<std::path::PathBuf>,
    /// How often that directory is read.
    pub static_period: Duration,
    /// `None` without a URL.
    pub static_url: Option<watch::Receiver<Named>>,
}

/// The static pods that are known of.
struct Statics {
    pods: Vec<Arc<Pod>>,
    /// No source has yet to say which pods it wants.
    is_complete: bool,
}

impl Manager {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let workers = TaskTracker::new();
        let changed = Arc::new(Notify::new());
        if let Some(informer) = &self.informer {
            let changed = Arc::clone(&changed);
            informer.on_event(move |_| changed.notify_one());
            if stop.run_until_cancelled(informer.synced()).await != Some(true) {
                return;
            }
            // Pods are admitted against the node's labels and taints.
            if let Some(node) = &self.context.node_informer
                && stop.run_until_cancelled(node.synced()).await != Some(true)
            {
                return;
            }
        }
        let mut static_tick = tokio::time::interval(self.static_period.max(Duration::from_millis(10)));
        // Before the first look at the runtime: what runs and is wanted by nobody is stopped.
        let mut of_files = self.read_statics();
        static_tick.reset();
        // Whoever runs already keeps his place, so that nobody is admitted before it is known who runs.
        let Some(mut seen) = stop.run_until_cancelled(self.first_look()).await else { return };
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut runtime_down = false;
        let mut orphans = Orphans::default();
        loop {
            let mut looks_at_mirrors = true;
            tokio::select! {
                () = stop.cancelled() => break,
                () = changed.notified() => {}
                () = self.context.dooms.added() => self.wake_doomed(),
                () = self.context.claims.drivers.health_changed() => self.wake_claimants(),
                _ = static_tick.tick() => of_files = self.read_statics(),
                () = change_of(&mut self.static_url) => {}
                _ = relist.tick() => match self.context.runtime.list().await {
                    Ok(now) => {
                        looks_at_mirrors = false;
                        if runtime_down {
                            tracing::info!("the container runtime answers again");
                            runtime_down = false;
                        }
                        self.wake_changed(&seen, &now);
                        seen = now;
                    }
                    Err(error) => {
                        if !runtime_down {
                            tracing::error!(%error, "the container runtime does not answer");
                            runtime_down = true;
                        }
                        continue;
                    }
                },
            }
            let of_url = self.static_url.as_ref().map_or(Some(Vec::new()), |named| named.borrow().clone());
            let statics = Statics {
                is_complete: of_url.is_some(),
                pods: of_files.iter().cloned().chain(of_url.into_iter().flatten()).collect(),
            };
            self.dispatch(&statics, &seen, &workers);
            if statics.is_complete {
                let has_worker = self.pods.0.lock().keys().cloned().collect::<BTreeSet<String>>();
                orphans.look(&self.context, |uid| has_worker.contains(uid) || seen.contains_key(uid));
            }
            if looks_at_mirrors {
                // An apiserver that hangs must not keep pods from their workers.
                let _ = tokio::time::timeout(MIRROR_PATIENCE, self.mirror(&statics)).await;
            }
        }
        // Workers are dropped where they are: pods go on running, and the next start adopts them.
        self.pods.0.lock().clear();
        workers.close();
    }

    /// What runs, once the runtime tells.
    async fn first_look(&self) -> BTreeMap<String, PodState> {
        let mut is_told = false;
        loop {
            match self.context.runtime.list().await {
                Ok(found) => return found,
                Err(error) if !is_told => {
                    tracing::error!(%error, "the container runtime does not say what runs");
                    is_told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RELIST).await;
        }
    }

    fn read_statics(&self) -> Vec<Arc<Pod>> {
        let Some(dir) = &self.static_dir else { return Vec::new() };
        static_pods::read(dir, &self.context.node_name).into_iter().map(Arc::new).collect()
    }

    /// One mirror in the API for each static pod, and none besides.
    async fn mirror(&self, statics: &Statics) {
        let (Some(client), Some(informer)) = (&self.context.client, &self.informer) else { return };
        let present: Vec<Arc<Pod>> =
            informer.lister().list().into_iter().filter(|p| static_pods::is_mirror(p)).collect();
        let has_pod = |mirror: &&Arc<Pod>| statics.pods.iter().any(|pod| static_pods::mirrors(mirror, pod));
        for mirror in present.iter().filter(|m| statics.is_complete && !has_pod(m)) {
            if let Err(error) = static_pods::remove_mirror(client, mirror).await {
                tracing::warn!(pod = mirror.metadata.name, %error, "a mirror without its pod could not be removed");
            }
        }
        for pod in statics.pods.iter().filter(|pod| !present.iter().any(|m| static_pods::mirrors(m, pod))) {
            if let Err(error) = static_pods::make_mirror(client, pod, &self.context.node_name).await {
                tracing::warn!(pod = pod.metadata.name, %error, "the static pod's mirror could not be made");
                continue;
            }
            // A new mirror has no status yet, whatever its predecessor was told.
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            self.context.statuses.tell_again(uid);
            if let Some(handle) = self.pods.0.lock().get(uid) {
                handle.woken.notify_one();
            }
        }
    }

    fn wake_changed(&self, before: &BTreeMap<String, PodState>, now: &BTreeMap<String, PodState>) {
        let workers = self.pods.0.lock();
        for (uid, handle) in workers.iter() {
            if before.get(uid) != now.get(uid) {
                handle.woken.notify_one();
            }
        }
    }

    /// Gives every pod its worker and every worker its pod.
    fn dispatch(&self, statics: &Statics, running: &BTreeMap<String, PodState>, tasks: &TaskTracker) {
        let mut wanted: BTreeMap<String, Desired> = BTreeMap::new();
        let api_pods = self.informer.as_ref().map(|i| i.lister().list()).unwrap_or_default();
        for pod in api_pods.into_iter().filter(|p| !static_pods::is_mirror(p)) {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            let desired = if pod.metadata.deletion_timestamp.is_some() {
                let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                Desired::Stop { pod, grace }
            } else if has_ended(&pod) && !running.contains_key(&uid) {
                continue; // nothing of it is left to look after
            } else {
                Desired::Run(pod)
            };
            wanted.insert(uid, desired);
        }
        for pod in &statics.pods {
            wanted.insert(pod.metadata.uid.clone().unwrap_or_default(), Desired::Run(Arc::clone(pod)));
        }
        let mut workers = self.pods.0.lock();
        workers.retain(|_, handle| !handle.desired.is_closed());
        let is_here = |uid: &str| wanted.contains_key(uid) || running.contains_key(uid);
        self.context.devices.keep_only(is_here);
        self.context.cpus.keep_only(is_here);
        self.context.memory.keep_only(is_here);
        // A pod without an object takes nothing any more, though its containers may need a moment to end.
        let known: BTreeSet<String> = wanted.keys().cloned().collect();
        // What runs and is wanted by nobody goes: its pod was deleted while this kubelet was away, or by force.
        for (uid, state) in running {
            // One that never had a worker may be named by a source that has yet to speak.
            if !wanted.contains_key(uid) && (statics.is_complete || workers.contains_key(uid)) {
                let pod = workers.get(uid).map(|h| Arc::clone(desired_pod(&h.desired.borrow())));
                let pod = pod.unwrap_or_else(|| Arc::new(remains_of(state)));
                let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
                wanted.insert(uid.clone(), Desired::Stop { pod, grace });
            }
        }
        let gone: Vec<String> = workers.keys().filter(|uid| !wanted.contains_key(*uid)).cloned().collect();
        for uid in gone {
            workers.remove(&uid); // its channel closes, and the worker ends
        }
        let mut taken: BTreeMap<String, Arc<Pod>> = workers
            .iter()
            .filter(|(uid, _)| known.contains(*uid))
            .map(|(uid, h)| (uid.clone(), Arc::clone(desired_pod(&h.desired.borrow()))))
            .filter(|(uid, pod)| self.counts(uid, pod))
            .collect();
        // Pods that ran before this kubelet did keep their place; then the oldest come first.
        let mut wanted: Vec<(String, Desired)> = wanted.into_iter().collect();
        wanted.sort_by_key(|(uid, desired)| {
            let pod = desired_pod(desired);
            (!running.contains_key(uid), pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
        });
        for (uid, desired) in wanted {
            match workers.get(&uid) {
                Some(handle) => {
                    handle.desired.send_if_modified(|now| {
                        let differs = !same(now, &desired);
                        if differs {
                            *now = desired.clone();
                        }
                        differs
                    });
                }
                None => {
                    if let Desired::Run(pod) = &desired {
                        self.admit(pod, running.contains_key(&uid), &mut taken);
                    }
                    let (sender, receiver) = watch::channel(desired);
                    let woken = Arc::new(Notify::new());
                    tasks.spawn(Worker::new(Arc::clone(&self.context), receiver, Arc::clone(&woken)).run());
                    workers.insert(uid, Handle { desired: sender, woken });
                }
            }
        }
        self.context.admitted.set(taken);
    }

    /// Whether the pod takes of what the node has: it was not turned away, and has not ended.
    fn counts(&self, uid: &str, pod: &Arc<Pod>) -> bool {
        let ended = |s: &k8s_openapi::api::core::v1::PodStatus| {
            s.phase.as_deref().is_some_and(|p| p == "Succeeded" || p == "Failed")
        };
        let current = self.context.statuses.current(uid).or_else(|| pod.status.clone());
        self.context.dooms.of(uid).is_none() && !current.as_ref().is_some_and(ended)
    }

    /// Takes a pod, or notes why it cannot run here. One that runs already was taken before.
    fn admit(&self, pod: &Arc<Pod>, runs: bool, taken: &mut BTreeMap<String, Arc<Pod>>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if has_ended(pod) {
            return;
        }
        let (node, allocatable) = (self.context.node(), self.context.allocatable_now());
        let host = Host {
            node: node.as_deref(),
            allocatable: &allocatable,
            max_pods: self.context.max_pods,
            unsafe_sysctls: &self.context.unsafe_sysctls,
        };
        let others: Vec<&Pod> = taken.values().map(|p| &**p).collect();
        let refusal = (self.context.shutting_down.refusal())
            .or_else(|| admission::under_pressure(pod, &self.context.pressures.all()))
            .or_else(|| admission::refusal(pod, &host, &others, static_pods::is_static(pod)));
        match refusal {
            Some(refusal) if !runs => {
                self.context.events.warning(&reference(&**pod), &refusal.reason, refusal.message.clone());
                self.context.dooms.add(&uid, refusal.into_doom());
            }
            _ => {
                taken.insert(uid, Arc::clone(pod));
            }
        }
    }

    /// Wakes the workers of pods that say how their devices are.
    fn wake_claimants(&self) {
        let pods = self.context.claims.pods();
        let workers = self.pods.0.lock();
        for handle in pods.iter().filter_map(|uid| workers.get(uid)) {
            handle.woken.notify_one();
        }
    }

    /// Wakes the worker of a pod, whose fate was decided elsewhere.
    fn wake_doomed(&self) {
        let workers = self.pods.0.lock();
        for (uid, handle) in workers.iter() {
            if self.context.dooms.of(uid).is_some() {
                handle.woken.notify_one();
            }
        }
    }
}

/// Returns when the URL names other pods.
async fn change_of(url: &mut Option<watch::Receiver<Named>>) {
    if let Some(named) = url
        && named.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await; // there is no URL, or nobody asks it any more
}

fn has_ended(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed")
}

/// Our own writes of the status come back through the watch; they are no reason to work again.
fn same(a: &Desired, b: &Desired) -> bool {
    let equal = |x: &Pod, y: &Pod| {
        x.spec == y.spec
            && x.metadata.annotations == y.metadata.annotations
            && x.metadata.labels == y.metadata.labels
            && x.metadata.generation == y.metadata.generation
            && gates(x) == gates(y)
    };
    match (a, b) {
        (Desired::Run(x), Desired::Run(y)) => Arc::ptr_eq(x, y) || equal(x, y),
        (Desired::Stop { grace: g, .. }, Desired::Stop { grace: h, .. }) => g == h,
        _ => false,
    }
}

/// Conditions that others set, which readiness gates look at.
fn gates(pod: &Pod) -> Vec<(String, String)> {
    let wanted: Vec<String> =
        pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten()).map(|g| g.condition_type.clone()).collect();
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| wanted.contains(&c.type_)).map(|c| (c.type_.clone(), c.status.clone())).collect()
}

/// A pod that only the runtime remembers.
fn remains_of(state: &PodState) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(state.name.clone()),
            namespace: Some(state.namespace.clone()),
            uid: Some(state.uid.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}
