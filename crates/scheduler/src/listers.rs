//! What plugins read besides nodes and pods.

use std::any::Any;
use std::sync::Arc;

use client::informer::{Event, Kind, Lister, SharedInformer, SharedInformerFactory};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

use crate::framework::{Actions, Change, ClusterEvent, EventResource};

/// A change of an object that plugins read, for the queue.
pub struct ObjectChange {
    pub event: ClusterEvent,
    old: Option<Arc<dyn Any + Send + Sync>>,
    new: Option<Arc<dyn Any + Send + Sync>>,
}

impl ObjectChange {
    fn of<K: Kind>(resource: EventResource, event: &Event<K>) -> Self {
        fn erased<K: Kind>(object: Option<&Arc<K>>) -> Option<Arc<dyn Any + Send + Sync>> {
            object.map(|object| object.clone() as Arc<dyn Any + Send + Sync>)
        }
        let action = match event {
            Event::Added(_) => Actions::ADD,
            Event::Updated { .. } => Actions::UPDATE,
            Event::Deleted(_) => Actions::DELETE,
        };
        Self { event: ClusterEvent::new(resource, action), old: erased(event.old()), new: erased(event.now()) }
    }

    /// As hints take it.
    #[must_use]
    pub fn change(&self) -> Change<'_> {
        Change::Object { old: self.old.as_deref(), new: self.new.as_deref() }
    }
}

const NAMESPACE_INDEX: &str = client::informer::NAMESPACE_INDEX;

/// One line a kind: the field, the kind, and the events that its changes are for the queue.
macro_rules! listers {
    ($($field:ident: $kind:ty $(=> $resource:ident)?,)*) => {
        /// Caches of the kinds that plugins look at.
        #[derive(Clone)]
        pub struct Listers {
            $(pub $field: Lister<$kind>,)*
            /// Only where gangs are scheduled.
            pub pod_groups: Lister<PodGroup>,
        }

        impl Listers {
            /// Starts a watch of each kind; `notify` hears of every change that may help a pod.
            #[must_use]
            pub fn watch(
                informers: &SharedInformerFactory,
                gangs: bool,
                notify: impl Fn(ObjectChange) + Clone + Send + Sync + 'static,
            ) -> Self {
                Self {
                    $($field: {
                        let informer: SharedInformer<$kind> = informers.informer();
                        informer.add_index(NAMESPACE_INDEX, namespace_of);
                        $(
                            let notify = notify.clone();
                            informer.on_event(move |event| notify(ObjectChange::of(EventResource::$resource, event)));
                        )?
                        informer.lister()
                    },)*
                    pod_groups: if gangs {
                        let informer: SharedInformer<PodGroup> = informers.informer();
                        informer.on_event(move |event| notify(ObjectChange::of(EventResource::PodGroup, event)));
                        informer.lister()
                    } else {
                        fixed(Vec::new())
                    },
                }
            }

            /// Of a cluster that has none of these objects.
            #[must_use]
            pub fn empty() -> Self {
                Self { $($field: fixed(Vec::new()),)* pod_groups: fixed(Vec::new()) }
            }
        }
    };
}

listers! {
    disruption_budgets: PodDisruptionBudget,
    services: Service,
    replication_controllers: ReplicationController,
    replica_sets: ReplicaSet,
    stateful_sets: StatefulSet,
    volumes: PersistentVolume => PersistentVolume,
    claims: PersistentVolumeClaim => PersistentVolumeClaim,
    storage_classes: StorageClass => StorageClass,
    csi_nodes: CSINode => CsiNode,
    csi_drivers: CSIDriver => CsiDriver,
    csi_capacities: CSIStorageCapacity => CsiStorageCapacity,
    volume_attachments: VolumeAttachment => VolumeAttachment,
    resource_claims: ResourceClaim => ResourceClaim,
    resource_slices: ResourceSlice => ResourceSlice,
    device_classes: DeviceClass => DeviceClass,
}

fn namespace_of<K: Kind>(object: &K) -> Vec<String> {
    vec![object.meta().namespace.clone().unwrap_or_default()]
}

/// A lister of objects that never change, for simulations and tests.
#[must_use]
pub fn fixed<K: Kind>(objects: Vec<K>) -> Lister<K> {
    let informer = SharedInformer::fixed(objects);
    informer.add_index(NAMESPACE_INDEX, namespace_of);
    informer.lister()
}
