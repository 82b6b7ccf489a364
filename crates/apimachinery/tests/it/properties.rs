//! What must hold for every object of every type, whatever is in it.

use apimachinery::apply::{self, Context, FieldSet, OneVersion};
use apimachinery::codec::{Options, cbor, from_value, json, protobuf, yaml};
use apimachinery::patch::{merge, strategic_merge};
use apimachinery::schema::{PatchStrategy, Shape, TypeRef};
use apimachinery::{Map, Value};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use testing::fuzz::Random;

use crate::arbitrary::{kinds, neighbours, object, objects};

fn through_json(value: &Value, ty: &TypeRef) -> Value {
    let decoded = json::decode(&json::encode(value), ty, Options::default()).unwrap();
    assert_eq!(decoded.strict, Vec::<String>::new());
    decoded.value
}

/// Protobuf has no place for the kind and version of objects within objects, and for a few other fields.
fn through_protobuf(value: &Value, ty: &TypeRef) -> Value {
    protobuf::decode(&protobuf::encode(value, ty), ty).unwrap()
}

#[test]
fn every_type_goes_through_every_encoding() {
    for (name, ty) in kinds() {
        for seed in 0..40 {
            let value = object(ty, seed * 7919 + 1);
            assert_eq!(through_json(&value, ty), value, "{name}, seed {seed}, in JSON");
            assert_eq!(through_protobuf(&value, ty), value, "{name}, seed {seed}, in protobuf");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn encodings_agree((ty, value) in objects()) {
        let json = through_json(&value, ty);
        prop_assert_eq!(&json, &value);
        prop_assert_eq!(&through_protobuf(&json, ty), &json);
        let yaml = yaml::decode(&yaml::encode(&value), ty, Options::default()).unwrap();
        prop_assert_eq!(&yaml.value, &value);
        let cbor = cbor::decode(&cbor::encode(&value, ty), ty, Options::default()).unwrap();
        prop_assert_eq!(&cbor.value, &value);
        // What was written once is written the same again.
        let bytes = protobuf::encode(&value, ty);
        prop_assert_eq!(protobuf::encode(&protobuf::decode(&bytes, ty).unwrap(), ty), bytes);
    }

    #[test]
    fn a_merge_patch_of_the_difference_makes_the_other((ty, old, new) in neighbours()) {
        let patch = merge_difference(&old, &new);
        let mut patched = old.clone();
        merge(&mut patched, &patch);
        prop_assert_eq!(&typed(patched, ty), &new, "{}", text(&patch));
    }

    #[test]
    fn a_strategic_patch_of_the_difference_makes_the_other((ty, old, new) in neighbours()) {
        let patch = strategic_difference(&old, &new, Some(ty));
        let mut patched = old.clone();
        strategic_merge(&mut patched, patch.clone(), ty).unwrap();
        prop_assert_eq!(&typed(patched, ty), &new, "{}\nto\n{}\nby\n{}", text(&old), text(&new), text(&patch));
    }

    #[test]
    fn applying_twice_is_applying_once((ty, live, applied) in neighbours()) {
        let applied = of_kind(&applied);
        let live = owned(&of_kind(&live), ty, "other");
        let once = apply_as("me", Some(&live), &applied, ty);
        let twice = apply_as("me", Some(&once), &applied, ty);
        prop_assert_eq!(&twice, &once);
    }

    #[test]
    fn what_is_applied_is_there_and_given_up_is_gone((ty, value) in objects()) {
        let whole = of_kind(&value);
        let made = apply_as("me", None, &whole, ty);
        prop_assert_eq!(&without_managers(&made), &without_managers(&whole));
        let nothing = of_kind(&Value::object());
        let mut left = without_managers(&apply_as("me", Some(&made), &nothing, ty));
        for field in UNTRACKED {
            left.remove(&["metadata", field]);
        }
        // Only what is not owned stays: kind, version, and empty structs that are always written.
        prop_assert_eq!(typed(left, ty), typed(nothing, ty));
    }

    #[test]
    fn appliers_of_different_fields_may_come_in_any_order((ty, value, seed) in objects().prop_flat_map(|(ty, value)| (Just(ty), Just(value), any::<u64>()))) {
        let (mut ours, mut theirs) = (value, Value::object());
        divide(&mut ours, &mut theirs, &mut Random(seed | 1), ty);
        let (ours, theirs) = (of_kind(&ours), of_kind(&theirs));
        let first = apply_as("b", Some(&apply_as("a", None, &ours, ty)), &theirs, ty);
        let second = apply_as("a", Some(&apply_as("b", None, &theirs, ty)), &ours, ty);
        prop_assert_eq!(typed(without_managers(&first), ty), typed(without_managers(&second), ty));
    }
}

fn text(value: &Value) -> String {
    String::from_utf8_lossy(&json::encode(value)).into_owned()
}

fn typed(value: Value, ty: &TypeRef) -> Value {
    from_value(value, ty, Options::default()).unwrap().value
}

// === differences ===

fn merge_difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for (name, value) in after.iter() {
        match before.get(name) {
            Some(same) if same == value => {}
            Some(other) => drop(patch.insert(name.clone(), merge_difference(other, value))),
            None => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    before
        .keys()
        .filter(|name| !after.contains_key(name))
        .for_each(|name| drop(patch.insert(name.clone(), Value::Null)));
    Value::Object(patch)
}

fn field<'t>(ty: Option<&'t TypeRef>, name: &str) -> (Option<&'t TypeRef>, PatchStrategy) {
    match ty.map(|ty| &ty.shape) {
        Some(Shape::Struct(shape)) => shape.field(name).map(|f| (Some(&f.ty), f.patch.clone())).unwrap_or_default(),
        Some(Shape::Map(shape)) => (Some(&shape.value), PatchStrategy::default()),
        Some(Shape::SchemaOr(_, props)) => field(Some(props), name),
        _ => (None, PatchStrategy::default()),
    }
}

fn strategic_difference(old: &Value, new: &Value, ty: Option<&TypeRef>) -> Value {
    let (before, after) = (old.entries(), new.entries());
    let mut patch = Map::new();
    for (name, value) in after.iter() {
        let (field_type, strategy) = field(ty, name);
        match (before.get(name), value) {
            (Some(same), value) if same == value => {}
            (Some(old @ Value::Object(_)), Value::Object(_)) if !strategy.replace => {
                patch.insert(name.clone(), strategic_difference(old, value, field_type));
            }
            (Some(Value::Array(old)), Value::Array(new)) if strategy.merge => {
                list_difference(&mut patch, name, (old, new), field_type, &strategy.merge_key);
            }
            (_, value) => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    before
        .keys()
        .filter(|name| !after.contains_key(name))
        .for_each(|name| drop(patch.insert(name.clone(), Value::Null)));
    Value::Object(patch)
}

fn list_difference(patch: &mut Map, name: &str, (old, new): (&[Value], &[Value]), ty: Option<&TypeRef>, key: &str) {
    let item_type = match ty.map(|ty| &ty.shape) {
        Some(Shape::List(list)) => Some(&list.item),
        _ => None,
    };
    let id = |item: &Value| if key.is_empty() { item.clone() } else { item[key].clone() };
    let keyed = |id: Value| if key.is_empty() { id } else { Value::from([(key, id)]) };
    let find = |list: &[Value], wanted: &Value| list.iter().find(|item| id(item) == *wanted).cloned();
    let mut changes = Vec::new();
    for item in new {
        match find(old, &id(item)) {
            Some(same) if same == *item => {}
            Some(other) => {
                let mut change = strategic_difference(&other, item, item_type);
                change.set(&[key], id(item));
                changes.push(change);
            }
            None => changes.push(item.clone()),
        }
    }
    let gone: Vec<Value> = old.iter().map(id).filter(|wanted| find(new, wanted).is_none()).collect();
    if key.is_empty() {
        if !gone.is_empty() {
            patch.insert(format!("$deleteFromPrimitiveList/{name}"), gone);
        }
    } else {
        for id in gone {
            let mut deletion = keyed(id);
            deletion.set(&["$patch"], "delete");
            changes.push(deletion);
        }
    }
    if !changes.is_empty() {
        patch.insert(name, changes);
    }
    patch.insert(format!("$setElementOrder/{name}"), new.iter().map(|item| keyed(id(item))).collect::<Vec<_>>());
}

// === apply ===

/// What nobody owns: the server itself says it.
const UNTRACKED: [&str; 9] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

const VERSION: &str = "example.com/v1";

/// Types do not know which kind they are here.
fn of_kind(value: &Value) -> Value {
    let mut value = value.clone();
    value.set(&["kind"], "Thing");
    value.set(&["apiVersion"], VERSION);
    value.remove(&["metadata", "managedFields"]);
    value
}

fn with_context<T>(manager: &str, ty: &TypeRef, f: impl FnOnce(&Context<'_>) -> T) -> T {
    f(&Context {
        ty,
        kind: "Thing",
        api_version: VERSION,
        manager,
        subresource: "",
        time: "2026-01-01T00:00:00Z",
        reset: &FieldSet::default(),
        versions: &OneVersion,
    })
}

fn owned(value: &Value, ty: &TypeRef, manager: &str) -> Value {
    let mut value = value.clone();
    with_context(manager, ty, |ctx| apply::update_managers(None, &mut value, ctx));
    value
}

fn apply_as(manager: &str, live: Option<&Value>, applied: &Value, ty: &TypeRef) -> Value {
    with_context(manager, ty, |ctx| apply::apply(live, applied, true, ctx))
        .unwrap_or_else(|e| panic!("{}: {e}", ty.name))
}

fn without_managers(value: &Value) -> Value {
    let mut value = value.clone();
    value.remove(&["metadata", "managedFields"]);
    if value.get("metadata").is_some_and(|m| m.entries().is_empty()) {
        value.remove(&["metadata"]);
    }
    value
}

/// Moves some fields of an object to another.
fn divide(ours: &mut Value, theirs: &mut Value, random: &mut Random, ty: &TypeRef) {
    let Value::Object(map) = ours else { return };
    let names: Vec<_> = map.keys().cloned().collect();
    for name in names {
        match random.below(3) {
            0 => {
                if let Some(value) = map.remove(&name) {
                    theirs.make_object().insert(name, value);
                }
            }
            1 => {
                let divides = matches!(&ty.shape, Shape::Struct(s) if !s.atomic)
                    && ty.field(&name).is_some_and(|f| {
                        f.atomic != Some(true) && matches!(&f.ty.shape, Shape::Struct(s) if !s.atomic)
                    });
                if let (true, Some(value), Some(field)) = (divides, map.get_mut(&name), ty.field(&name)) {
                    let mut part = Value::object();
                    divide(value, &mut part, random, &field.ty);
                    // An empty struct is a value of its own, which nobody has applied.
                    let all_went = value.entries().is_empty() && !part.entries().is_empty();
                    if !part.entries().is_empty() {
                        theirs.make_object().insert(name.clone(), part);
                    }
                    if all_went {
                        map.remove(&name);
                    }
                }
            }
            _ => {}
        }
    }
}
