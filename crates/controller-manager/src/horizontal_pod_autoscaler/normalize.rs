//! Holds a proposal back: by recent recommendations, by how fast a target may change, and by its limits.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// What one autoscaler did and thought lately.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) recommendations: Vec<(Timestamp, i32)>,
    pub(super) ups: Vec<(Timestamp, i32)>,
    pub(super) downs: Vec<(Timestamp, i32)>,
}

/// Longer than any window or period that a rule may name.
const KEPT: SignedDuration = SignedDuration::from_secs(3600);

impl Memory {
    pub(super) fn drop_old(&mut self, now: Timestamp) {
        for list in [&mut self.recommendations, &mut self.ups, &mut self.downs] {
            list.retain(|(at, _)| now.duration_since(*at) <= KEPT);
        }
    }

    pub(super) fn scaled(&mut self, now: Timestamp, from: i32, to: i32) {
        if to > from {
            self.ups.push((now, to - from));
        } else {
            self.downs.push((now, from - to));
        }
    }
}

/// Reason and message of a condition.
pub(super) type Why = (&'static str, &'static str);

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const WAS_HIGHER: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WAS_LOWER: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const IN_RANGE: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: Why = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) current: i32,
    pub(super) least: i32,
    pub(super) most: i32,
}

/// The number to scale to, and what the conditions AbleToScale and ScalingLimited say about it.
#[derive(Debug, PartialEq)]
pub(super) struct Normal {
    pub(super) replicas: i32,
    pub(super) able: Why,
    pub(super) is_limited: bool,
    pub(super) limited: Why,
}

/// Remembers `desired` as recommended now.
pub(super) fn normalize(
    memory: &mut Memory,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: Bounds,
    desired: i32,
    default_window: Duration,
    now: Timestamp,
) -> Normal {
    let Some(behavior) = behavior else { return by_default(memory, bounds, desired, default_window, now) };
    let up = with_defaults(behavior.scale_up.as_ref(), 0, &[("Pods", 4), ("Percent", 100)]);
    let default_window = i32::try_from(default_window.as_secs()).unwrap_or(i32::MAX);
    let down = with_defaults(behavior.scale_down.as_ref(), default_window, &[("Percent", 100)]);
    let recent = |window: Option<i32>| {
        let window = SignedDuration::from_secs(i64::from(window.unwrap_or_default()));
        let mine = memory.recommendations.iter().filter(move |(at, _)| now.duration_since(*at) < window);
        mine.map(|(_, replicas)| *replicas)
    };
    let lowest = recent(up.stabilization_window_seconds).fold(desired, i32::min);
    let highest = recent(down.stabilization_window_seconds).fold(desired, i32::max);
    let stable = bounds.current.max(lowest).min(highest);
    memory.recommendations.push((now, desired));
    let able = match () {
        () if stable == desired => READY,
        () if desired >= bounds.current => WAS_LOWER,
        () => WAS_HIGHER,
    };
    let (replicas, limited) = if stable > bounds.current {
        let limit = limit_up(&up, memory, bounds.current, now).max(bounds.current);
        let (most, why) = if bounds.most > limit { (limit, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
        if stable > most { (most, why) } else { (stable, IN_RANGE) }
    } else if stable < bounds.current {
        let limit = limit_down(&down, memory, bounds.current, now).min(bounds.current);
        let (least, why) = if bounds.least < limit { (limit, DOWN_LIMIT) } else { (bounds.least, TOO_FEW) };
        if stable < least { (least, why) } else { (stable, IN_RANGE) }
    } else {
        (stable, IN_RANGE)
    };
    Normal { replicas, able, is_limited: replicas != stable, limited }
}

/// Without rules: down to the highest recommendation of the window, up to twice as many or four.
fn by_default(memory: &mut Memory, bounds: Bounds, desired: i32, window: Duration, now: Timestamp) -> Normal {
    let window = SignedDuration::try_from(window).unwrap_or(SignedDuration::MAX);
    let recent = memory.recommendations.iter().filter(|(at, _)| now.duration_since(*at) < window);
    let stable = recent.fold(desired, |most, (_, replicas)| most.max(*replicas));
    memory.recommendations.push((now, desired));
    let able = if stable == desired { READY } else { WAS_HIGHER };
    let limit = bounds.current.saturating_mul(2).max(4);
    let (most, why) = if bounds.most > limit { (limit, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
    let (replicas, limited) = match stable {
        _ if stable < bounds.least => (bounds.least, TOO_FEW),
        _ if stable > most => (most, why),
        _ => (stable, IN_RANGE),
    };
    Normal { replicas, able, is_limited: replicas != stable, limited }
}

fn with_defaults(rules: Option<&HPAScalingRules>, window: i32, policies: &[(&str, i32)]) -> HPAScalingRules {
    let mut rules = rules.cloned().unwrap_or_default();
    rules.stabilization_window_seconds.get_or_insert(window);
    if rules.policies.as_ref().is_none_or(Vec::is_empty) {
        let policy = |(type_, value): &(&str, i32)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: 15,
        };
        rules.policies = Some(policies.iter().map(policy).collect());
    }
    rules
}

/// How many there were when the policy's period began.
fn at_start(memory: &Memory, current: i32, policy: &HPAScalingPolicy, now: Timestamp) -> i32 {
    let period = SignedDuration::from_secs(i64::from(policy.period_seconds));
    let within = |events: &[(Timestamp, i32)]| {
        let recent = events.iter().filter(|(at, _)| now.duration_since(*at) < period);
        recent.fold(0_i32, |sum, (_, change)| sum.saturating_add(*change))
    };
    current.saturating_sub(within(&memory.ups)).saturating_add(within(&memory.downs))
}

fn limit_up(rules: &HPAScalingRules, memory: &Memory, current: i32, now: Timestamp) -> i32 {
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = at_start(memory, current, policy, now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_add(policy.value),
            _ => scaled(start, 100_i64.saturating_add(i64::from(policy.value)), true),
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.min().unwrap_or(i32::MAX),
        _ => limits.max().unwrap_or(i32::MIN),
    }
}

fn limit_down(rules: &HPAScalingRules, memory: &Memory, current: i32, now: Timestamp) -> i32 {
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = at_start(memory, current, policy, now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_sub(policy.value),
            _ => scaled(start, 100_i64.saturating_sub(i64::from(policy.value)), false),
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.max().unwrap_or(i32::MIN),
        _ => limits.min().unwrap_or(i32::MAX),
    }
}

fn scaled(number: i32, percent: i64, up: bool) -> i32 {
    let hundredfold = i64::from(number).saturating_mul(percent);
    let share = if up { hundredfold.saturating_add(99).div_euclid(100) } else { hundredfold / 100 };
    i32::try_from(share).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[track_caller]
    fn check(behavior: Value, memory: Memory, current: i32, desired: i32, want: (i32, &str, &str)) {
        let behavior: Option<HorizontalPodAutoscalerBehavior> = serde_json::from_value(behavior).unwrap();
        let mut memory = memory;
        let bounds = Bounds { current, least: 2, most: 20 };
        let window = Duration::from_secs(300);
        let normal = normalize(&mut memory, behavior.as_ref(), bounds, desired, window, at(1000));
        assert_eq!((normal.replicas, normal.able.0, normal.limited.0), want);
        assert_eq!(memory.recommendations.last(), Some(&(at(1000), desired)));
    }

    fn recommended(list: &[(i64, i32)]) -> Memory {
        Memory { recommendations: list.iter().map(|(second, n)| (at(*second), *n)).collect(), ..Memory::default() }
    }

    #[test]
    fn without_rules_up_goes_fast_and_down_slowly() {
        check(Value::Null, Memory::default(), 5, 7, (7, "ReadyForNewScale", "DesiredWithinRange"));
        check(Value::Null, Memory::default(), 5, 15, (10, "ReadyForNewScale", "ScaleUpLimit"));
        check(Value::Null, Memory::default(), 15, 30, (20, "ReadyForNewScale", "TooManyReplicas"));
        check(Value::Null, Memory::default(), 5, 1, (2, "ReadyForNewScale", "TooFewReplicas"));
        check(Value::Null, recommended(&[(800, 4), (600, 9)]), 5, 3, (4, "ScaleDownStabilized", "DesiredWithinRange"));
    }

    #[test]
    fn rules_limit_the_rate_within_their_periods() {
        let pods = json!({ "scaleUp": { "policies": [{ "type": "Pods", "value": 3, "periodSeconds": 60 }] } });
        check(pods.clone(), Memory::default(), 5, 12, (8, "ReadyForNewScale", "ScaleUpLimit"));
        let busy = Memory { ups: vec![(at(970), 2), (at(900), 2)], ..Memory::default() };
        check(pods, busy, 5, 12, (6, "ReadyForNewScale", "ScaleUpLimit"));
        let off = json!({ "scaleDown": { "selectPolicy": "Disabled" } });
        check(off, Memory::default(), 5, 3, (5, "ReadyForNewScale", "ScaleDownLimit"));
        let ten = json!({ "scaleDown": { "stabilizationWindowSeconds": 0,
            "policies": [{ "type": "Percent", "value": 10, "periodSeconds": 60 }] } });
        check(ten, Memory::default(), 10, 3, (9, "ReadyForNewScale", "ScaleDownLimit"));
        let least = json!({ "scaleUp": { "selectPolicy": "Min", "policies": [
            { "type": "Pods", "value": 1, "periodSeconds": 60 }, { "type": "Percent", "value": 100, "periodSeconds": 60 }
        ] } });
        check(least, Memory::default(), 5, 12, (6, "ReadyForNewScale", "ScaleUpLimit"));
    }

    #[test]
    fn windows_hold_back_both_ways() {
        let up = json!({ "scaleUp": { "stabilizationWindowSeconds": 120 } });
        check(up, recommended(&[(950, 6)]), 5, 8, (6, "ScaleUpStabilized", "DesiredWithinRange"));
        check(json!({}), recommended(&[(950, 6)]), 5, 3, (5, "ScaleDownStabilized", "DesiredWithinRange"));
    }
}
