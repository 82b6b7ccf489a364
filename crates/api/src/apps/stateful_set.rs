//! StatefulSet.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors};

use super::rules::{self, template_cells};
use crate::core::pod::{Options, default_template, template_warnings, validate_template};
use crate::go_json::invalid_selector;
use crate::strategy::{Cell, Now, Strategy, dns_label};
use crate::table_cells;
use crate::validation::names::dns_subdomain;
use crate::validation::{Checks, int, same, text};

pub(crate) struct StatefulSetStrategy;

fn validate(set: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errs = FieldErrors::new();
    let spec = Cursor::root(set).field("spec");
    let management = spec.field("podManagementPolicy");
    match text(&management) {
        "" => errs.required(&management.path, ""),
        "OrderedReady" | "Parallel" => {}
        _ => errs.invalid(&management, "must be 'OrderedReady' or 'Parallel'"),
    }
    strategy(&mut errs, &spec.field("updateStrategy"));
    let retention = spec.field("persistentVolumeClaimRetentionPolicy");
    if !retention.is_absent() {
        for when in ["whenDeleted", "whenScaled"] {
            errs.one_of(&retention.field(when), &["Retain", "Delete"]);
        }
    }
    errs.non_negative(&spec.field("replicas"));
    errs.non_negative(&spec.field("minReadySeconds"));
    errs.non_negative(&spec.fields(&["ordinals", "start"]));
    rules::selector(&mut errs, &spec, "statefulset");
    let service = spec.field("serviceName");
    let was_bad = |old: &Value| !dns_subdomain(old.str_at(&["spec", "serviceName"])).is_empty();
    if !text(&service).is_empty() && !old.is_some_and(was_bad) {
        errs.each(&service, dns_subdomain(text(&service)));
    }
    template(&mut errs, &spec, old);
    errs
}

fn strategy(errs: &mut FieldErrors, strategy: &Cursor<'_>) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.value.str_at(&["type"]) {
        "" => errs.required(&strategy.path, ""),
        "OnDelete" => {
            if !rolling.is_absent() {
                errs.invalid_struct(&rolling, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => errs.non_negative(&rolling.field("partition")),
        _ => errs.invalid_struct(strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// The template, in which the claims of the set count as volumes.
fn template(errs: &mut FieldErrors, spec: &Cursor<'_>, old: Option<&Value>) {
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    match rules::selects(selector.value, template.value.at(&["metadata", "labels"])) {
        None => {
            invalid_selector(errs, &selector, "");
            return;
        }
        Some(false) => rules::does_not_match(errs, &template),
        Some(true) => {}
    }
    let options = match old {
        Some(old) => Options::keeping(false, old.at(&["spec", "template"])),
        None => Options::strict(false),
    };
    let filled = |set: &Value| with_claims(set.at(&["template"]), &set["volumeClaimTemplates"]);
    // Old servers did not look at it, so that what is no good already may stay so.
    let was_bad = old.is_some_and(|old| {
        let mut errs = FieldErrors::new();
        let before = filled(&old["spec"]);
        validate_template(&mut errs, &Cursor::new(template.path.clone(), &before), options);
        !errs.is_empty()
    });
    if !was_bad {
        let now = filled(spec.value);
        validate_template(errs, &Cursor::new(template.path.clone(), &now), options);
    }
    rules::runs_always(errs, &template, "StatefulSet");
}

/// The template with a volume for each claim; a volume of that name gives way to it.
fn with_claims(template: &Value, claims: &Value) -> Value {
    let mut template = template.clone();
    let names: Vec<&str> = claims.items().iter().map(|c| c.str_at(&["metadata", "name"])).collect();
    if names.is_empty() {
        return template;
    }
    let volumes = template.entry(&["spec", "volumes"]).make_array();
    for name in names {
        let source = Value::from([("claimName", name.into())]);
        let volume = Value::from([("name", name.into()), ("persistentVolumeClaim", source)]);
        match volumes.iter_mut().find(|v| v.str_at(&["name"]) == name) {
            Some(held) => *held = volume,
            None => volumes.push(volume),
        }
    }
    template
}

const UPDATABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSetStrategy {
    fn default(&self, set: &mut Value) {
        let spec = set.entry(&["spec"]);
        for (path, value) in
            [(&["podManagementPolicy"][..], "OrderedReady"), (&["updateStrategy", "type"], "RollingUpdate")]
        {
            if spec.str_at(path).is_empty() {
                spec.set(path, value);
            }
        }
        if spec.str_at(&["updateStrategy", "type"]) == "RollingUpdate" {
            spec.set_default(&["updateStrategy", "rollingUpdate", "partition"], 0i64);
        }
        for when in ["whenDeleted", "whenScaled"] {
            if spec.str_at(&["persistentVolumeClaimRetentionPolicy", when]).is_empty() {
                spec.set(&["persistentVolumeClaimRetentionPolicy", when], "Retain");
            }
        }
        spec.set_default(&["replicas"], 1i64);
        spec.set_default(&["revisionHistoryLimit"], 10i64);
        if let Some(claims) = spec.get_mut("volumeClaimTemplates") {
            for claim in claims.items_mut() {
                claim.set_default(&["apiVersion"], "v1");
                claim.set_default(&["kind"], "PersistentVolumeClaim");
                claim.set_default(&["spec", "volumeMode"], "Filesystem");
                claim.set_default(&["status", "phase"], "Pending");
            }
        }
        default_template(set, &["spec", "template"]);
    }

    fn prepare_for_create(&self, set: &mut Value) {
        set.set(&["status"], Value::from([("replicas", 0i64.into()), ("availableReplicas", 0i64.into())]));
        // A feature that is off: the field is dropped.
        set.remove(&["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"]);
    }

    fn prepare_for_update(&self, set: &mut Value, old: &Value) {
        let path = ["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"];
        if old.at(&path).is_null() {
            set.remove(&path);
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        dns_label(name, prefix)
    }

    fn validate(&self, set: &Value) -> FieldErrors {
        validate(set, None)
    }

    fn validate_update(&self, set: &Value, old: &Value) -> FieldErrors {
        let mut errs = validate(set, Some(old));
        let mut munged = set["spec"].clone();
        for field in UPDATABLE {
            munged.set(&[*field], old["spec"][*field].clone());
        }
        if !same(&munged, &old["spec"]) {
            errs.forbidden(
                &Cursor::root(set).field("spec").path,
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            );
        }
        errs
    }

    fn validate_status_update(&self, set: &Value, old: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let status = Cursor::root(set).field("status");
        rules::counters(
            &mut errs,
            &status,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        );
        rules::available(&mut errs, &status, "status.readyReplicas");
        rules::collisions(&mut errs, status.value, &old["status"]);
        errs
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(object, old, &["spec", "template"], false)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn row(&self, set: &Value, now: Now) -> Option<Vec<Cell>> {
        let ready = format!("{}/{}", int(set.at(&["status", "readyReplicas"])), int(set.at(&["spec", "replicas"])));
        let [names, images, _] = template_cells(set);
        Some(vec![set.name().into(), ready.into(), table_cells::created(set, now), names, images])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_volumes_of_the_template() {
        let template: Value = serde_json::from_str(r#"{"spec":{"volumes":[{"name":"a","emptyDir":{}}]}}"#).unwrap();
        let claims: Value = serde_json::from_str(r#"[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}]"#).unwrap();
        let filled = with_claims(&template, &claims);
        let claimed = |v: &Value| v.str_at(&["persistentVolumeClaim", "claimName"]).to_owned();
        assert_eq!(filled["spec"]["volumes"].items().iter().map(claimed).collect::<Vec<_>>(), ["a", "b"]);
    }
}
