//! How good it is for a node to have so much of a resource in use.

use serde::Deserialize;

use crate::framework::MAX_NODE_SCORE;

/// A point of the function from utilization to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub(super) struct ShapePoint {
    /// In percent.
    pub utilization: i64,
    /// 0 to 10.
    pub score: i64,
}

/// Scores below are given from 0 to 10.
const SHAPE_SCALE: i64 = MAX_NODE_SCORE / 10;

/// What is wrong with a shape, each in a sentence.
pub(super) fn check_shape(shape: &[ShapePoint], path: &str, mistakes: &mut Vec<String>) {
    if shape.is_empty() {
        mistakes.push(format!("{path}: Required value: at least one point must be specified"));
    }
    for (at, point) in shape.iter().enumerate() {
        if !(0..=100).contains(&point.utilization) {
            let value = point.utilization;
            mistakes.push(format!("{path}[{at}].utilization: Invalid value: {value}: not in valid range [0-100]"));
        }
        if at > 0 && shape[at - 1].utilization >= point.utilization {
            mistakes.push(format!(
                "{path}[{at}].utilization: Invalid value: {}: utilization values must be sorted in increasing order",
                point.utilization
            ));
        }
        if !(0..=10).contains(&point.score) {
            mistakes.push(format!("{path}[{at}].score: Invalid value: {}: not in valid range [0-10]", point.score));
        }
    }
}

/// The score at a utilization in percent: straight lines between the points, level before the first and after the last.
#[must_use]
pub(super) fn on_shape(shape: &[ShapePoint], utilization: i64) -> i64 {
    let score = |point: &ShapePoint| point.score * SHAPE_SCALE;
    let Some(next) = shape.iter().position(|point| utilization <= point.utilization) else {
        return shape.last().map_or(0, score);
    };
    if next == 0 {
        return score(&shape[0]);
    }
    let (a, b) = (&shape[next - 1], &shape[next]);
    score(a) + (score(b) - score(a)) * (utilization - a.utilization) / (b.utilization - a.utilization)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scorer {
    /// The emptier the better.
    LeastAllocated,
    /// The fuller the better.
    MostAllocated,
    RequestedToCapacityRatio(Vec<ShapePoint>),
}

/// One resource of a node as it would be with the pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    pub requested: i64,
    /// Not zero.
    pub allocatable: i64,
    pub weight: i64,
}

impl Scorer {
    /// 0 to 100.
    #[must_use]
    pub(super) fn score(&self, usages: impl IntoIterator<Item = Usage>) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for usage in usages {
            let score = self.of_one(usage.requested, usage.allocatable);
            // A resource at the bottom of the shape does not count against the others.
            if matches!(self, Self::RequestedToCapacityRatio(_)) && score <= 0 {
                continue;
            }
            sum += score * usage.weight;
            weights += usage.weight;
        }
        match (self, weights) {
            (_, 0) => 0,
            (Self::RequestedToCapacityRatio(_), weights) => (2 * sum + weights) / (2 * weights),
            (_, weights) => sum / weights,
        }
    }

    fn of_one(&self, requested: i64, allocatable: i64) -> i64 {
        match self {
            Self::LeastAllocated if requested > allocatable => 0,
            Self::LeastAllocated => (allocatable - requested) * MAX_NODE_SCORE / allocatable,
            Self::MostAllocated => requested.min(allocatable) * MAX_NODE_SCORE / allocatable,
            Self::RequestedToCapacityRatio(shape) if requested > allocatable => on_shape(shape, 100),
            Self::RequestedToCapacityRatio(shape) => on_shape(shape, requested * 100 / allocatable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(requested: i64, allocatable: i64, weight: i64) -> Usage {
        Usage { requested, allocatable, weight }
    }

    #[test]
    fn strategies_score_as_documented() {
        let shape = vec![ShapePoint { utilization: 0, score: 0 }, ShapePoint { utilization: 100, score: 10 }];
        for (scorer, usages, want) in [
            (Scorer::LeastAllocated, vec![usage(25, 100, 1), usage(50, 100, 1)], 62),
            (Scorer::LeastAllocated, vec![usage(25, 100, 3), usage(50, 100, 1)], 68),
            (Scorer::LeastAllocated, vec![usage(101, 100, 1)], 0),
            (Scorer::LeastAllocated, vec![], 0),
            (Scorer::MostAllocated, vec![usage(25, 100, 1), usage(150, 100, 1)], 62),
            (Scorer::RequestedToCapacityRatio(shape.clone()), vec![usage(25, 100, 1), usage(50, 100, 2)], 42),
            (Scorer::RequestedToCapacityRatio(shape), vec![usage(0, 100, 1), usage(50, 100, 1)], 50),
        ] {
            assert_eq!(scorer.score(usages.clone()), want, "{scorer:?} {usages:?}");
        }
    }

    #[test]
    fn a_shape_is_followed_by_straight_lines() {
        let shape = [(20, 10), (60, 2), (80, 4)].map(|(utilization, score)| ShapePoint { utilization, score });
        for (utilization, want) in [(0, 100), (20, 100), (40, 60), (60, 20), (70, 30), (80, 40), (100, 40)] {
            assert_eq!(on_shape(&shape, utilization), want, "{utilization}");
        }
    }

    #[test]
    fn shapes_are_checked() {
        let mut mistakes = Vec::new();
        let shape = [(50, 11), (40, 1)].map(|(utilization, score)| ShapePoint { utilization, score });
        check_shape(&shape, "shape", &mut mistakes);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        check_shape(&[], "shape", &mut mistakes);
        assert_eq!(mistakes[2], "shape: Required value: at least one point must be specified");
    }
}
