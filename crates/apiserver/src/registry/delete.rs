//! Delete: at once, after a grace period, or when the last finalizer is gone.

use std::sync::Arc;

use api::strategy::Deletion;
use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvk};
use apimachinery::status::{Details, Status};
use compact_str::CompactString;
use jiff::{SignedDuration, Timestamp};
use storage::{Key, StorageError};

use super::{DeleteOptions, Encoded, Registry, Stored, Write, finalizers, served, status};
use crate::admission::{Operation, Request};
use crate::cache::Object;

/// What a deletion came to.
pub enum Deleted {
    /// The object is gone. It is as it was last.
    Gone(Stored),
    /// The object waits for its grace period or its finalizers.
    Pending(Stored),
}

/// What to do with an object that is to be deleted.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Remove it now.
    Remove,
    /// It is being deleted already; nothing changes.
    Wait,
    /// Store it so; then remove it if `remove`.
    Mark { object: Value, remove: bool },
}

impl Registry {
    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// What preconditions, admission or the store has against it.
    pub async fn delete(&self, write: &mut Write, options: &DeleteOptions) -> Result<Deleted, Status> {
        let def = write.resource.def;
        let key = write.key();
        loop {
            let current = self.read(&write.resource, &key).await?;
            let current = current.ok_or_else(|| Status::not_found(&def.gvr, &write.name))?;
            let old = served(&write.resource, &current).await?;
            check_delete_preconditions(options, &old)?;
            let request = self.admit_deletion(write, old.clone()).await?;
            if options.propagation.is_none() && options.orphan_dependents.is_none() {
                write.warnings.extend(def.strategy.deletion_warning().map(str::to_owned));
            }
            let done = self.delete_once(write, options, &key, &current, old).await;
            self.admission.finish(&request, matches!(done, Ok(Some(Deleted::Gone(_))))).await;
            if let Some(done) = done? {
                return Ok(done);
            }
        }
    }

    async fn admit_deletion(&self, write: &mut Write, old: Value) -> Result<Request, Status> {
        let mut request = write.admission_request(Operation::Delete, Value::Null, old);
        let mut admitted = self.admission.admit(&mut request).await;
        if admitted.is_ok() {
            admitted = self.admission.validate(&mut request).await;
        }
        write.warnings.append(&mut request.warnings);
        admitted?;
        Ok(request)
    }

    /// `None`: the object changed meanwhile.
    async fn delete_once(
        &self,
        write: &Write,
        options: &DeleteOptions,
        key: &Key,
        current: &Arc<Object>,
        old: Value,
    ) -> Result<Option<Deleted>, Status> {
        let def = write.resource.def;
        let strategy = def.strategy;
        let graceful = strategy.deletion(&old, options.grace_period_seconds);
        let orphans = strategy.orphans_dependents_by_default();
        let unchanged = Stored::of(current);
        let is_namespace = def.gvr.group.is_empty() && def.gvr.resource == "namespaces";
        let now = Timestamp::now();
        let mut old = old;
        if def.gvr.resource == "customresourcedefinitions" && !old.is_deleting() {
            crate::custom::hold(&mut old, now);
        }
        let planned = if is_namespace && (!old.is_deleting() || is_held_by_spec(&old)) {
            plan_namespace(old, options, now)
        } else {
            plan(old, graceful, options, orphans, now)
        };
        let done = match planned {
            Plan::Wait => return Ok(Some(Deleted::Pending(unchanged))),
            Plan::Remove if options.dry_run => return Ok(Some(Deleted::Gone(unchanged))),
            Plan::Remove => self.storage.delete(key, current.revision).await.map(|_| Deleted::Gone(unchanged)),
            Plan::Mark { object, remove } => {
                let Encoded { body, value, form } = self.encode(&write.resource, object).await?;
                let stored = |revision| Stored { body: body.clone(), revision: Some(revision), form };
                if options.dry_run {
                    let stored = stored(current.revision);
                    return Ok(Some(if remove { Deleted::Gone(stored) } else { Deleted::Pending(stored) }));
                }
                match self.storage.update(key, value, current.revision, self.ttl(write)).await {
                    Ok(revision) if remove => {
                        self.storage.delete(key, revision).await.map(|_| Deleted::Gone(stored(revision)))
                    }
                    Ok(revision) => Ok(Deleted::Pending(stored(revision))),
                    Err(error) => Err(error),
                }
            }
        };
        match done {
            Ok(done) => Ok(Some(done)),
            Err(StorageError::Conflict { .. }) => Ok(None),
            Err(error) => Err(status::of(&error, &def.gvr, key)),
        }
    }
}

/// The client means a certain version of the object, or a certain object of that name.
///
/// # Errors
/// 409, naming the kind where other conflicts name the resource, as upstream has it.
pub(crate) fn check_delete_preconditions(options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    let conflict = |why: String| {
        let gvk = Gvk {
            group: GroupVersion::parse(old.api_version()).unwrap_or_default().group,
            version: CompactString::default(),
            kind: old.kind().into(),
        };
        let name = old.name();
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", gvk.group_kind());
        let details = Details {
            name: name.into(),
            group: gvk.group.to_string(),
            kind: gvk.kind.to_string(),
            ..Details::default()
        };
        Err(Status::new(409, "Conflict", message).with_details(details))
    };
    if let Some(uid) = options.preconditions.uid.as_deref().filter(|uid| *uid != old.uid()) {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            old.uid()
        ));
    }
    let version = options.preconditions.resource_version.as_deref();
    if let Some(version) = version.filter(|v| *v != old.resource_version()) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            old.resource_version()
        ));
    }
    Ok(())
}

/// What a deletion does to an object. `graceful` is what its kind says of this object and the period asked for.
fn plan(mut object: Value, graceful: Deletion, options: &DeleteOptions, orphans: bool, now: Timestamp) -> Plan {
    let was_deleting = object.is_deleting();
    let had_grace = object.meta("deletionGracePeriodSeconds").as_i64();
    let is_graceful_kind = matches!(graceful, Deletion::Graceful(_));
    let mut marked = false;
    if was_deleting && is_graceful_kind {
        // A deletion that has begun can only be hastened.
        match (had_grace, options.grace_period_seconds) {
            (None, _) => {}
            // Its time was over, but whoever ended it got no further: the second of the two writes is missing.
            (Some(0), _) if object.meta("finalizers").items().is_empty() => return Plan::Remove,
            (Some(had), Some(asked)) if asked < had => {
                hasten(&mut object, had, asked);
                marked = true;
            }
            (Some(_), _) => return Plan::Wait,
        }
    } else if let Deletion::Graceful(seconds) = graceful {
        mark(&mut object, now, seconds);
        marked = true;
    }
    let grace = object.meta("deletionGracePeriodSeconds").as_i64().unwrap_or(0);

    let mut changed = marked;
    if let Some(wanted) = finalizers::plan_finalizers(&object, options, orphans) {
        changed = true;
        set_finalizers(&mut object, wanted);
    }
    let held = !object.meta("finalizers").items().is_empty();
    if held && !marked {
        // Held by finalizers alone: the grace period is over from the start.
        if was_deleting && had_grace == Some(0) {
            return if changed { Plan::Mark { object, remove: false } } else { Plan::Wait };
        }
        mark(&mut object, now, 0);
        changed = true;
    }
    match (held, marked && grace > 0) {
        (false, false) if marked => Plan::Mark { object, remove: true },
        (false, false) => Plan::Remove,
        _ if changed => Plan::Mark { object, remove: false },
        _ => Plan::Wait,
    }
}

/// A namespace is first marked, whatever it holds; it goes when its content is gone and the finalizers of its spec with it.
fn plan_namespace(mut object: Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    if object.is_deleting() {
        return Plan::Wait;
    }
    object.set(&["metadata", "deletionTimestamp"], now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    object.set(&["status", "phase"], "Terminating");
    if let Some(wanted) = finalizers::plan_finalizers(&object, options, false) {
        let orphan_only = wanted.into_iter().filter(|f| f.as_str() != Some(finalizers::FOREGROUND)).collect();
        set_finalizers(&mut object, orphan_only);
    }
    Plan::Mark { object, remove: false }
}

fn is_held_by_spec(namespace: &Value) -> bool {
    !namespace.at(&["spec", "finalizers"]).items().is_empty()
}

fn set_finalizers(object: &mut Value, finalizers: Vec<Value>) {
    if finalizers.is_empty() {
        object.remove(&["metadata", "finalizers"]);
    } else {
        object.set(&["metadata", "finalizers"], finalizers);
    }
}

/// Marks an object as being deleted. The first mark is a change that controllers must observe.
fn mark(object: &mut Value, now: Timestamp, seconds: i64) {
    let first = object.meta("deletionGracePeriodSeconds").is_null();
    let generation = object.meta("generation").as_i64().unwrap_or(0);
    if first && generation > 0 {
        object.set(&["metadata", "generation"], generation + 1);
    }
    set_end(object, now, seconds);
}

/// Shortens the period of a deletion that has begun; it is counted from the same start.
fn hasten(object: &mut Value, had: i64, asked: i64) {
    let end: Option<Timestamp> = object.str_at(&["metadata", "deletionTimestamp"]).parse().ok();
    let start = end.and_then(|t| t.checked_sub(SignedDuration::from_secs(had)).ok());
    set_end(object, start.unwrap_or_else(Timestamp::now), asked);
}

fn set_end(object: &mut Value, from: Timestamp, seconds: i64) {
    let end = from.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    object.set(&["metadata", "deletionTimestamp"], end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    object.set(&["metadata", "deletionGracePeriodSeconds"], seconds);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::options::Propagation;

    #[track_caller]
    fn check(meta: &str, graceful: Deletion, asked: Option<i64>, policy: Option<Propagation>, want: &str) {
        let object: Value = serde_json::from_str(&format!(r#"{{"metadata":{meta}}}"#)).unwrap();
        let options = DeleteOptions { grace_period_seconds: asked, propagation: policy, ..DeleteOptions::default() };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let got = match plan(object, graceful, &options, false, now) {
            Plan::Remove => "remove".to_owned(),
            Plan::Wait => "wait".to_owned(),
            Plan::Mark { object, remove } => {
                format!(
                    "{} {}",
                    if remove { "mark+remove" } else { "mark" },
                    serde_json::to_string(&object["metadata"]).unwrap()
                )
            }
        };
        assert_eq!(got, want);
    }

    #[test]
    fn objects_without_grace_or_finalizers_go_at_once() {
        check("{}", Deletion::Immediate, None, None, "remove");
    }

    #[test]
    fn finalizers_hold_an_object() {
        check(
            r#"{"finalizers":["a/b"],"generation":1}"#,
            Deletion::Immediate,
            None,
            None,
            r#"mark {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["a/b"],"generation":2}"#,
        );
        check(
            r#"{"finalizers":["a/b"],"deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0}"#,
            Deletion::Immediate,
            None,
            None,
            "wait",
        );
        check(
            "{}",
            Deletion::Immediate,
            None,
            Some(Propagation::Foreground),
            r#"mark {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["foregroundDeletion"]}"#,
        );
    }

    #[test]
    fn a_grace_period_can_only_be_shortened() {
        check(
            r#"{"generation":1}"#,
            Deletion::Graceful(30),
            None,
            None,
            r#"mark {"deletionGracePeriodSeconds":30,"deletionTimestamp":"2026-01-01T00:00:30Z","generation":2}"#,
        );
        let deleting = r#"{"deletionTimestamp":"2026-01-01T00:00:30Z","deletionGracePeriodSeconds":30}"#;
        check(deleting, Deletion::Graceful(60), Some(60), None, "wait");
        check(
            deleting,
            Deletion::Graceful(5),
            Some(5),
            None,
            r#"mark {"deletionGracePeriodSeconds":5,"deletionTimestamp":"2026-01-01T00:00:05Z"}"#,
        );
        check(
            deleting,
            Deletion::Graceful(0),
            Some(0),
            None,
            r#"mark+remove {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z"}"#,
        );
    }

    /// The client may go away, or the server be killed, between the write that ends the period and the one that removes.
    #[test]
    fn what_should_have_been_removed_is_removed_when_it_is_deleted_again() {
        let over = r#"{"deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0}"#;
        check(over, Deletion::Graceful(0), Some(0), None, "remove");
        check(over, Deletion::Graceful(30), None, None, "remove");
        let held = over.replace('}', r#","finalizers":["a/b"]}"#);
        check(&held, Deletion::Graceful(0), Some(0), None, "wait");
    }
}
