//! What plugins read besides nodes and pods.

use client::informer::{Kind, Lister, SharedInformer, SharedInformerFactory};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

/// Caches of the kinds that plugins look at.
#[derive(Clone)]
pub struct Listers {
    pub disruption_budgets: Lister<PodDisruptionBudget>,
}

impl Listers {
    /// Starts a watch of each kind.
    #[must_use]
    pub fn watch(informers: &SharedInformerFactory) -> Self {
        Self { disruption_budgets: informers.informer().lister() }
    }

    /// Of a cluster that has none of these objects.
    #[must_use]
    pub fn empty() -> Self {
        Self { disruption_budgets: fixed(Vec::new()) }
    }
}

fn fixed<K: Kind>(objects: Vec<K>) -> Lister<K> {
    SharedInformer::fixed(objects).lister()
}
