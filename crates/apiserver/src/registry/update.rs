//! Update, of a whole object or of a part of it: PUT, PATCH and the subresources that change their object.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply;
use apimachinery::field::{FieldErrors, Path};
use apimachinery::meta::Gvk;
use apimachinery::status::Status;
use futures::future::BoxFuture;
use storage::{Key, StorageError};

use super::{Encoded, FieldManager, Preconditions, Registry, Stored, Write, meta, served, status};
use crate::admission::{Operation, Request};
use crate::cache::Object;
use crate::encoding;

/// From the object as it is (in the served version; `Null` when there is none) to what the client wants it to be. May be
/// asked again when somebody else was faster.
pub(crate) type Change<'a> = &'a (dyn Fn(&Value) -> Result<Value, Status> + Send + Sync);

/// Which part of an object an update may touch, and the rules for it.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    Main,
    Status,
    Other(&'a dyn Rules),
    /// Another kind that stands for the object: clients and admission see that.
    View(&'a dyn View),
}

/// A kind that shows a part of an object, as `Scale` does.
pub trait View: Send + Sync {
    fn show(&self, object: &Value) -> Value;

    /// Of which kind that is.
    fn kind(&self) -> Gvk;

    /// The managed fields of the object, as far as they are of what the view shows.
    fn managers(&self, object: &Value) -> Value;

    /// The object with what the view says of it.
    fn merge(&self, view: &Value, object: &Value) -> Result<Value, Status>;
}

/// The rules of a subresource that changes a part of its object.
pub trait Rules: Send + Sync {
    /// Takes back from `old` what this subresource may not change.
    fn prepare(&self, object: &mut Value, old: &Value);

    fn validate(&self, object: &Value, old: &Value) -> FieldErrors;

    /// Admission plugins look at it.
    fn is_admitted(&self) -> bool {
        true
    }

    /// A change that the strategy counts raises `generation`.
    fn raises_generation(&self) -> bool {
        true
    }
}

/// What became of one attempt to update.
enum Attempt {
    /// The store took it.
    Written(Stored),
    /// There was nothing to write: the object is so already, or it is a dry run.
    Unwritten(Stored),
    /// Somebody else was faster.
    Raced,
}

/// What an update did.
pub struct Updated {
    pub stored: Stored,
    pub created: bool,
}

impl Registry {
    /// Changes an object. `upsert`: makes it if it is not there, whatever the kind.
    ///
    /// # Errors
    /// What the change, admission, validation or the store has against it.
    pub fn update<'a>(
        &'a self,
        write: &'a mut Write,
        part: Part<'a>,
        preconditions: &'a Preconditions,
        upsert: bool,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Updated, Status>> {
        Box::pin(self.update_until_done(write, part, preconditions, upsert, change))
    }

    async fn update_until_done(
        &self,
        write: &mut Write,
        part: Part<'_>,
        preconditions: &Preconditions,
        upsert: bool,
        change: Change<'_>,
    ) -> Result<Updated, Status> {
        let def = write.resource.def;
        let key = write.key();
        // To ask an etcd takes as long as to write to it: the first attempt starts from the cache, which is seldom behind.
        let mut cached = self.remote_store.then(|| write.resource.stored().get(&key)).flatten();
        loop {
            let from_cache = cached.is_some();
            let current = match cached.take() {
                Some(object) => Some(object),
                None => self.read(&write.resource, &key).await?,
            };
            let Some(current) = current else {
                let may_create = upsert || (def.strategy.allow_create_on_update() && matches!(part, Part::Main));
                if !may_create {
                    return Err(Status::not_found(&def.gvr, &write.name));
                }
                let object = change(&Value::Null)?;
                if upsert && !object.uid().is_empty() {
                    let uid = object.uid();
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(Status::conflict(&def.gvr, &write.name, &why));
                }
                if !object.uid().is_empty() || preconditions.uid.is_some() {
                    let why =
                        format!("Precondition failed: UID in precondition: {}, UID in object meta: ", object.uid());
                    return Err(Status::conflict(&def.gvr, &write.name, &why));
                }
                return Ok(Updated { stored: self.create(write, object).await?, created: true });
            };
            let warnings = write.warnings.len();
            let attempt = self.update_once(write, part, preconditions, &key, &current, change).await;
            let done = match attempt {
                Ok(Attempt::Written(stored)) => return Ok(Updated { stored, created: false }),
                Ok(Attempt::Unwritten(stored)) => Some(Ok(stored)),
                Err(status) => Some(Err(status)),
                Ok(Attempt::Raced) => None,
            };
            if let Some(done) = done {
                // Nothing was written that would prove the cache right: only the store can.
                let holds = !from_cache
                    || self.read(&write.resource, &key).await?.is_some_and(|now| now.revision == current.revision);
                if holds {
                    return done.map(|stored| Updated { stored, created: false });
                }
            }
            // Once more, from what is there now.
            write.warnings.truncate(warnings);
        }
    }

    async fn update_once(
        &self,
        write: &mut Write,
        part: Part<'_>,
        preconditions: &Preconditions,
        key: &Key,
        current: &Arc<Object>,
        change: Change<'_>,
    ) -> Result<Attempt, Status> {
        let mut old = served(&write.resource, current).await?;
        let shown = match part {
            Part::View(view) => {
                let mut shown = view.show(&old);
                shown.set(&["metadata", "managedFields"], view.managers(&old));
                shown
            }
            _ => std::mem::take(&mut old),
        };
        let mut new = change(&shown)?;
        check_preconditions(write, &new, &shown, preconditions)?;
        if !write.applies {
            let manager = FieldManager::of(write);
            match part {
                Part::View(view) => manager.take_changes_of(&view.kind(), Some(&shown), &mut new),
                Part::Other(rules) if !rules.is_admitted() => {}
                _ => manager.take_changes(Some(&shown), &mut new),
            }
        }

        let mut request = write.admission_request(Operation::Update, new, shown);
        let admitted = !matches!(part, Part::Other(rules) if !rules.is_admitted());
        if admitted {
            let admitted = self.admission.admit(&mut request).await;
            write.warnings.append(&mut request.warnings);
            admitted?;
        }
        if let Part::View(view) = part {
            request.object = view.merge(&request.object, &old)?;
        } else {
            old = std::mem::take(&mut request.old_object);
        }
        let followed = self.admission.follows(&request);
        let kept = followed.then(|| old.clone());
        let attempt = self.store_changed(write, part, key, current, &mut request, old).await;
        if let Some(old) = kept {
            request.old_object = old;
            self.admission.finish(&request, !matches!(attempt, Ok(Attempt::Raced) | Err(_))).await;
        }
        attempt
    }

    /// Prepares, validates and writes `request.object`, which is to replace `old`.
    async fn store_changed(
        &self,
        write: &mut Write,
        part: Part<'_>,
        key: &Key,
        current: &Arc<Object>,
        request: &mut Request,
        old: Value,
    ) -> Result<Attempt, Status> {
        let def = write.resource.def;
        let admitted = !matches!(part, Part::Other(rules) if !rules.is_admitted());
        let object = &mut request.object;
        check_version(write, object, &old)?;
        prepare(write, part, object, &old);
        let mut errs = validate(write, part, object, &old);
        errs.extend(super::cel::check(def, object, Some(&old), errs.is_empty()));
        if !errs.is_empty() {
            return Err(Status::invalid(&def.storage, object.name(), &errs));
        }
        write.warnings.extend(def.strategy.warnings(object, Some(&old)));
        def.strategy.canonicalize(object);
        encoding::normalize(object, write.resource.ty());
        apply::keep_times_if_unchanged(&old, object);
        let gone = is_finished(object, &old);
        if admitted {
            self.validated(write, part, request, old).await?;
        }
        let followed = self.admission.follows(request);
        let object = if followed { request.object.clone() } else { std::mem::take(&mut request.object) };
        let encoded = self.encode(&write.resource, object).await?;
        let unchanged = encoded.is_held_as(current) && !self.holds_stale(key).await;
        let Encoded { body, value, form } = encoded;
        if unchanged || write.options.dry_run {
            return Ok(Attempt::Unwritten(Stored { body, revision: Some(current.revision), form }));
        }
        let written = if gone {
            // The last finalizer went: the object goes with it. The client gets the object as it would have been.
            self.storage.delete(key, current.revision).await.map(|_| current.revision)
        } else {
            self.storage.update(key, value, current.revision, self.ttl(write)).await
        };
        match written {
            Ok(revision) => Ok(Attempt::Written(Stored { body, revision: Some(revision), form })),
            Err(StorageError::Conflict { .. }) => Ok(Attempt::Raced),
            Err(error) => Err(status::of(&error, &def.gvr, key)),
        }
    }
}

impl Registry {
    /// Encryption would write the value of a key differently now.
    async fn holds_stale(&self, key: &Key) -> bool {
        match &self.encryption {
            Some(encryption) => encryption.holds_stale(key).await,
            None => false,
        }
    }

    /// Asks the validating plugins. They see a view where clients do.
    async fn validated(
        &self,
        write: &mut Write,
        part: Part<'_>,
        request: &mut Request,
        old: Value,
    ) -> Result<(), Status> {
        let mut hidden = None;
        if let Part::View(view) = part {
            request.old_object = view.show(&old);
            let shown = view.show(&request.object);
            hidden = Some(std::mem::replace(&mut request.object, shown));
        } else {
            request.old_object = old;
        }
        let validated = self.admission.validate(request).await;
        if let Some(object) = hidden {
            request.object = object;
        }
        write.warnings.append(&mut request.warnings);
        validated
    }
}

fn check_preconditions(write: &Write, new: &Value, old: &Value, preconditions: &Preconditions) -> Result<(), Status> {
    let wanted = preconditions.uid.as_deref().unwrap_or_else(|| new.uid());
    if !wanted.is_empty() && wanted != old.uid() {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {}", old.uid());
        return Err(Status::conflict(&write.resource.def.gvr, &write.name, &why));
    }
    Ok(())
}

/// Optimistic locking: an update that names a version means that version; one that names none means any, where the kind
/// allows that.
fn check_version(write: &Write, object: &mut Value, old: &Value) -> Result<(), Status> {
    let def = write.resource.def;
    match object.resource_version() {
        "" | "0" => {
            if !def.strategy.allow_unconditional_update() {
                let mut errs = FieldErrors::new();
                errs.invalid_value(&Path::new("metadata.resourceVersion"), 0, "must be specified for an update");
                // Upstream's store names a custom resource where it names the kind of a built-in one.
                let resource = Gvk { kind: def.gvr.resource.clone(), ..def.gvk() };
                let named = if write.resource.custom.is_some() { &resource } else { &def.storage };
                return Err(Status::invalid(named, &write.name, &errs));
            }
            object.set(&["metadata", "resourceVersion"], old.resource_version());
        }
        version if version.parse::<u64>().is_err() => {
            return Err(status::plain(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
        }
        version if version != old.resource_version() => {
            return Err(Status::conflict(&def.gvr, &write.name, status::MODIFIED));
        }
        _ => {}
    }
    Ok(())
}

fn prepare(write: &Write, part: Part<'_>, object: &mut Value, old: &Value) {
    let def = write.resource.def;
    let strategy = def.strategy;
    match part {
        Part::Main | Part::View(_) => {
            strategy.default_on_update(object, old);
            if def.subresource("status").is_some() {
                put_back(object, old, "status");
            }
            meta::keep_system_fields(object, old);
            strategy.prepare_for_update(object, old);
            if strategy.has_generation() && strategy.generation_changed(object, old) {
                let generation = old.meta("generation").as_i64().unwrap_or(0) + 1;
                object.set(&["metadata", "generation"], generation);
            }
        }
        Part::Status => {
            let fields: Vec<_> = object.entries().keys().chain(old.entries().keys()).cloned().collect();
            for field in fields.iter().filter(|f| !matches!(f.as_str(), "metadata" | "status")) {
                put_back(object, old, field);
            }
            meta::keep_system_fields(object, old);
            strategy.prepare_for_status_update(object, old);
        }
        Part::Other(rules) => {
            meta::keep_system_fields(object, old);
            rules.prepare(object, old);
            if rules.raises_generation() && strategy.has_generation() && strategy.generation_changed(object, old) {
                let generation = old.meta("generation").as_i64().unwrap_or(0) + 1;
                object.set(&["metadata", "generation"], generation);
            }
        }
    }
    strategy.stamp(object, Some(old), &meta::timestamp());
}

/// Makes a field what it was.
fn put_back(object: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => {
            object.make_object().insert(field, value.clone());
        }
        None => {
            object.remove(&[field]);
        }
    }
}

fn validate(write: &Write, part: Part<'_>, object: &Value, old: &Value) -> FieldErrors {
    let strategy = write.resource.def.strategy;
    let mut errs = meta::validate_update(object, old);
    match part {
        Part::Main | Part::View(_) => {
            // Upstream's kinds check their metadata once more, so that each finding comes twice.
            errs.extend(errs.clone());
            errs.extend(meta::validate_finalizer_names(object, write.resource.def));
            errs.extend(strategy.validate_update(object, old));
        }
        Part::Status => {
            errs.extend(errs.clone());
            errs.extend(strategy.validate_status_update(object, old));
        }
        Part::Other(rules) => errs.extend(rules.validate(object, old)),
    }
    errs
}

/// The object waits for nothing more before it goes: it is being deleted, its grace is over, and nobody holds it.
fn is_finished(object: &Value, old: &Value) -> bool {
    old.is_deleting()
        && object.meta("finalizers").items().is_empty()
        && old.meta("deletionGracePeriodSeconds").as_i64().unwrap_or(0) == 0
        // A namespace is held by what its spec lists as well.
        && (old.kind() != "Namespace" || object.at(&["spec", "finalizers"]).items().is_empty())
}
