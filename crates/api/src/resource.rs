//! The shape of an entry of the table of resources.

use apimachinery::meta::{Gvk, Gvr};

use crate::{Column, Strategy};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// A resource as it is served in one version. A kind that is served in several versions has one entry for each.
pub struct ResourceDef {
    pub gvr: Gvr,
    pub kind: String,
    /// Of lists of it; only a custom resource's definition may say another than `<kind>List`.
    pub list_kind: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub scope: Scope,
    /// Upstream's verbs, sorted.
    pub verbs: Vec<String>,
    pub storage_version_hash: String,
    /// Whether it is served unless somebody says otherwise: what is not stable yet is not.
    pub on_by_default: bool,
    pub subresources: Vec<Subresource>,
    /// The kind and version in which objects are stored; another one than `gvk()` means that the strategy converts.
    pub storage: Gvk,
    /// The directory of its keys below `/registry/`, as upstream lays it out: `pods`, `services/specs`, `minions`.
    pub storage_prefix: String,
    /// The columns of its Table; none: the generic ones (name and age).
    pub columns: Vec<Column>,
    pub strategy: &'static dyn Strategy,
}

/// `pods/log`, `deployments/scale`.
pub struct Subresource {
    pub name: String,
    /// What it takes and gives; group and version are the resource's own unless upstream says otherwise (`scale`).
    pub gvk: Gvk,
    pub verbs: Vec<String>,
}

impl ResourceDef {
    #[must_use]
    pub fn gvk(&self) -> Gvk {
        Gvk { group: self.gvr.group.clone(), version: self.gvr.version.clone(), kind: self.kind.as_str().into() }
    }

    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    #[must_use]
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}
