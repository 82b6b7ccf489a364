//! Keeps the table of resources up with the definitions, and the definitions' status and end with what is so.
//!
//! Each change of a definition costs what that definition costs, however many others there are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::selector::LabelSelector;
use apimachinery::status::Status;
use bytes::Bytes;
use compact_str::CompactString;
use tokio_util::sync::CancellationToken;

use super::conversion::Webhook;
use super::definitions::Interned;
use super::names::{self, Taken};
use crate::cache::selection::Selection;
use crate::cache::{Cache, Item, Object, Start, Watcher};
use crate::registry::{DeleteOptions, Part, Preconditions};
use crate::resources::{Resource, shape_of_custom};
use crate::server::{ApiServer, OwnWriter};

pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// How often a definition that is being deleted is looked at while finalizers hold its objects.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is installed of a definition.
struct Installed {
    /// What this was made of: uid, generation and accepted names.
    identity: String,
    gvrs: Vec<Gvr>,
    /// One of its versions: through this its objects can be deleted when nobody else is shown them any more.
    resource: Resource,
    cache: Arc<Cache>,
}

struct Controller {
    server: ApiServer,
    writer: OwnWriter,
    interned: Interned,
    definitions: Arc<Cache>,
    installed: HashMap<String, Installed>,
    /// By group.
    taken: HashMap<CompactString, Taken>,
    /// Definitions that want a name of another, by group.
    waiting: HashMap<CompactString, BTreeSet<String>>,
    /// Definitions that are being deleted and whose objects are not gone yet.
    ending: HashSet<String>,
}

/// Runs until `halt`.
pub(crate) async fn run(server: ApiServer, halt: CancellationToken) {
    let feed = Arc::clone(&server.registry().feed);
    if halt.run_until_cancelled(feed.reach_sync()).await.is_none() {
        return;
    }
    let Some(definitions) = server.resources().get(&definitions_resource()).and_then(|r| r.cache) else { return };
    let mut controller = Controller {
        writer: OwnWriter::new(&server),
        server,
        interned: Interned::default(),
        definitions,
        installed: HashMap::new(),
        taken: HashMap::new(),
        waiting: HashMap::new(),
        ending: HashSet::new(),
    };
    // A watch that ends (the store was away, or this did not keep up) begins anew.
    while halt.run_until_cancelled(controller.watch()).await.is_some() {}
}

fn definitions_resource() -> Gvr {
    Gvr::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
}

async fn next(watcher: &mut Watcher) -> Option<Item> {
    std::future::poll_fn(|cx| watcher.poll_next(cx)).await
}

impl Controller {
    async fn watch(&mut self) {
        let all = Selection::new(None, None, LabelSelector::default());
        let fed = self.server.registry().feed.revision();
        // With what is there from the start, no watch is too late.
        let Ok(mut watcher) = self.definitions.watch(Arc::new(all), Start::WithInitial { fed }) else { return };
        let mut there = Vec::new();
        loop {
            let item = if self.ending.is_empty() {
                next(&mut watcher).await
            } else {
                match tokio::time::timeout(LOOK_AGAIN, next(&mut watcher)).await {
                    Ok(item) => item,
                    Err(_) => {
                        self.look_at_ending().await;
                        continue;
                    }
                }
            };
            match item {
                None => return,
                Some(Item::Initial(object)) => {
                    // All names must be known before any is given.
                    self.note(&object.decode());
                    there.push(object);
                }
                Some(Item::InitialEnd(_)) => self.begin(std::mem::take(&mut there)).await,
                Some(Item::Change(delivery)) => match &delivery.change.current {
                    Some(object) => self.changed(object).await,
                    None => {
                        if let Some(object) = &delivery.change.previous {
                            self.gone(object).await;
                        }
                    }
                },
            }
        }
    }

    /// Takes in the definitions that there are when a watch begins.
    async fn begin(&mut self, there: Vec<Arc<Object>>) {
        let names: HashSet<String> = there.iter().map(|object| self.name_of(object)).collect();
        let gone: Vec<String> = self.installed.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.uninstall(&name);
        }
        for object in there {
            self.changed(&object).await;
        }
    }

    fn name_of(&self, object: &Object) -> String {
        self.definitions.shape.names(&object.key).1.to_owned()
    }

    fn current(&self, name: &str) -> Option<Arc<Object>> {
        self.definitions.get(&self.definitions.shape.key("", name))
    }

    async fn look_at_ending(&mut self) {
        for name in self.ending.clone() {
            match self.current(&name) {
                Some(object) => self.changed(&object).await,
                None => {
                    self.ending.remove(&name);
                }
            }
        }
    }

    async fn changed(&mut self, object: &Object) {
        let definition = object.decode();
        let released = self.note(&definition);
        if definition.is_deleting() {
            self.clean_up(&definition, &object.body).await;
        } else {
            self.establish(&definition, &object.body).await;
        }
        if released {
            self.serve_waiting(&group_of(&definition), definition.name()).await;
        }
    }

    async fn gone(&mut self, object: &Object) {
        let definition = object.decode();
        let (name, group) = (definition.name(), group_of(&definition));
        self.ending.remove(name);
        self.uninstall(name);
        if let Some(taken) = self.taken.get_mut(&group) {
            taken.forget(name);
            if taken.is_empty() {
                self.taken.remove(&group);
            }
        }
        if let Some(waiting) = self.waiting.get_mut(&group) {
            waiting.remove(name);
        }
        self.serve_waiting(&group, name).await;
    }

    /// Notes the names that a definition has; returns whether it has let go of one.
    fn note(&mut self, definition: &Value) -> bool {
        self.taken.entry(group_of(definition)).or_default().record(definition)
    }

    /// Names are free again: whoever waits may have them.
    async fn serve_waiting(&mut self, group: &CompactString, except: &str) {
        let names: Vec<String> = self.waiting.remove(group).unwrap_or_default().into_iter().collect();
        for name in names.into_iter().filter(|name| name != except) {
            if let Some(object) = self.current(&name) {
                let definition = object.decode();
                self.establish(&definition, &object.body).await;
            }
        }
    }

    /// Gives a definition its names, and serves it.
    async fn establish(&mut self, definition: &Value, bytes: &Bytes) {
        let group = group_of(definition);
        let taken = self.taken.entry(group.clone()).or_default();
        let planned = names::plan(definition, taken, &crate::registry::timestamp());
        let mut accepted = definition.clone();
        if let Some(status) = &planned {
            accepted.set(&["status"], status.clone());
        }
        if names::has_condition(&accepted, "NamesAccepted", "False") {
            self.waiting.entry(group).or_default().insert(definition.name().to_owned());
        }
        // Served before anybody is told that it is.
        self.note(&accepted);
        self.install(&accepted, bytes).await;
        if let Some(status) = planned {
            // The new status comes back as a change, which then changes nothing.
            self.set_status(definition, status).await;
        }
    }

    async fn set_status(&self, definition: &Value, status: Value) {
        let change = |old: &Value| {
            let mut new = old.clone();
            new.set(&["metadata", "resourceVersion"], definition.resource_version());
            new.set(&["status"], status.clone());
            Ok(new)
        };
        let written = self.change(definition.name(), "status", Part::Status, &change).await;
        log(written, definition.name(), "the status of a definition cannot be written");
    }

    async fn change(
        &self,
        name: &str,
        subresource: &str,
        part: Part<'_>,
        change: &(dyn Fn(&Value) -> Result<Value, Status> + Send + Sync),
    ) -> Result<(), Status> {
        let (server, mut write) = self.writer.write(&definitions_resource(), "", name)?;
        write.subresource = subresource.to_owned();
        server.registry.update(&mut write, part, &Preconditions::default(), false, change).await.map(drop)
    }

    async fn install(&mut self, definition: &Value, bytes: &Bytes) {
        if !names::has_condition(definition, "Established", "True") {
            return;
        }
        let identity = identity_of(definition);
        if self.installed.get(definition.name()).is_some_and(|i| i.identity == identity) {
            return;
        }
        let lister = self.server.lister();
        let webhook = Webhook::of(definition, &lister).map(Arc::new);
        let entries = self.interned.entries(definition, bytes, webhook.as_ref());
        let versions = definition.at(&["spec", "versions"]).items();
        let group = definition.str_at(&["spec", "group"]);
        let stored_versions = match &webhook {
            Some(_) => versions.iter().map(|v| format!("{group}/{}", v.str_at(&["name"])).into()).collect(),
            None => Vec::new(),
        };
        // What the store holds is read as the stored version, if that is served.
        let of_storage = entries.iter().find(|(def, _)| def.gvk() == def.storage).or(entries.first());
        let shape = match of_storage {
            Some((def, _)) => shape_of_custom(def, stored_versions),
            None => return self.uninstall(definition.name()),
        };
        let feed = &self.server.registry().feed;
        let before = self.installed.remove(definition.name());
        let cache = match &before {
            Some(i) if i.cache.shape.serves_as(&shape) => {
                // Whoever watches must see the objects as the definition has them now.
                i.cache.close_watches();
                Arc::clone(&i.cache)
            }
            _ => {
                let cache = Arc::new(Cache::new(shape));
                feed.join(Arc::clone(&cache)).await;
                cache
            }
        };
        let gvrs: Vec<Gvr> = entries.iter().map(|(def, _)| def.gvr.clone()).collect();
        let stale: Vec<Gvr> =
            before.map(|b| b.gvrs).unwrap_or_default().into_iter().filter(|g| !gvrs.contains(g)).collect();
        let new: Vec<Resource> =
            entries.into_iter().map(|(def, custom)| Resource::custom(def, Arc::clone(&cache), custom)).collect();
        let Some(resource) = new.first().cloned() else { return };
        self.server.resources().replace(&stale, new);
        self.server.inner().served_anew();
        self.installed.insert(definition.name().to_owned(), Installed { identity, gvrs, resource, cache });
    }

    fn uninstall(&mut self, name: &str) {
        let Some(installed) = self.installed.remove(name) else { return };
        self.server.resources().replace(&installed.gvrs, std::iter::empty());
        self.server.registry().feed.leave(&installed.cache.shape.prefix);
        self.server.inner().served_anew();
    }

    /// Deletes what is left of a definition that is being deleted, then lets it go.
    async fn clean_up(&mut self, definition: &Value, bytes: &Bytes) {
        if !definition.has_finalizer(FINALIZER) {
            return;
        }
        if !self.installed.contains_key(definition.name()) {
            // After a restart, its objects must be seen before they can be deleted.
            self.install(definition, bytes).await;
        }
        if let Some(installed) = self.installed.get(definition.name()) {
            let cache = Arc::clone(&installed.cache);
            let objects = cache.list(&Selection::default(), storage::Revision(0)).objects;
            // What no finalizer holds is gone at once: nobody is shown a half of it.
            if !objects.iter().any(|o| !o.decoded().meta("finalizers").items().is_empty()) {
                self.server.resources().replace(&installed.gvrs, std::iter::empty());
                self.server.inner().served_anew();
            }
            let mut held = false;
            for object in objects {
                let (namespace, name) = cache.shape.names(&object.key);
                held |= self.delete(&installed.resource, namespace, name).await;
            }
            if held {
                // Finalizers hold some; nobody tells when they end.
                self.ending.insert(definition.name().to_owned());
                return;
            }
        }
        self.ending.remove(definition.name());
        let change = |old: &Value| {
            let mut new = old.clone();
            let rest: Vec<Value> =
                old.meta("finalizers").items().iter().filter(|f| f.as_str() != Some(FINALIZER)).cloned().collect();
            new.set(&["metadata", "finalizers"], rest);
            Ok(new)
        };
        let released = self.change(definition.name(), "", Part::Main, &change).await;
        log(released, definition.name(), "a definition cannot be released");
    }

    /// Returns whether the object is held by finalizers.
    async fn delete(&self, resource: &Resource, namespace: &str, name: &str) -> bool {
        let mut write = self.writer.write_to(resource.clone(), namespace, name);
        match self.server.registry().delete(&mut write, &DeleteOptions::default()).await {
            Ok(crate::registry::Deleted::Pending(_)) => true,
            Ok(crate::registry::Deleted::Gone(_)) => false,
            Err(status) => status.code != 404,
        }
    }
}

fn group_of(definition: &Value) -> CompactString {
    definition.str_at(&["spec", "group"]).into()
}

/// Changes when what is served of a definition has to.
fn identity_of(definition: &Value) -> String {
    let shown = apimachinery::field::shown;
    let (meta, names) = (&definition["metadata"], definition.at(&["status", "acceptedNames"]));
    format!("{}/{}/{}", meta.str_at(&["uid"]), shown(&meta["generation"]), shown(names))
}

fn log(done: Result<(), Status>, name: &str, what: &'static str) {
    // Conflicts come back as changes.
    if let Err(status) = done
        && !matches!(status.code, 404 | 409)
    {
        tracing::warn!(name, message = status.message, "{what}");
    }
}
