//! Keeps the table of resources up with the definitions, and the definitions' status and end with what is so.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::Gvr;
use apimachinery::status::Status;
use tokio_util::sync::CancellationToken;

use super::definitions::Interned;
use super::names;
use crate::cache::Cache;
use crate::cache::selection::Selection;
use crate::registry::{DeleteOptions, Part, Preconditions};
use crate::resources::{Resource, shape_of_custom};
use crate::server::{ApiServer, OwnWriter};

pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// How long changes of definitions are gathered.
const BATCH: std::time::Duration = std::time::Duration::from_millis(20);

/// What is installed of a definition.
struct Installed {
    /// The version of the definition that this was made of.
    version: String,
    gvrs: Vec<Gvr>,
    cache: Arc<Cache>,
}

struct Controller {
    server: ApiServer,
    writer: OwnWriter,
    interned: Interned,
    installed: HashMap<String, Installed>,
}

/// Runs until `halt`.
pub(crate) async fn run(server: ApiServer, halt: CancellationToken) {
    let feed = Arc::clone(&server.registry().feed);
    if halt.run_until_cancelled(feed.reach_sync()).await.is_none() {
        return;
    }
    let writer = OwnWriter::new(&server);
    let mut controller = Controller { server, writer, interned: Interned::default(), installed: HashMap::new() };
    let mut changes = feed.changes();
    let mut seen = None;
    loop {
        let generation = controller.server.lister().generation(DEFINITIONS);
        if seen != Some(generation) {
            seen = Some(generation);
            if halt.run_until_cancelled(controller.sync()).await.is_none() {
                return;
            }
            // A look at all definitions for many changes at once: a thousand may be installed in a row.
            if halt.run_until_cancelled(tokio::time::sleep(BATCH)).await.is_none() {
                return;
            }
            // What was written just now may have been seen already.
            continue;
        }
        match halt.run_until_cancelled(changes.changed()).await {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

fn definitions_resource() -> Gvr {
    Gvr::new("apiextensions.k8s.io", "v1", "customresourcedefinitions")
}

impl Controller {
    async fn sync(&mut self) {
        let definitions = self.server.lister().list(DEFINITIONS, "");
        let mut by_group: HashMap<&str, Vec<&Value>> = HashMap::new();
        for definition in &definitions {
            by_group.entry(definition.str_at(&["spec", "group"])).or_default().push(definition);
        }
        let mut changed = false;
        for definition in &definitions {
            let group = definition.str_at(&["spec", "group"]);
            let others: Vec<&Value> =
                by_group[group].iter().copied().filter(|other| other.name() != definition.name()).collect();
            let now = crate::registry::timestamp();
            if definition.is_deleting() {
                self.clean_up(definition).await;
                continue;
            }
            match names::plan(definition, &others, &now) {
                // The new status comes back as a change. Two definitions that want one name are decided one after the other.
                Some(status) => self.set_status(definition, status).await,
                None => changed |= self.install(definition).await,
            }
        }
        let gone: Vec<String> =
            self.installed.keys().filter(|name| !definitions.iter().any(|d| d.name() == *name)).cloned().collect();
        for name in gone {
            changed |= self.uninstall(&name);
        }
        if changed {
            self.server.inner().discovery.renew(self.server.resources());
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

    /// Returns whether anything about the served resources changed.
    async fn install(&mut self, definition: &Value) -> bool {
        if !names::has_condition(definition, "Established", "True") {
            return false;
        }
        let version = definition.resource_version();
        if self.installed.get(definition.name()).is_some_and(|i| i.version == version) {
            return false;
        }
        let entries = self.interned.entries(definition);
        let shape = match entries.first() {
            Some((def, _)) => shape_of_custom(def),
            None => return self.uninstall(definition.name()),
        };
        let feed = &self.server.registry().feed;
        let before = self.installed.remove(definition.name());
        let cache = match &before {
            Some(i) if i.cache.shape.head == shape.head && i.cache.shape.fields == shape.fields => Arc::clone(&i.cache),
            _ => {
                let cache = Arc::new(Cache::new(shape));
                feed.join(Arc::clone(&cache)).await;
                cache
            }
        };
        let gvrs: Vec<Gvr> = entries.iter().map(|(def, _)| def.gvr.clone()).collect();
        let resources = self.server.resources();
        let stale: Vec<Gvr> =
            before.map(|b| b.gvrs).unwrap_or_default().into_iter().filter(|g| !gvrs.contains(g)).collect();
        let new = entries.into_iter().map(|(def, custom)| Resource {
            def,
            ty: custom.ty.clone(),
            cache: Some(Arc::clone(&cache)),
            custom: Some(custom),
        });
        resources.replace(&stale, new);
        let installed = Installed { version: version.to_owned(), gvrs, cache };
        self.installed.insert(definition.name().to_owned(), installed);
        true
    }

    fn uninstall(&mut self, name: &str) -> bool {
        let Some(installed) = self.installed.remove(name) else { return false };
        self.server.resources().replace(&installed.gvrs, std::iter::empty());
        self.server.registry().feed.leave(&installed.cache.shape.prefix);
        true
    }

    /// Deletes what is left of a definition that is being deleted, then lets it go.
    async fn clean_up(&mut self, definition: &Value) {
        if !definition.has_finalizer(FINALIZER) {
            return;
        }
        if !self.installed.contains_key(definition.name()) {
            // After a restart, its objects must be seen before they can be deleted.
            self.install(definition).await;
        }
        if let Some(installed) = self.installed.get(definition.name())
            && let Some(resource) = installed.gvrs.first().and_then(|gvr| self.server.resources().get(gvr))
        {
            let cache = Arc::clone(&installed.cache);
            let objects = cache.list(&Selection::default(), storage::Revision(0)).objects;
            // What no finalizer holds is gone at once: nobody is shown a half of it.
            if !objects.iter().any(|o| !o.decoded().meta("finalizers").items().is_empty()) {
                self.server.resources().replace(&installed.gvrs, std::iter::empty());
                self.server.inner().discovery.renew(self.server.resources());
            }
            let mut held = false;
            for object in objects {
                let (namespace, name) = cache.shape.names(&object.key);
                held |= self.delete(&resource, namespace, name).await;
            }
            if held {
                // Finalizers hold some; their end is a change that brings this back.
                self.come_back();
                return;
            }
        }
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

    /// Objects that wait for their finalizers are looked at again in a while.
    fn come_back(&self) {
        let feed = Arc::clone(&self.server.registry().feed);
        let cache = self.server.resources().get(&definitions_resource()).and_then(|r| r.cache);
        let halt = self.server.inner().halt.clone();
        self.server.inner().tasks.spawn(async move {
            let pause = tokio::time::sleep(std::time::Duration::from_secs(1));
            if halt.run_until_cancelled(pause).await.is_some()
                && let Some(cache) = cache
            {
                cache.touch();
                feed.nudge();
            }
        });
    }
}

fn log(done: Result<(), Status>, name: &str, what: &'static str) {
    // Conflicts come back as changes.
    if let Err(status) = done
        && !matches!(status.code, 404 | 409)
    {
        tracing::warn!(name, message = status.message, "{what}");
    }
}
