//! The finalizers by which a deletion tells the garbage collector what is to become of dependents.

use apimachinery::Value;

use super::options::{DeleteOptions, Propagation};

pub(super) const ORPHAN: &str = "orphan";
pub(super) const FOREGROUND: &str = "foregroundDeletion";

/// The finalizers that the object is to have once this deletion has begun; `None` when it has them already.
pub(super) fn plan_finalizers(object: &Value, options: &DeleteOptions, orphan_by_default: bool) -> Option<Vec<Value>> {
    let had = object.meta("finalizers").items();
    let is_ours = |f: &&Value| matches!(f.as_str(), Some(ORPHAN | FOREGROUND));
    let mut wanted: Vec<Value> = had.iter().filter(|f| !is_ours(f)).cloned().collect();
    if orphans(object, options, orphan_by_default) {
        wanted.push(ORPHAN.into());
    }
    if is_foreground(object, options) {
        wanted.push(FOREGROUND.into());
    }
    let same = wanted.len() == had.len() && wanted.iter().all(|f| had.contains(f));
    (!same).then_some(wanted)
}

/// What the client asks for wins, then what the object already carries, then the kind's default.
fn orphans(object: &Value, options: &DeleteOptions, by_default: bool) -> bool {
    if let Some(orphan) = options.orphan_dependents {
        return orphan;
    }
    match options.propagation {
        Some(policy) => policy == Propagation::Orphan,
        None if object.has_finalizer(ORPHAN) => true,
        None if object.has_finalizer(FOREGROUND) => false,
        None => by_default,
    }
}

fn is_foreground(object: &Value, options: &DeleteOptions) -> bool {
    if options.orphan_dependents.is_some() {
        return false;
    }
    match options.propagation {
        Some(policy) => policy == Propagation::Foreground,
        None => object.has_finalizer(FOREGROUND) && !object.has_finalizer(ORPHAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(had: &[&str], propagation: Option<Propagation>, orphan: Option<bool>, want: Option<&[&str]>) {
        let mut object = Value::object();
        object.set(&["metadata", "finalizers"], had.iter().map(|f| Value::from(*f)).collect::<Vec<_>>());
        let options = DeleteOptions { propagation, orphan_dependents: orphan, ..DeleteOptions::default() };
        let plan = plan_finalizers(&object, &options, false);
        let names: Option<Vec<&str>> = plan.as_ref().map(|p| p.iter().filter_map(Value::as_str).collect());
        assert_eq!(names.as_deref(), want);
    }

    #[test]
    fn the_policy_decides_then_the_object_then_the_kind() {
        check(&[], None, None, None);
        check(&[], Some(Propagation::Orphan), None, Some(&[ORPHAN]));
        check(&["a/b"], Some(Propagation::Foreground), None, Some(&["a/b", FOREGROUND]));
        check(&[ORPHAN], Some(Propagation::Background), None, Some(&[]));
        check(&[ORPHAN], None, None, None);
        check(&[FOREGROUND], Some(Propagation::Orphan), None, Some(&[ORPHAN]));
        check(&[], None, Some(true), Some(&[ORPHAN]));
        check(&[FOREGROUND], None, Some(false), Some(&[]));
    }
}
