//! How many pods a Deployment may have, and may lack, while it changes.

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};

pub(super) fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or("RollingUpdate") == "RollingUpdate"
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { resolve(deployment).0 } else { 0 }
}

/// Never more than there are.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let replicas = desired(deployment);
    if !is_rolling(deployment) || replicas == 0 {
        return 0;
    }
    resolve(deployment).1.min(replicas)
}

/// Surge rounds up and unavailability down; if that leaves neither, one may be unavailable, or nothing would ever move.
fn resolve(deployment: &Deployment) -> (i32, i32) {
    let rolling =
        deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let default = IntOrString::String("25%".to_owned());
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&default);
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&default);
    let replicas = desired(deployment);
    match (scaled(surge, replicas, true), scaled(unavailable, replicas, false)) {
        (0, 0) => (0, 1),
        both => both,
    }
}

/// A number, or a share of `total`; what is neither counts as nothing.
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let Some(percent) = text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()) else { return 0 };
            let hundredfold = percent.saturating_mul(i64::from(total));
            let share =
                if round_up { hundredfold.saturating_add(99).div_euclid(100) } else { hundredfold.div_euclid(100) };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    #[track_caller]
    fn check(words: &str, surge: i32, unavailable: i32) {
        let deployment = fixture::deployment(words);
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), (surge, unavailable), "{words}");
    }

    #[test]
    fn surge_rounds_up_and_unavailability_down() {
        check("replicas=10 surge=25% unavailable=25%", 3, 2);
        check("replicas=1 surge=25% unavailable=25%", 1, 0);
        check("replicas=3 surge=0 unavailable=0%", 0, 1);
        check("replicas=3 surge=0 unavailable=20%", 0, 1);
        check("replicas=2 surge=1 unavailable=5", 1, 2);
        check("replicas=0 surge=1 unavailable=1", 1, 0);
        check("replicas=3 strategy=Recreate", 0, 0);
    }
}
