//! Server-side apply, and the ownership of fields that it rests on.
//!
//! Every write passes here: [`update_managers`] gives what a create, update or patch has changed to its manager;
//! [`apply`] merges an applied object into the live one, unless that takes a field from somebody else. Both are pure: the
//! time and everything about the request come in [`Context`], and conversions between versions through [`Versions`].
//!
//! What [`apply`] returns still has to go through [`crate::codec::from_value`] and defaulting; and when the registry has
//! the object that it would store, [`keep_times_if_unchanged`] undoes what would be a change of timestamps only.

mod conflict;
mod fields;
mod managed;
mod scale;
mod walk;

use compact_str::CompactString;

pub use conflict::{Conflict, Conflicts};
pub use fields::FieldSet;
pub use managed::{ManagerId, Operation};
pub use scale::ScaleMapping;

use crate::schema::TypeRef;
use crate::{Map, Value, codec};
use managed::{Entry, Managers};
use walk::{Comparison, Typed};

/// Upstream merges the oldest of more updaters than this.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a write is about.
pub struct Context<'a> {
    /// The type of the object in the version of the request.
    pub ty: &'a TypeRef,
    pub kind: &'a str,
    /// The version of the request: `apps/v1`.
    pub api_version: &'a str,
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Now, as `Time` is written.
    pub time: &'a str,
    /// Fields that this endpoint does not change: `status` of the object itself, `spec` of its status.
    pub reset: &'a FieldSet,
    pub versions: &'a dyn Versions,
}

/// Conversion of objects to the versions in which their managers' fields are meant.
pub trait Versions {
    /// The object in another version with its type there; `None` if that version is gone.
    fn convert(&self, object: &Value, to: &str) -> Option<(Value, TypeRef)>;
}

/// For kinds that have one version: what was managed in any other is forgotten.
pub struct OneVersion;

impl Versions for OneVersion {
    fn convert(&self, _: &Value, _: &str) -> Option<(Value, TypeRef)> {
        None
    }
}

/// Why an object cannot be applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
    /// The request is bad.
    #[error("{0}")]
    BadRequest(String),
    /// The object does not fit its schema. Upstream answers 500.
    #[error("{0}")]
    Untyped(String),
}

/// Gives the fields that differ between `old` and `new` to the manager. `old` is `None` on create.
///
/// A request may bring `managedFields` of its own: they replace the live ones, unless it is to a subresource; a list
/// that is empty, or has one empty entry, clears them.
pub fn update_managers(old: Option<&Value>, new: &mut Value, ctx: &Context<'_>) {
    let given = new.remove(&["metadata", "managedFields"]).unwrap_or_default();
    let live = old.map_or(&Value::Null, |old| old.meta("managedFields"));
    let managers = if ctx.subresource.is_empty() && is_reset(&given) {
        Managers::default()
    } else {
        let given =
            if ctx.subresource.is_empty() { Managers::decode(&given).unwrap_or_default() } else { Managers::default() };
        if given.0.is_empty() { Managers::decode(live).unwrap_or_default() } else { given }
    };
    // Whoever has cleared the managed fields does not want them tracked.
    let created = old.is_none_or(|old| old.uid().is_empty());
    if managers.0.is_empty() && !created {
        return;
    }
    let empty;
    let old = match old {
        Some(old) => old,
        None => {
            empty = ctx.ty.zero();
            &empty
        }
    };
    let managers = updated(old, new, managers, ctx.manager, ctx);
    set_managers(new, cap(managers));
}

/// Merges an applied object into the live one (`None` if there is none yet).
///
/// # Errors
/// [`ApplyError::Conflicts`] if the object changes fields that others own, and `force` is not set; the other variants for
/// objects that cannot be applied at all.
pub fn apply(live: Option<&Value>, applied: &Value, force: bool, ctx: &Context<'_>) -> Result<Value, ApplyError> {
    if applied.kind() != ctx.kind || applied.api_version() != ctx.api_version {
        let gv = crate::meta::GroupVersion::parse(applied.api_version()).unwrap_or_default();
        return Err(ApplyError::BadRequest(format!(
            "invalid object type: {}/{}, Kind={}",
            gv.group,
            gv.version,
            applied.kind()
        )));
    }
    if !applied.meta("managedFields").is_null() {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    check_typed(applied, ctx)?;
    let mut base = live.map_or_else(|| ctx.ty.zero(), Value::clone);
    let managed_fields = base.remove(&["metadata", "managedFields"]).unwrap_or_default();
    let mut managers = Managers::decode(&managed_fields)
        .map_err(|e| ApplyError::Untyped(format!("failed to decode managed fields: {e}")))?;
    if managers.0.is_empty() {
        managers = updated(&ctx.ty.zero(), &base, managers, BEFORE_FIRST_APPLY, ctx);
    }
    let done = applied_to(&base, applied, managers.clone(), force, ctx);
    let (mut object, managers) = match done {
        Err(conflicts) if ctx.manager == "kubectl" => {
            // kubectl's own earlier client-side applies are no conflict.
            let rest = conflicts.difference(&client_side_fields(&base, ctx));
            if rest.0.is_empty() {
                applied_to(&base, applied, managers, true, ctx)?
            } else {
                return Err(rest.into_conflicts().into());
            }
        }
        done => done?,
    };
    if ctx.manager == "kubectl" && base.annotation(LAST_APPLIED).is_some() {
        object.set(&["metadata", "annotations", LAST_APPLIED], last_applied_of(applied));
    }
    set_managers(&mut object, cap(managers));
    Ok(object)
}

/// If two objects differ in the times of their managers only, gives the new one the old times: then nothing has to be
/// stored.
pub fn keep_times_if_unchanged(old: &Value, new: &mut Value) {
    let (before, after) = (old.meta("managedFields"), new.meta("managedFields"));
    if before == after || before.items().len() != after.items().len() {
        return;
    }
    let untimed = |entries: &Value| {
        let mut entries = entries.items().to_vec();
        entries.iter_mut().for_each(|e| drop(e.remove(&["time"])));
        // The order depends on the times.
        entries.sort_by_cached_key(codec::json::encode);
        entries
    };
    if equal_but_for_managers(old, new) && untimed(before) == untimed(after) {
        new.set(&["metadata", "managedFields"], before.clone());
    }
}

fn equal_but_for_managers(a: &Value, b: &Value) -> bool {
    let rest = |v: &Value, skip: &str| v.entries().iter().filter(|(k, _)| *k != skip).count();
    let same = |a: &Map, b: &Map, skip: &str| a.iter().filter(|(k, _)| *k != skip).all(|(k, v)| b.get(k) == Some(v));
    rest(a, "metadata") == rest(b, "metadata")
        && same(a.entries(), b.entries(), "metadata")
        && rest(&a["metadata"], "managedFields") == rest(&b["metadata"], "managedFields")
        && same(a["metadata"].entries(), b["metadata"].entries(), "managedFields")
}

/// Nothing is tracked of what the server sets itself.
fn untracked() -> &'static FieldSet {
    static SET: std::sync::OnceLock<FieldSet> = std::sync::OnceLock::new();
    SET.get_or_init(|| {
        FieldSet::of(&[
            "apiVersion",
            "kind",
            "metadata",
            "metadata.clusterName",
            "metadata.creationTimestamp",
            "metadata.generation",
            "metadata.managedFields",
            "metadata.name",
            "metadata.namespace",
            "metadata.resourceVersion",
            "metadata.selfLink",
            "metadata.uid",
        ])
    })
}

fn is_reset(given: &Value) -> bool {
    match given {
        Value::Array(entries) => match entries.as_slice() {
            [] => true,
            [Value::Object(entry)] => entry.iter().all(|(_, v)| v.is_empty_value()),
            _ => false,
        },
        _ => false,
    }
}

fn set_managers(object: &mut Value, managers: Managers) {
    if managers.0.is_empty() {
        object.remove(&["metadata", "managedFields"]);
    } else {
        object.set(&["metadata", "managedFields"], managers.encode());
    }
}

fn check_typed(applied: &Value, ctx: &Context<'_>) -> Result<(), ApplyError> {
    let faults = walk::faults(applied, Typed::new(ctx.ty));
    let text = match faults.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let gv = crate::meta::GroupVersion::parse(applied.api_version()).unwrap_or_default();
    Err(ApplyError::Untyped(format!(
        "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {text}",
        applied.namespace(),
        applied.name(),
        gv.group,
        gv.version,
        applied.kind()
    )))
}

/// The managers after an update by `manager`, who gets all that differs.
fn updated(old: &Value, new: &Value, managers: Managers, manager: &str, ctx: &Context<'_>) -> Managers {
    let managers = reconciled(managers, old, ctx);
    let id = ManagerId::new(manager, Operation::Update, ctx.api_version, ctx.subresource);
    let (mut managers, comparison, _) = contested(old, new, managers, None, ctx);
    let taken = comparison.changed.difference(untracked());
    if !taken.is_empty() {
        let fields = match managers.get(&id) {
            Some(entry) => entry.fields.union(&taken),
            None => taken,
        };
        managers.put(Entry { id, version: ctx.api_version.into(), fields, time: Some(ctx.time.into()) });
    }
    managers.drop_empty();
    managers
}

/// The conflicts of every manager but the one that writes, and the managers without the contested and removed fields.
fn contested(
    old: &Value,
    new: &Value,
    mut managers: Managers,
    writer: Option<&ManagerId>,
    ctx: &Context<'_>,
) -> (Managers, Comparison, Contested) {
    let own = excluding(walk::compare(old, new, Typed::new(ctx.ty)), ctx.reset);
    let mut others: Vec<(CompactString, Option<Comparison>)> = Vec::new();
    let mut contested = Contested(Vec::new());
    managers.0.retain_mut(|entry| {
        if Some(&entry.id) == writer {
            return true;
        }
        let comparison = if entry.version == ctx.api_version {
            Some(&own)
        } else {
            let known = others.iter().position(|(version, _)| *version == entry.version);
            let at = known.unwrap_or_else(|| {
                let both = ctx.versions.convert(old, &entry.version).zip(ctx.versions.convert(new, &entry.version));
                let comparison =
                    both.map(|((old, ty), (new, _))| excluding(walk::compare(&old, &new, Typed::new(&ty)), ctx.reset));
                others.push((entry.version.clone(), comparison));
                others.len() - 1
            });
            others[at].1.as_ref()
        };
        // A version that is gone takes its managers along.
        let Some(comparison) = comparison else { return false };
        let conflict = entry.fields.intersection(&comparison.changed);
        entry.fields.subtract(&comparison.removed);
        if !conflict.is_empty() {
            entry.fields.subtract(&conflict);
            contested.0.push((entry.id.clone(), conflict));
        }
        true
    });
    (managers, own, contested)
}

fn excluding(comparison: Comparison, reset: &FieldSet) -> Comparison {
    Comparison {
        removed: comparison.removed.difference_below(reset),
        changed: comparison.changed.difference_below(reset),
    }
}

/// Who would lose what.
#[derive(Debug)]
struct Contested(Vec<(ManagerId, FieldSet)>);

impl Contested {
    fn difference(&self, allowed: &FieldSet) -> Contested {
        let rest = self.0.iter().map(|(id, fields)| (id.clone(), fields.clone().difference(allowed)));
        Contested(rest.filter(|(_, fields)| !fields.is_empty()).collect())
    }

    fn into_conflicts(mut self) -> Conflicts {
        self.0.sort_by_key(|(id, _)| id.shown());
        let each = self.0.into_iter().flat_map(|(manager, fields)| {
            fields.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path })
        });
        Conflicts(each.collect())
    }
}

impl From<Contested> for ApplyError {
    fn from(contested: Contested) -> Self {
        ApplyError::Conflicts(contested.into_conflicts())
    }
}

/// The merged object and its managers, the writer among them.
fn applied_to(
    base: &Value,
    applied: &Value,
    managers: Managers,
    force: bool,
    ctx: &Context<'_>,
) -> Result<(Value, Managers), Contested> {
    let ty = Typed::new(ctx.ty);
    let mut managers = reconciled(managers, base, ctx);
    let id = ManagerId::new(ctx.manager, Operation::Apply, "", ctx.subresource);
    let last = managers.get(&id).cloned();
    // What is not tracked counts until the merge is done: an applied name keeps the metadata around it.
    let fields = walk::field_set(applied, ty).difference_below(ctx.reset);
    let entry = Entry {
        id: id.clone(),
        version: ctx.api_version.into(),
        fields,
        time: last.as_ref().and_then(|l| l.time.clone()),
    };
    managers.put(entry);
    let merged = walk::merge(base, applied, ty);
    let merged = match &last {
        Some(last) if !last.fields.is_empty() => pruned(merged, last, &managers, ctx),
        _ => merged,
    };
    let (mut managers, _, contested) = contested(base, &merged, managers, Some(&id), ctx);
    if let Some(entry) = managers.0.iter_mut().find(|e| e.id == id) {
        entry.fields.subtract(untracked());
    }
    if !force && !contested.0.is_empty() {
        return Err(contested);
    }
    if merged != *base
        && let Some(entry) = managers.0.iter_mut().find(|e| e.id == id)
    {
        entry.time = Some(ctx.time.into());
    }
    managers.drop_empty();
    Ok((merged, managers))
}

/// Takes out of the merged object what its manager applied last time but not this time, and nobody else has.
fn pruned(merged: Value, last: &Entry, managers: &Managers, ctx: &Context<'_>) -> Value {
    let Some((merged, ty)) = in_version(merged, &last.version, ctx) else { return Value::Null };
    let ty = Typed::new(&ty);
    let last_fields = walk::with_named(&last.fields, ty);
    let mut left = walk::remove(&merged, &last_fields, ty);

    // Back with what somebody (or this apply) still owns, one version after the other.
    let mut versions: Vec<&CompactString> = vec![&last.version];
    for entry in &managers.0 {
        if !versions.contains(&&entry.version) {
            versions.push(&entry.version);
        }
    }
    for version in versions {
        let owned = managers.0.iter().filter(|e| e.version == *version);
        let owned = owned.fold(FieldSet::default(), |all, e| all.union(&e.fields));
        if owned.is_empty() {
            continue;
        }
        let converted =
            in_other(&merged, &last.version, version, ctx).zip(in_other(&left, &last.version, version, ctx));
        let Some(((whole, ty), (part, _))) = converted else { continue };
        let ty = Typed::new(&ty);
        let fields = |v: &Value| walk::with_named(&walk::field_set(v, ty), ty);
        let gone = fields(&whole).difference(&fields(&part).union(&walk::with_named(&owned, ty)));
        let kept = walk::remove(&whole, &gone, ty);
        if let Some((kept, _)) = in_other(&kept, version, &last.version, ctx) {
            left = kept;
        }
    }

    // Back with what this manager never had.
    let fields = |v: &Value| walk::with_named(&walk::field_set(v, ty), ty);
    let gone = fields(&merged).difference(&fields(&left)).intersection(&last_fields);
    let left = walk::remove(&merged, &gone, ty);
    in_other(&left, &last.version, ctx.api_version, ctx).map_or(left, |(object, _)| object)
}

/// An object of the request's version in another.
fn in_version(object: Value, version: &str, ctx: &Context<'_>) -> Option<(Value, TypeRef)> {
    if version == ctx.api_version { Some((object, ctx.ty.clone())) } else { ctx.versions.convert(&object, version) }
}

fn in_other(object: &Value, from: &str, to: &str, ctx: &Context<'_>) -> Option<(Value, TypeRef)> {
    if to == ctx.api_version && from == to {
        return Some((object.clone(), ctx.ty.clone()));
    }
    let (converted, ty) = ctx.versions.convert(object, to)?;
    Some(if from == to { (object.clone(), ty) } else { (converted, ty) })
}

/// Managers whose fields lie below what has become atomic since.
fn reconciled(mut managers: Managers, object: &Value, ctx: &Context<'_>) -> Managers {
    for entry in managers.0.iter_mut().filter(|e| e.version == ctx.api_version) {
        walk::draw_to_atomics(&mut entry.fields, object, Typed::new(ctx.ty));
    }
    managers
}

/// Merges the oldest updaters of a version until there are few enough.
fn cap(mut managers: Managers) -> Managers {
    let mut updaters: Vec<ManagerId> = Vec::new();
    let mut by_time: Vec<&Entry> = managers.0.iter().filter(|e| e.id.operation == Operation::Update).collect();
    if by_time.len() <= MAX_UPDATERS {
        return managers;
    }
    by_time.sort_by_key(|e| (e.time.clone().unwrap_or_default(), e.id.clone()));
    updaters.extend(by_time.iter().map(|e| e.id.clone()));
    let mut count = updaters.len();
    let mut first_of: Vec<(CompactString, ManagerId)> = Vec::new();
    for id in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let Some(entry) = managers.get(&id).cloned() else { continue };
        let Some((_, first)) = first_of.iter().find(|(version, _)| *version == entry.version).cloned() else {
            first_of.push((entry.version, id));
            continue;
        };
        let bucket = ManagerId::new(ANCIENT, Operation::Update, &entry.version, "");
        let merged_into = managers.get(&bucket).or_else(|| managers.get(&first)).cloned();
        let fields = merged_into.map_or_else(FieldSet::default, |e| e.fields).union(&entry.fields);
        managers.0.retain(|e| e.id != id && e.id != first);
        managers.put(Entry { id: bucket, version: entry.version, fields, time: entry.time });
        count -= 1;
    }
    managers
}

/// What kubectl applied from the client's side and nobody has changed since.
fn client_side_fields(live: &Value, ctx: &Context<'_>) -> FieldSet {
    let annotation = live.annotation(LAST_APPLIED).unwrap_or_default();
    let Ok(last) = codec::json::value(annotation.as_bytes()) else { return FieldSet::default() };
    if last.api_version() != ctx.api_version || !walk::faults(&last, Typed::new(ctx.ty)).is_empty() {
        return FieldSet::default();
    }
    let ty = Typed::new(ctx.ty);
    let since = walk::compare(&last, live, ty);
    walk::field_set(&last, ty).difference(&since.changed).difference(&since.removed)
}

/// The annotation that client-side apply goes by, for an object that was applied from the server's side.
fn last_applied_of(applied: &Value) -> CompactString {
    let mut applied = applied.clone();
    applied.remove(&["metadata", "annotations", LAST_APPLIED]);
    let mut text = String::from_utf8_lossy(&codec::json::encode(&applied)).into_owned();
    text.push('\n');
    text.into()
}
