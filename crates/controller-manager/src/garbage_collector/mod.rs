//! Deletes what its owners leave behind, and leaves behind what they ask to be left.

mod graph;
mod monitors;
mod plan;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use client::{
    error::{ApiError, ignore_not_found},
    workqueue::{Backoff, Queue},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::PartialObjectMeta,
};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::{sync::Notify, task::JoinSet, time::timeout};

use self::{
    graph::{Coordinates, Graph, GroupKind, Observed, Uid, Work},
    monitors::{Monitors, Names, group_of, is_followed, kind_of},
    plan::{FOREGROUND, ORPHAN, Plan, Worth, plan},
};
use crate::{
    context::Context,
    discovery::{Discovered, Resource, discover},
    error::SyncError,
};

/// How often kinds are discovered anew when no CRD or APIService changed, which tell by themselves.
const REDISCOVER: Duration = Duration::from_secs(300);
/// Changes of CRDs and APIServices come in bursts, and are served a moment after they are written.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the first lists may take before work begins without the kinds that cannot be listed.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// Owners that are known not to exist.
const ABSENT: usize = 500;

/// What the watches and the workers share.
struct Shared {
    graph: Mutex<Graph>,
    names: Names,
    examine: Queue<Uid>,
    orphan: Queue<Uid>,
    kinds: RwLock<HashMap<GroupKind, Resource>>,
    rediscover: Notify,
    absent: Mutex<Absent>,
}

#[derive(Default)]
struct Absent {
    known: HashSet<Uid>,
    order: VecDeque<Uid>,
}

impl Absent {
    fn insert(&mut self, uid: &Uid) {
        if self.known.insert(uid.clone()) {
            self.order.push_back(uid.clone());
        }
        if self.order.len() > ABSENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Shared {
    fn observe(&self, object: &Observed) {
        let work = self.graph.lock().observe(object);
        self.queue(work);
    }

    fn forget(&self, uid: &Uid) {
        let work = self.graph.lock().forget(uid);
        if !work.examine.is_empty() {
            self.absent.lock().insert(uid);
        }
        self.queue(work);
    }

    fn queue(&self, work: Work) {
        work.examine.into_iter().for_each(|uid| self.examine.add(uid));
        work.orphan.into_iter().for_each(|uid| self.orphan.add(uid));
    }

    /// Forgets the objects of the kind that a new list does not have.
    fn keep_only(&self, kind: &GroupKind, listed: &HashSet<Uid>) {
        let known = self.graph.lock().of_kind(kind);
        known.difference(listed).for_each(|gone| self.forget(gone));
    }

    /// The kind is not served any more. Its objects are not gone for that; they are only not looked after.
    fn forget_kind(&self, kind: &GroupKind) {
        let mut graph = self.graph.lock();
        for uid in graph.of_kind(kind) {
            let _ = graph.forget(&uid);
        }
    }

    fn kind_changed(&self, kind: &GroupKind) {
        let changes_kinds =
            [("apiextensions.k8s.io", "CustomResourceDefinition"), ("apiregistration.k8s.io", "APIService")];
        if changes_kinds.contains(&(&*kind.group, &*kind.kind)) {
            self.rediscover.notify_one();
        }
    }
}

/// Runs the garbage collector until the end.
pub(crate) async fn run(context: Context) {
    let queue = |name: &str| Queue::new(name, Backoff::default(), context.metrics.as_ref());
    let shared = Arc::new(Shared {
        graph: Mutex::default(),
        names: Names::default(),
        examine: queue("garbage_collector_attempt_to_delete"),
        orphan: queue("garbage_collector_attempt_to_orphan"),
        kinds: RwLock::default(),
        rediscover: Notify::new(),
        absent: Mutex::default(),
    });
    let mut monitors = Monitors::new(context.client.clone(), shared.clone(), context.stop.clone());
    let mut workers = JoinSet::new();
    let mut is_working = false;
    loop {
        match discover(&context.client).await {
            Ok(discovered) => {
                let changed = take_kinds(&shared, &mut monitors, discovered);
                if changed && timeout(FIRST_LISTS, monitors.synced()).await.is_err() {
                    tracing::warn!(kinds = ?monitors.unsynced(), "some kinds cannot be listed");
                }
                if !is_working {
                    is_working = true;
                    for _ in 0..context.config.concurrent.garbage_collector {
                        let collector = Collector { client: context.client.clone(), shared: shared.clone() };
                        workers.spawn(collector.work());
                    }
                }
            }
            Err(err) => {
                tracing::warn!(%err, "kinds cannot be discovered");
                shared.rediscover.notify_one();
            }
        }
        let next = async {
            let _ = timeout(REDISCOVER, shared.rediscover.notified()).await;
            tokio::time::sleep(SETTLE).await;
        };
        if context.stop.run_until_cancelled(next).await.is_none() {
            break;
        }
    }
    shared.examine.shut_down();
    shared.orphan.shut_down();
    while workers.join_next().await.is_some() {}
}

/// Whether other kinds are followed than before.
fn take_kinds(shared: &Shared, monitors: &mut Monitors, discovered: Discovered) -> bool {
    let stale: HashSet<_> = discovered.stale.iter().map(|version| group_of(version).to_owned()).collect();
    let mut kinds: HashMap<_, _> =
        discovered.resources.into_iter().map(|resource| (kind_of(&resource), resource)).collect();
    // A group whose server does not answer keeps the kinds that it had.
    for (kind, resource) in shared.kinds.read().iter().filter(|(kind, _)| stale.contains(&*kind.group)) {
        kinds.entry(kind.clone()).or_insert_with(|| resource.clone());
    }
    let followed = kinds.values().filter(|resource| is_followed(resource)).cloned().collect();
    *shared.kinds.write() = kinds;
    monitors.set(followed)
}

/// One worker.
struct Collector {
    client: Client,
    shared: Arc<Shared>,
}

impl Collector {
    async fn work(self) {
        loop {
            let (uid, is_orphaning) = tokio::select! {
                uid = self.shared.examine.get() => (uid, false),
                uid = self.shared.orphan.get() => (uid, true),
            };
            let Some(uid) = uid else { return };
            let queue = if is_orphaning { &self.shared.orphan } else { &self.shared.examine };
            let outcome = if is_orphaning { self.orphan_dependents(&uid).await } else { self.examine(&uid).await };
            match outcome {
                Ok(()) => queue.forget(&uid),
                Err(err) => {
                    if client::controller::ReconcileError::is_routine(&err) {
                        tracing::debug!(%uid, %err, "object has to be examined again");
                    } else {
                        tracing::error!(%uid, err = &err as &dyn std::error::Error, "garbage collection failed");
                    }
                    queue.add_rate_limited(uid.clone());
                }
            }
            queue.done(&uid);
        }
    }

    /// Looks at one object, and deletes it if nobody owns it any more.
    async fn examine(&self, uid: &Uid) -> Result<(), SyncError> {
        let Some(facts) = self.shared.graph.lock().facts(uid) else { return Ok(()) };
        if facts.is_leaving && !facts.in_foreground {
            return Ok(());
        }
        let (api, live) = self.read(&facts.at).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(&**uid)) else {
            self.shared.forget(uid);
            return Ok(());
        };
        if facts.in_foreground {
            return self.continue_foreground(&api, uid, &live).await;
        }
        let references = live.metadata.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return if facts.is_virtual {
                Err(SyncError::NotYet("its watch does not show it yet".to_owned()))
            } else {
                Ok(())
            };
        }
        let mut owners = Vec::with_capacity(references.len());
        for reference in references {
            let worth = self.worth_of(&facts.at, &reference).await?;
            owners.push((reference, worth));
        }
        let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        match plan(&finalizers, &owners, facts.has_dependents, facts.has_waiting_dependent) {
            Plan::Leave => Ok(()),
            Plan::KeepOwners(kept) => self.write_owners(&api, &live, &kept).await,
            Plan::DeleteInForeground { unblocked } => {
                if let Some(owners) = unblocked {
                    self.write_owners(&api, &live, &owners).await?;
                    return self.delete(&api, &live, PropagationPolicy::Foreground, false).await;
                }
                self.delete(&api, &live, PropagationPolicy::Foreground, true).await
            }
            Plan::Delete(policy) => self.delete(&api, &live, policy, true).await,
        }
    }

    /// Lets an object go whose dependents are gone, or sees to those that are left.
    async fn continue_foreground(
        &self,
        api: &Api<DynamicObject>,
        uid: &Uid,
        live: &PartialObjectMeta<DynamicObject>,
    ) -> Result<(), SyncError> {
        let blocking = self.shared.graph.lock().blocking_dependents_of(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(api, live, FOREGROUND).await;
        }
        let idle = blocking.into_iter().filter(|(_, waits)| !waits);
        idle.for_each(|(dependent, _)| self.shared.examine.add(dependent));
        Ok(())
    }

    async fn worth_of(&self, of: &Coordinates, reference: &OwnerReference) -> Result<Worth, SyncError> {
        let uid = Uid::from(reference.uid.as_str());
        if self.shared.absent.lock().known.contains(&uid) {
            return Ok(Worth::Dangling);
        }
        let kind = GroupKind { group: group_of(&reference.api_version).into(), kind: reference.kind.as_str().into() };
        let at = Coordinates { kind, namespace: of.namespace.clone(), name: reference.name.as_str().into() };
        if of.namespace.is_empty() && self.resource(&at.kind)?.is_namespaced {
            return Err(SyncError::NotYet("a cluster-scoped object names a namespaced owner".to_owned()));
        }
        let (_, owner) = self.read(&at).await?;
        let Some(owner) = owner.filter(|owner| owner.metadata.uid.as_deref() == Some(&*uid)) else {
            self.shared.absent.lock().insert(&uid);
            return Ok(Worth::Dangling);
        };
        let finalizers = owner.metadata.finalizers.unwrap_or_default();
        let waits = owner.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FOREGROUND);
        Ok(if waits { Worth::Waiting } else { Worth::Solid })
    }

    /// Takes the references to an object that leaves out of its dependents, then lets it go.
    async fn orphan_dependents(&self, uid: &Uid) -> Result<(), SyncError> {
        let (facts, dependents) = {
            let graph = self.shared.graph.lock();
            let Some(facts) = graph.facts(uid) else { return Ok(()) };
            let dependents = graph.dependents_of(uid);
            (facts, dependents.into_iter().filter_map(|uid| Some((graph.facts(&uid)?.at, uid))).collect::<Vec<_>>())
        };
        for (at, dependent) in dependents {
            let (api, live) = self.read(&at).await?;
            let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(&*dependent)) else { continue };
            let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
            let before = owners.len();
            owners.retain(|owner| owner.uid != **uid);
            if owners.len() < before {
                self.write_owners(&api, &live, &owners).await?;
            }
        }
        let (api, live) = self.read(&facts.at).await?;
        match live.filter(|live| live.metadata.uid.as_deref() == Some(&**uid)) {
            Some(live) => self.remove_finalizer(&api, &live, ORPHAN).await,
            None => Ok(()),
        }
    }

    fn resource(&self, kind: &GroupKind) -> Result<Resource, SyncError> {
        let known = self.shared.kinds.read().get(kind).cloned();
        known.ok_or_else(|| SyncError::NotYet(format!("no kind {} in group {:?}", kind.kind, kind.group)))
    }

    async fn read(
        &self,
        at: &Coordinates,
    ) -> Result<(Api<DynamicObject>, Option<PartialObjectMeta<DynamicObject>>), SyncError> {
        let resource = self.resource(&at.kind)?;
        let api = if resource.is_namespaced {
            Api::namespaced_with(self.client.clone(), &at.namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        };
        let live = api.get_metadata_opt(&at.name).await?;
        Ok((api, live))
    }

    /// `as_read`: only while it is just as it was read, so that an owner that was added meanwhile counts.
    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        live: &PartialObjectMeta<DynamicObject>,
        policy: PropagationPolicy,
        as_read: bool,
    ) -> Result<(), SyncError> {
        let resource_version = live.metadata.resource_version.clone().filter(|_| as_read);
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: live.metadata.uid.clone(), resource_version }),
            ..DeleteParams::default()
        };
        ignore_not_found(api.delete(name_of(live), &params).await)?;
        Ok(())
    }

    async fn write_owners(
        &self,
        api: &Api<DynamicObject>,
        live: &PartialObjectMeta<DynamicObject>,
        owners: &[OwnerReference],
    ) -> Result<(), SyncError> {
        self.patch(api, live, json!({ "ownerReferences": owners })).await
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        live: &PartialObjectMeta<DynamicObject>,
        finalizer: &str,
    ) -> Result<(), SyncError> {
        let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|name| name != finalizer);
        if finalizers.len() == before {
            return Ok(());
        }
        self.patch(api, live, json!({ "finalizers": finalizers })).await
    }

    /// Changes metadata of the object as it was read.
    async fn patch(
        &self,
        api: &Api<DynamicObject>,
        live: &PartialObjectMeta<DynamicObject>,
        mut metadata: serde_json::Value,
    ) -> Result<(), SyncError> {
        metadata["uid"] = json!(live.metadata.uid);
        metadata["resourceVersion"] = json!(live.metadata.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match api.patch_metadata(name_of(live), &PatchParams::default(), &patch).await {
            Err(err) if !err.is_not_found() => Err(err.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn name_of(live: &PartialObjectMeta<DynamicObject>) -> &str {
    live.metadata.name.as_deref().unwrap_or_default()
}
