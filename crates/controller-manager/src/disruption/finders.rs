//! How many pods the controllers of a budget's pods want.

use std::{collections::BTreeMap, sync::Arc};

use client::{
    ObjectKey,
    controller::Watches,
    informer::{Lister, SharedInformer},
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::Resource;

use crate::{
    context::Context,
    owner::controller_of,
    scaling::{ScaleClient, group_of, is_missing},
};

/// Built-in controllers are found in caches, others by their `scale` subresource.
pub(super) struct Finders {
    replica_sets: SharedInformer<ReplicaSet>,
    deployments: SharedInformer<Deployment>,
    stateful_sets: SharedInformer<StatefulSet>,
    replication_controllers: SharedInformer<ReplicationController>,
    replica_set_lister: Lister<ReplicaSet>,
    deployment_lister: Lister<Deployment>,
    stateful_set_lister: Lister<StatefulSet>,
    replication_controller_lister: Lister<ReplicationController>,
    scales: ScaleClient,
}

/// What the controllers of the pods want, and the pods that have none.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) scale: i32,
    pub(super) unmanaged: Vec<String>,
}

/// A controller that was found: itself, and how many pods it wants.
type Scale = Option<(String, i32)>;

impl Finders {
    pub(super) fn new(context: &Context) -> Self {
        let replica_sets = context.informers.informer::<ReplicaSet>();
        let deployments = context.informers.informer::<Deployment>();
        let stateful_sets = context.informers.informer::<StatefulSet>();
        let replication_controllers = context.informers.informer::<ReplicationController>();
        Self {
            replica_set_lister: replica_sets.lister(),
            deployment_lister: deployments.lister(),
            stateful_set_lister: stateful_sets.lister(),
            replication_controller_lister: replication_controllers.lister(),
            replica_sets,
            deployments,
            stateful_sets,
            replication_controllers,
            scales: ScaleClient::new(context.client.clone()),
        }
    }

    pub(super) fn watches(&self, watches: &mut Watches) {
        watches.read(&self.replica_sets);
        watches.read(&self.deployments);
        watches.read(&self.stateful_sets);
        watches.read(&self.replication_controllers);
    }

    /// Each controller counts once, however many of the pods are its.
    pub(super) async fn find(&self, pods: &[Arc<Pod>]) -> Result<Found, String> {
        let mut found = Found::default();
        let mut asked = BTreeMap::new();
        let mut scales = BTreeMap::new();
        for pod in pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(owner) = controller_of(&**pod) else {
                found.unmanaged.push(name);
                continue;
            };
            if asked.insert(owner.uid.clone(), ()).is_some() {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            match self.scale_of(owner, namespace).await? {
                Some((uid, replicas)) => scales.insert(uid, replicas),
                None => return Err(format!("found no controllers for pod {name:?}")),
            };
        }
        found.scale = scales.values().fold(0, |sum: i32, replicas| sum.saturating_add(*replicas));
        Ok(found)
    }

    async fn scale_of(&self, owner: &OwnerReference, namespace: &str) -> Result<Scale, String> {
        let key = ObjectKey::new(namespace, &owner.name);
        let uid = Some(&owner.uid);
        let of = |uid: &Option<String>, replicas: Option<i32>| Some((uid.clone()?, replicas.unwrap_or(1)));
        match (group_of(&owner.api_version), owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let found = self.replica_set_lister.get(&key).filter(|set| set.metadata.uid.as_ref() == uid);
                let Some(set) = found else { return Ok(None) };
                match controller_of(&*set) {
                    None => Ok(of(&set.metadata.uid, set.spec.as_ref().and_then(|spec| spec.replicas))),
                    Some(owner) if owner.kind == "Deployment" && group_of(&owner.api_version) == "apps" => {
                        let deployment = self.deployment_lister.get(&ObjectKey::new(namespace, &owner.name));
                        let deployment = deployment.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid));
                        Ok(deployment.and_then(|found| {
                            of(&found.metadata.uid, found.spec.as_ref().and_then(|spec| spec.replicas))
                        }))
                    }
                    Some(_) => Ok(of(&set.metadata.uid, set.spec.as_ref().and_then(|spec| spec.replicas))),
                }
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful_set_lister.get(&key).filter(|set| set.metadata.uid.as_ref() == uid);
                Ok(set.and_then(|set| of(&set.metadata.uid, set.spec.as_ref().and_then(|spec| spec.replicas))))
            }
            ("", "ReplicationController") => {
                let set = self.replication_controller_lister.get(&key);
                let set = set.filter(|set| set.metadata.uid.as_ref() == uid);
                Ok(set.and_then(|set| of(&set.metadata.uid, set.spec.as_ref().and_then(|spec| spec.replicas))))
            }
            (group, kind) => self.asked(group, kind, owner, namespace).await,
        }
    }

    async fn asked(&self, group: &str, kind: &str, owner: &OwnerReference, namespace: &str) -> Result<Scale, String> {
        let said = |err: kube::Error| crate::pod_control::said(&err);
        let Some(resource) = self.scales.resource(group, kind).await.map_err(said)? else {
            return Err(format!("no matches for kind {kind:?} in group {group:?}"));
        };
        if !resource.has_scale {
            return Err(format!("{} does not implement the scale subresource", resource.name()));
        }
        match self.scales.get(&resource, namespace, &owner.name).await {
            Ok(scale) if scale.meta().uid.as_ref() == Some(&owner.uid) => {
                let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or_default();
                Ok(Some((owner.uid.clone(), replicas)))
            }
            Ok(_) => Ok(None),
            Err(err) if is_missing(&resource, &err) => Ok(None),
            Err(err) => Err(said(err)),
        }
    }
}
