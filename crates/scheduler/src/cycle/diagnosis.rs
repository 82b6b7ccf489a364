//! Why a pod could not be scheduled, in upstream's words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::framework::FilterStatus;

/// What is said of a pod that no node can take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// All nodes of the cluster.
    pub nodes: usize,
    /// A plugin turned the pod down before nodes were looked at.
    pub before_nodes: Option<String>,
    /// Why nodes were turned down, and how many for that reason; one node can have several reasons.
    pub reasons: BTreeMap<String, usize>,
    /// The plugins that turned nodes or the pod down.
    pub plugins: BTreeSet<&'static str>,
    /// What came of trying to make room.
    pub after_filters: Vec<String>,
}

impl Diagnosis {
    /// Adds that `nodes` nodes were turned down like this.
    pub(crate) fn add(&mut self, status: &FilterStatus, nodes: usize) {
        if let FilterStatus::Unschedulable(reasons) | FilterStatus::UnschedulableAndUnresolvable(reasons) = status {
            for reason in reasons {
                self.add_reason(reason, nodes);
            }
        }
    }

    pub(crate) fn add_reason(&mut self, reason: &str, nodes: usize) {
        if nodes > 0 {
            *self.reasons.entry(reason.to_owned()).or_default() += nodes;
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(message) = &self.before_nodes {
            write!(f, " {message}.")?;
        } else if !self.reasons.is_empty() {
            // Sorted as text, numbers and all, as users know it.
            let mut counted: Vec<String> = self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            counted.sort_unstable();
            write!(f, " {}.", counted.join(", "))?;
        }
        if !self.after_filters.is_empty() {
            write!(f, " {}", self.after_filters.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(diagnosis: &Diagnosis, want: &str) {
        assert_eq!(diagnosis.to_string(), want);
    }

    #[test]
    fn each_reason_has_its_number_of_nodes() {
        let mut diagnosis = Diagnosis { nodes: 13, ..Diagnosis::default() };
        let both = vec!["Insufficient cpu".into(), "Too many pods".into()];
        diagnosis.add(&FilterStatus::Unschedulable(both), 1);
        diagnosis.add(&FilterStatus::unresolvable("node(s) had untolerated taint(s)"), 10);
        diagnosis.add(&FilterStatus::unschedulable("Insufficient cpu"), 2);
        diagnosis.after_filters.push("preemption: 0/13 nodes are available: 13 nothing.".into());
        check(
            &diagnosis,
            "0/13 nodes are available: 1 Too many pods, 10 node(s) had untolerated taint(s), 3 Insufficient cpu. \
             preemption: 0/13 nodes are available: 13 nothing.",
        );
    }

    #[test]
    fn a_pod_that_was_turned_down_at_once_has_one_reason() {
        let before_nodes = Some("pod has unbound immediate PersistentVolumeClaims".to_owned());
        let diagnosis = Diagnosis { nodes: 3, before_nodes, ..Diagnosis::default() };
        check(&diagnosis, "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
        check(&Diagnosis::default(), "no nodes available to schedule pods");
    }
}
