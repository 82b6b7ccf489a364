//! What happens in a cluster, named as plugins name what may help a pod that they turned down.

use std::any::Any;
use std::ops::BitOr;

use k8s_openapi::api::core::v1::Node;

use crate::pod::PodInfo;

/// A kind of object whose changes may let a pod be scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventResource {
    /// Pods on nodes.
    AssignedPod,
    /// The unschedulable pod itself.
    UnscheduledPod,
    Node,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
    CsiNode,
    CsiDriver,
    CsiStorageCapacity,
    VolumeAttachment,
    ResourceClaim,
    ResourceSlice,
    DeviceClass,
    PodGroup,
}

impl EventResource {
    fn name(self) -> &'static str {
        match self {
            Self::AssignedPod => "AssignedPod",
            Self::UnscheduledPod => "UnschedulablePod",
            Self::Node => "Node",
            Self::PersistentVolume => "PersistentVolume",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::StorageClass => "StorageClass",
            Self::CsiNode => "CSINode",
            Self::CsiDriver => "CSIDriver",
            Self::CsiStorageCapacity => "CSIStorageCapacity",
            Self::VolumeAttachment => "VolumeAttachment",
            Self::ResourceClaim => "ResourceClaim",
            Self::ResourceSlice => "ResourceSlice",
            Self::DeviceClass => "DeviceClass",
            Self::PodGroup => "PodGroup",
        }
    }
}

/// A set of ways in which an object changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Actions(u16);

impl Actions {
    pub const NONE: Self = Self(0);
    pub const ADD: Self = Self(1);
    pub const DELETE: Self = Self(1 << 1);
    pub const UPDATE_NODE_ALLOCATABLE: Self = Self(1 << 2);
    pub const UPDATE_NODE_LABEL: Self = Self(1 << 3);
    /// Also whether the node is unschedulable.
    pub const UPDATE_NODE_TAINT: Self = Self(1 << 4);
    pub const UPDATE_NODE_CONDITION: Self = Self(1 << 5);
    pub const UPDATE_NODE_ANNOTATION: Self = Self(1 << 6);
    pub const UPDATE_POD_LABEL: Self = Self(1 << 7);
    pub const UPDATE_POD_SCALE_DOWN: Self = Self(1 << 8);
    pub const UPDATE_POD_TOLERATION: Self = Self(1 << 9);
    pub const UPDATE_POD_GATES_ELIMINATED: Self = Self(1 << 10);
    /// Any other change.
    pub const UPDATE: Self = Self(1 << 11);

    const NAMES: [(Self, &'static str); 12] = [
        (Self::ADD, "Add"),
        (Self::DELETE, "Delete"),
        (Self::UPDATE_NODE_ALLOCATABLE, "UpdateNodeAllocatable"),
        (Self::UPDATE_NODE_LABEL, "UpdateNodeLabel"),
        (Self::UPDATE_NODE_TAINT, "UpdateNodeTaint"),
        (Self::UPDATE_NODE_CONDITION, "UpdateNodeCondition"),
        (Self::UPDATE_NODE_ANNOTATION, "UpdateNodeAnnotation"),
        (Self::UPDATE_POD_LABEL, "UpdatePodLabel"),
        (Self::UPDATE_POD_SCALE_DOWN, "UpdatePodScaleDown"),
        (Self::UPDATE_POD_TOLERATION, "UpdatePodToleration"),
        (Self::UPDATE_POD_GATES_ELIMINATED, "UpdatePodSchedulingGatesEliminated"),
        (Self::UPDATE, "Update"),
    ];

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Actions {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.or(other)
    }
}

/// Changes that are of interest, or one that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterEvent {
    pub resource: EventResource,
    pub actions: Actions,
}

impl ClusterEvent {
    #[must_use]
    pub const fn new(resource: EventResource, actions: Actions) -> Self {
        Self { resource, actions }
    }

    pub const NODE_ADD: Self = Self::new(EventResource::Node, Actions::ADD);

    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.resource == other.resource && self.actions.meets(other.actions)
    }

    /// Upstream's label for metrics: `NodeAdd`, `AssignedPodDelete` …
    #[must_use]
    pub fn label(self) -> String {
        let names = Actions::NAMES.iter().filter(|(action, _)| self.actions.meets(*action));
        let names: Vec<&str> = names.map(|(_, name)| name.strip_prefix(self.resource.name()).unwrap_or(name)).collect();
        // Upstream's actions on nodes and pods carry the kind in their own name.
        match names.first() {
            Some(first) if first.starts_with("UpdateNode") || first.starts_with("UpdatePod") => names.join("_"),
            _ => format!("{}{}", self.resource.name(), names.join("_")),
        }
    }
}

/// What happened, with the objects as far as plugins look at them.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A pod on a node, before and now.
    AssignedPod {
        old: Option<&'a PodInfo>,
        new: Option<&'a PodInfo>,
    },
    /// The unschedulable pod itself.
    UnscheduledPod {
        old: &'a PodInfo,
        new: &'a PodInfo,
    },
    Node {
        old: Option<&'a Node>,
        new: Option<&'a Node>,
    },
    /// An object of another kind, which [`Change::object`] reads.
    Object {
        old: Option<&'a (dyn Any + Send + Sync)>,
        new: Option<&'a (dyn Any + Send + Sync)>,
    },
}

impl<'a> Change<'a> {
    /// The object before and now, if it is of this kind.
    #[must_use]
    pub fn object<K: 'static>(self) -> (Option<&'a K>, Option<&'a K>) {
        match self {
            Self::Object { old, new } => {
                (old.and_then(|old| old.downcast_ref()), new.and_then(|new| new.downcast_ref()))
            }
            _ => (None, None),
        }
    }
}

/// Whether a change may let a pod be scheduled that a plugin turned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    Queue,
    Skip,
}

impl Hint {
    #[must_use]
    pub fn queue_if(helps: bool) -> Self {
        if helps { Self::Queue } else { Self::Skip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_labelled_as_upstream_labels_them() {
        for (event, want) in [
            (ClusterEvent::NODE_ADD, "NodeAdd"),
            (ClusterEvent::new(EventResource::AssignedPod, Actions::DELETE), "AssignedPodDelete"),
            (ClusterEvent::new(EventResource::Node, Actions::UPDATE_NODE_TAINT), "UpdateNodeTaint"),
            (ClusterEvent::new(EventResource::CsiNode, Actions::UPDATE), "CSINodeUpdate"),
        ] {
            assert_eq!(event.label(), want);
        }
    }
}
