//! What to do about an object, given what the server says of it and of its owners.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// What an owner reference is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// The owner lives.
    Solid,
    /// The owner does not exist, or it is another object of the same name.
    Dangling,
    /// The owner is being deleted in the foreground and waits for its dependents.
    Waiting,
}

#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Leave,
    /// Write the references that stay.
    KeepOwners(Vec<OwnerReference>),
    /// Delete in the foreground; the references to be written first, where a circle would block for ever.
    DeleteInForeground {
        unblocked: Option<Vec<OwnerReference>>,
    },
    Delete(PropagationPolicy),
}

pub(super) fn plan(
    finalizers: &[String],
    owners: &[(OwnerReference, Worth)],
    has_dependents: bool,
    has_waiting_dependent: bool,
) -> Plan {
    if owners.is_empty() {
        return Plan::Leave;
    }
    let has = |worth| owners.iter().any(|(_, of)| *of == worth);
    if has(Worth::Solid) {
        let solid = || owners.iter().filter(|(_, worth)| *worth == Worth::Solid).map(|(owner, _)| owner.clone());
        return if has(Worth::Dangling) || has(Worth::Waiting) {
            Plan::KeepOwners(solid().collect())
        } else {
            Plan::Leave
        };
    }
    if has(Worth::Waiting) && has_dependents {
        // Its dependents go first; if one of them waits already there may be a circle of owners.
        let unblock = |(owner, _): &(OwnerReference, Worth)| OwnerReference {
            block_owner_deletion: owner.block_owner_deletion.map(|_| false),
            ..owner.clone()
        };
        let unblocked = has_waiting_dependent.then(|| owners.iter().map(unblock).collect());
        return Plan::DeleteInForeground { unblocked };
    }
    let asks = |finalizer: &str| finalizers.iter().any(|name| name == finalizer);
    Plan::Delete(if asks(ORPHAN) {
        PropagationPolicy::Orphan
    } else if asks(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::{Worth::*, *};

    fn owners(worths: &[Worth]) -> Vec<(OwnerReference, Worth)> {
        let reference = |n: usize| OwnerReference {
            uid: n.to_string(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        worths.iter().enumerate().map(|(n, worth)| (reference(n), *worth)).collect()
    }

    #[track_caller]
    fn check(worths: &[Worth], finalizers: &[&str], dependents: (bool, bool), want: &str) {
        let finalizers: Vec<_> = finalizers.iter().map(|name| (*name).to_owned()).collect();
        let text = match plan(&finalizers, &owners(worths), dependents.0, dependents.1) {
            Plan::Leave => "leave".to_owned(),
            Plan::KeepOwners(kept) => format!("keep {}", kept.iter().map(|o| o.uid.clone()).collect::<String>()),
            Plan::DeleteInForeground { unblocked } => format!("foreground unblock={}", unblocked.is_some()),
            Plan::Delete(policy) => format!("delete {policy:?}"),
        };
        assert_eq!(text, want);
    }

    #[test]
    fn one_living_owner_keeps_an_object() {
        check(&[], &[], (false, false), "leave");
        check(&[Solid], &[], (true, true), "leave");
        check(&[Dangling, Solid, Waiting], &[], (false, false), "keep 1");
    }

    #[test]
    fn without_one_it_goes_as_its_finalizers_ask() {
        check(&[Dangling], &[], (true, false), "delete Background");
        check(&[Dangling], &["x", FOREGROUND], (true, false), "delete Foreground");
        check(&[Dangling], &[ORPHAN], (true, false), "delete Orphan");
        check(&[Waiting], &[], (false, false), "delete Background");
    }

    #[test]
    fn an_owner_in_the_foreground_pulls_its_descendants_along_and_circles_are_cut() {
        check(&[Waiting, Dangling], &[], (true, false), "foreground unblock=false");
        check(&[Waiting], &[], (true, true), "foreground unblock=true");
    }
}
