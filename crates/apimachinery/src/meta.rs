//! Names of kinds and resources, and access to `metadata`.

use std::fmt;

use compact_str::CompactString;

use crate::Value;

/// Group and version; the core group is the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupVersion {
    pub group: CompactString,
    pub version: CompactString,
}

/// Group, version and resource (plural, lower case).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvr {
    pub group: CompactString,
    pub version: CompactString,
    pub resource: CompactString,
}

/// Group, version and kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gvk {
    pub group: CompactString,
    pub version: CompactString,
    pub kind: CompactString,
}

impl GroupVersion {
    #[must_use]
    pub fn new(group: &str, version: &str) -> Self {
        GroupVersion { group: group.into(), version: version.into() }
    }

    /// From `v1` or `apps/v1`; `None` for anything with more than one slash or nothing in it.
    #[must_use]
    pub fn parse(api_version: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        (!version.is_empty() && !version.contains('/')).then(|| GroupVersion::new(group, version))
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.version) } else { write!(f, "{}/{}", self.group, self.version) }
    }
}

impl Gvr {
    #[must_use]
    pub fn new(group: &str, version: &str, resource: &str) -> Self {
        Gvr { group: group.into(), version: version.into(), resource: resource.into() }
    }

    #[must_use]
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    /// `pods` or `deployments.apps`, as messages name a resource.
    #[must_use]
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.resource.to_string() } else { format!("{}.{}", self.resource, self.group) }
    }
}

impl Gvk {
    #[must_use]
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Gvk { group: group.into(), version: version.into(), kind: kind.into() }
    }

    #[must_use]
    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    /// `Deployment.apps`, as messages name a kind; the core group adds nothing.
    #[must_use]
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// `metadata` of an object, by its usual names. Absent strings read as empty.
impl Value {
    #[must_use]
    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"])
    }

    #[must_use]
    pub fn kind(&self) -> &str {
        self.str_at(&["kind"])
    }

    #[must_use]
    pub fn meta(&self, field: &str) -> &Value {
        self.at(&["metadata", field])
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.str_at(&["metadata", "name"])
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.str_at(&["metadata", "namespace"])
    }

    #[must_use]
    pub fn uid(&self) -> &str {
        self.str_at(&["metadata", "uid"])
    }

    #[must_use]
    pub fn resource_version(&self) -> &str {
        self.str_at(&["metadata", "resourceVersion"])
    }

    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.at(&["metadata", "labels", key]).as_str()
    }

    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.at(&["metadata", "annotations", key]).as_str()
    }

    #[must_use]
    pub fn is_deleting(&self) -> bool {
        !self.meta("deletionTimestamp").is_null()
    }

    #[must_use]
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta("finalizers").items().iter().any(|f| f.as_str() == Some(finalizer))
    }
}
