//! The conditions by which users see why a namespace does not go away.

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::NamespaceCondition, apimachinery::pkg::apis::meta::v1::Time};

use super::content::Outcome;

/// Brings the conditions up to date; whether any changed.
pub(super) fn update(conditions: &mut Vec<NamespaceCondition>, outcome: &Outcome, now: Timestamp) -> bool {
    let mut changed = false;
    for (condition_type, status, reason, message) in describe(outcome) {
        changed |= set(conditions, condition_type, status, reason, &message, now);
    }
    changed
}

fn describe(outcome: &Outcome) -> [(&'static str, &'static str, &'static str, String); 5] {
    let text = str::to_owned;
    let discovery = match &outcome.discovery_failure {
        Some(message) => ("NamespaceDeletionDiscoveryFailure", "True", "DiscoveryFailed", message.clone()),
        None => (
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            text("All resources successfully discovered"),
        ),
    };
    let parsed = (
        "NamespaceDeletionGroupVersionParsingFailure",
        "False",
        "ParsedGroupVersions",
        text("All legacy kube types successfully parsed"),
    );
    let deleted = if outcome.failures.is_empty() {
        let message = text("All content successfully deleted, may be waiting on finalization");
        ("NamespaceDeletionContentFailure", "False", "ContentDeleted", message)
    } else {
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            outcome.failures.len(),
            outcome.failures.join(", ")
        );
        ("NamespaceDeletionContentFailure", "True", "ContentDeletionFailed", message)
    };
    let remaining = if outcome.remaining.is_empty() {
        ("NamespaceContentRemaining", "False", "ContentRemoved", text("All content successfully removed"))
    } else {
        let each = outcome.remaining.iter().map(|(name, count)| format!("{name} has {count} resource instances"));
        let message = format!("Some resources are remaining: {}", each.collect::<Vec<_>>().join(", "));
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", message)
    };
    let finalizers = if outcome.finalizers.is_empty() {
        let message = text("All content-preserving finalizers finished");
        ("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", message)
    } else {
        let each = outcome.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
        let message =
            format!("Some content in the namespace has finalizers remaining: {}", each.collect::<Vec<_>>().join(", "));
        ("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message)
    };
    [discovery, parsed, deleted, remaining, finalizers]
}

fn set(
    conditions: &mut Vec<NamespaceCondition>,
    condition_type: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let new = |since| NamespaceCondition {
        type_: condition_type.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since,
    };
    let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == condition_type) else {
        conditions.push(new(Some(Time(now))));
        return true;
    };
    if old.status == status && old.message.as_deref() == Some(message) && old.reason.as_deref() == Some(reason) {
        return false;
    }
    let since = if old.status == status { old.last_transition_time.clone() } else { Some(Time(now)) };
    *old = new(since);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told_and_told_once() {
        let outcome = Outcome {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Outcome::default()
        };
        let mut conditions = Vec::new();
        assert!(update(&mut conditions, &outcome, Timestamp::UNIX_EPOCH));
        let messages: Vec<_> =
            conditions.iter().filter(|c| c.status == "True").filter_map(|c| c.message.clone()).collect();
        assert_eq!(
            messages,
            [
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
            ]
        );
        assert!(!update(&mut conditions, &outcome, Timestamp::UNIX_EPOCH));
        assert!(update(&mut conditions, &Outcome::default(), Timestamp::UNIX_EPOCH));
        assert!(conditions.iter().all(|condition| condition.status == "False"));
    }
}
