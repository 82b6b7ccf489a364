//! What this server serves: the table of resources, each with its cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::ResourceDef;
use apimachinery::meta::{GroupVersion, Gvr};
use apimachinery::schema::TypeRef;
use compact_str::CompactString;
use parking_lot::RwLock;

use crate::cache::feed::REGISTRY;
use crate::cache::{Cache, Shape};
use crate::custom::Custom;
use crate::custom::conversion::Webhook;
use crate::encoding::{self, StoredForm};
use crate::runtime_config::RuntimeConfig;

/// A resource in one served version.
#[derive(Clone)]
pub struct Resource {
    pub def: &'static ResourceDef,
    /// The schema of a built-in kind in this version.
    builtin_ty: TypeRef,
    /// Shared by all versions of a resource. `None`: nothing of it is stored (reviews, bindings).
    pub cache: Option<Arc<Cache>>,
    /// `None` for a built-in kind.
    pub(crate) custom: Option<Arc<Custom>>,
}

impl Resource {
    /// A version of a custom resource.
    #[must_use]
    pub(crate) fn custom(def: &'static ResourceDef, cache: Arc<Cache>, custom: Arc<Custom>) -> Self {
        Resource { def, builtin_ty: TypeRef::any(), cache: Some(cache), custom: Some(custom) }
    }

    /// The schema of its kind in this version.
    #[must_use]
    pub fn ty(&self) -> &TypeRef {
        self.custom.as_ref().map_or(&self.builtin_ty, |custom| custom.ty())
    }

    /// Who converts between the versions of a custom resource, if somebody has to be asked.
    #[must_use]
    pub(crate) fn webhook(&self) -> Option<&Arc<Webhook>> {
        self.custom.as_ref().and_then(|custom| custom.webhook.as_ref())
    }

    /// A webhook has to be asked before what is stored like that can be served in this version.
    #[must_use]
    pub(crate) fn must_ask(&self, form: StoredForm) -> bool {
        let served = (self.def.gvr.group.as_str(), self.def.gvr.version.as_str());
        self.webhook().is_some() && self.stored().shape.version_of(form).split_once('/') != Some(served)
    }

    /// The stored objects need conversion before they are served in this version.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.def.storage != self.def.gvk()
    }

    /// The cache of a resource that has one; routing sends no other request to the registry.
    #[must_use]
    pub fn stored(&self) -> &Arc<Cache> {
        self.cache.as_ref().unwrap_or_else(|| unreachable!("{} is not stored", self.def.gvr.resource))
    }
}

/// Whether this program itself knows the group.
#[must_use]
pub(crate) fn is_builtin_group(group: &str) -> bool {
    api::resources().iter().any(|def| def.gvr.group == group)
}

/// The resources by group, version and plural.
pub struct Resources {
    by_gvr: RwLock<HashMap<Gvr, Resource>>,
    /// Those of this program's own that are served, in the order of discovery.
    builtin: Vec<&'static ResourceDef>,
    /// How many resources each group and version has.
    group_versions: RwLock<BTreeMap<GroupVersion, usize>>,
    /// Rises with every change.
    generation: AtomicU64,
}

impl Resources {
    /// The built-in resources that are to be served, with empty caches.
    #[must_use]
    pub fn new(config: &RuntimeConfig) -> Self {
        let builtin: Vec<&'static ResourceDef> = api::resources().iter().filter(|def| config.serves(def)).collect();
        let mut caches: HashMap<String, Arc<Cache>> = HashMap::new();
        let mut by_gvr = HashMap::new();
        for def in builtin.iter().copied() {
            let cache = is_stored(def).then(|| {
                let shape = shape_of(def);
                Arc::clone(caches.entry(shape.prefix.clone()).or_insert_with(|| Arc::new(Cache::new(shape))))
            });
            let ty = encoding::type_of(&def.gvk()).unwrap_or_else(TypeRef::any);
            by_gvr.insert(def.gvr.clone(), Resource { def, builtin_ty: ty, cache, custom: None });
        }
        let mut group_versions = BTreeMap::new();
        by_gvr.keys().for_each(|gvr| *group_versions.entry(gvr.group_version()).or_default() += 1);
        Resources {
            by_gvr: RwLock::new(by_gvr),
            builtin,
            group_versions: RwLock::new(group_versions),
            generation: AtomicU64::new(0),
        }
    }

    /// The built-in resources that are served, in the order of discovery.
    #[must_use]
    pub fn builtin(&self) -> &[&'static ResourceDef] {
        &self.builtin
    }

    #[must_use]
    pub fn get(&self, gvr: &Gvr) -> Option<Resource> {
        self.by_gvr.read().get(gvr).cloned()
    }

    /// Takes entries of custom resources out and puts others in.
    pub fn replace(&self, gone: &[Gvr], new: impl IntoIterator<Item = Resource>) {
        let mut by_gvr = self.by_gvr.write();
        let mut group_versions = self.group_versions.write();
        for gvr in gone {
            let group_version = gvr.group_version();
            if by_gvr.remove(gvr).is_some()
                && let Some(count) = group_versions.get_mut(&group_version)
            {
                *count -= 1;
                if *count == 0 {
                    group_versions.remove(&group_version);
                }
            }
        }
        for resource in new {
            let gvr = resource.def.gvr.clone();
            let group_version = gvr.group_version();
            if by_gvr.insert(gvr, resource).is_none() {
                *group_versions.entry(group_version).or_default() += 1;
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Rises with every change of what is served.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The entries of custom resources, by group, version and plural.
    #[must_use]
    pub fn custom(&self) -> Vec<Resource> {
        let by_gvr = self.by_gvr.read();
        let mut custom: Vec<Resource> = by_gvr.values().filter(|r| r.custom.is_some()).cloned().collect();
        custom.sort_by(|a, b| a.def.gvr.cmp(&b.def.gvr));
        custom
    }

    /// Whether the resource is served here, or lacks only in a version of a built-in group: of that, clients get a Status.
    #[must_use]
    pub fn answers_for(&self, gvr: &Gvr) -> bool {
        let served = self.get(gvr).is_some();
        served || (is_builtin_group(&gvr.group) && self.has_group_version(&gvr.group_version()))
    }

    #[must_use]
    pub fn has_group_version(&self, gv: &GroupVersion) -> bool {
        self.group_versions.read().contains_key(gv)
    }

    /// All groups and versions, in order.
    #[must_use]
    pub fn group_versions(&self) -> Vec<GroupVersion> {
        self.group_versions.read().keys().cloned().collect()
    }

    /// Every cache once.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        let by_gvr = self.by_gvr.read();
        let caches: HashMap<&str, &Arc<Cache>> =
            by_gvr.values().filter_map(|r| r.cache.as_ref()).map(|c| (c.shape.prefix.as_str(), c)).collect();
        caches.into_values().cloned().collect()
    }

    /// The caches by group-resource, as [`crate::lister::Lister`] names them.
    #[must_use]
    pub fn caches_by_name(&self) -> HashMap<String, Arc<Cache>> {
        let by_gvr = self.by_gvr.read();
        by_gvr.values().filter_map(|r| Some((r.def.gvr.group_resource(), r.cache.clone()?))).collect()
    }
}

/// What has no `get` is only ever asked or done, never kept; component statuses are made up when asked for.
fn is_stored(def: &ResourceDef) -> bool {
    def.verbs.iter().any(|v| v == "get") && def.gvr.resource != "componentstatuses"
}

/// The shape of a custom resource's cache.
#[must_use]
pub(crate) fn shape_of_custom(def: &'static ResourceDef, stored_versions: Vec<CompactString>) -> Shape {
    Shape { typed_items: true, stored_versions, ..shape_of(def) }
}

fn shape_of(def: &'static ResourceDef) -> Shape {
    let stored = &def.storage;
    // All versions of a resource share the strategy's fields; they are read from the stored form.
    let stored_def = api::resource_of_kind(stored).unwrap_or(def);
    Shape {
        prefix: format!("{REGISTRY}{}/", def.storage_prefix),
        namespaced: def.is_namespaced(),
        head: format!(r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"#, stored.kind, stored.group_version()),
        typed_items: false,
        stored_versions: Vec::new(),
        fields: stored_def.strategy.selectable_fields(),
        strategy: stored_def.strategy,
    }
}
