//! Which taints a pod tolerates.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::framework::Signature;

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";

/// A toleration without key, value or effect is for any.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let for_any = |field: &Option<String>| field.as_deref().unwrap_or_default().is_empty();
    if !for_any(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    if !for_any(&toleration.key) && toleration.key.as_deref() != Some(&taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some("Exists") => true,
        Some(_) => false,
    }
}

/// The first taint that keeps pods away and that none of the tolerations is for.
#[must_use]
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    let keeps_away = |taint: &&Taint| matches!(&*taint.effect, NO_SCHEDULE | NO_EXECUTE);
    taints.iter().filter(keeps_away).find(|taint| !tolerations.iter().any(|own| tolerates(own, taint)))
}

/// Signs what of tolerations matters.
pub(crate) fn sign(tolerations: &[Toleration], signature: &mut Signature) {
    signature.add(&tolerations.len());
    for t in tolerations {
        signature.add(&(t.key.as_deref(), t.operator.as_deref(), t.value.as_deref(), t.effect.as_deref()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_are_for_what_they_name() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        for (toleration, want) in [
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "k", "operator": "Odd", "value": "v"}), false),
        ] {
            let toleration: Toleration = serde_json::from_value(toleration).unwrap();
            assert_eq!(tolerates(&toleration, &taint), want, "{toleration:?}");
        }
    }

    #[test]
    fn a_taint_that_only_prefers_keeps_nobody_away() {
        let taints: Vec<Taint> = serde_json::from_value(json!([
            {"key": "a", "effect": "PreferNoSchedule"}, {"key": "b", "effect": "NoExecute"}]))
        .unwrap();
        assert_eq!(untolerated(&taints, &[]).map(|taint| &*taint.key), Some("b"));
        assert_eq!(untolerated(&taints[..1], &[]), None);
    }
}
