//! What plugins answer.

use std::borrow::Cow;

/// Why a plugin turns something down, in the words that users read. Mostly one.
pub type Reasons = Vec<Cow<'static, str>>;

/// Whether a node can take the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FilterStatus {
    Success,
    /// Not now; evicting pods from the node may help.
    Unschedulable(Reasons),
    /// Not now, and evicting pods does not help.
    UnschedulableAndUnresolvable(Reasons),
    /// The plugin failed.
    Error(String),
}

impl FilterStatus {
    #[must_use]
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unschedulable(vec![reason.into()])
    }

    #[must_use]
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::UnschedulableAndUnresolvable(vec![reason.into()])
    }

    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Success)
    }
}

/// A pod is turned down before nodes are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    Unschedulable(Reasons),
    UnschedulableAndUnresolvable(Reasons),
    Error(String),
}

impl Rejection {
    #[must_use]
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unschedulable(vec![reason.into()])
    }

    #[must_use]
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::UnschedulableAndUnresolvable(vec![reason.into()])
    }

    /// The reasons in one line.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Unschedulable(reasons) | Self::UnschedulableAndUnresolvable(reasons) => reasons.join(", "),
            Self::Error(error) => error.clone(),
        }
    }
}

/// What a plugin makes of a pod before it looks at nodes.
#[derive(Debug)]
pub enum PreFilter<S> {
    /// It has nothing to say about this pod: its `filter` is not called.
    Skip,
    Run(S),
    /// As `Run`, and only these nodes (by name) can do.
    RunOn(S, Vec<String>),
    Reject(Rejection),
}

/// As [`PreFilter`], for scores.
#[derive(Debug)]
pub enum PreScore<S> {
    Skip,
    Run(S),
    Error(String),
}

/// The best score that a node can have from one plugin.
pub const MAX_NODE_SCORE: i64 = 100;

/// How a plugin's scores become 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are already.
    Keep,
    /// The highest becomes 100, the others in proportion.
    ByHighest,
    /// As `ByHighest`, and then the other way round: the highest becomes 0.
    ByHighestReversed,
    /// By the plugin itself.
    ByPlugin,
}

impl Normalize {
    /// The score of one node, when `highest` is the highest of all.
    #[must_use]
    pub fn apply(self, score: i64, highest: i64) -> i64 {
        match (self, highest) {
            (Self::Keep | Self::ByPlugin, _) => score,
            (Self::ByHighest, 0) => 0,
            (Self::ByHighestReversed, 0) => MAX_NODE_SCORE,
            (Self::ByHighest, highest) => MAX_NODE_SCORE * score / highest,
            (Self::ByHighestReversed, highest) => MAX_NODE_SCORE - MAX_NODE_SCORE * score / highest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_brought_to_a_hundred() {
        for (normalize, scores, want) in [
            (Normalize::ByHighest, [1, 2, 3], [33, 66, 100]),
            (Normalize::ByHighestReversed, [1, 2, 3], [67, 34, 0]),
            (Normalize::ByHighest, [0, 0, 0], [0, 0, 0]),
            (Normalize::ByHighestReversed, [0, 0, 0], [100, 100, 100]),
            (Normalize::Keep, [7, 8, 9], [7, 8, 9]),
        ] {
            let highest = scores.iter().copied().max().unwrap();
            assert_eq!(scores.map(|score| normalize.apply(score, highest)), want, "{normalize:?}");
        }
    }
}
