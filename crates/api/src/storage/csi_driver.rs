//! CSIDriver.

use apimachinery::Value;
use apimachinery::field::{Cursor, FieldErrors, Path};

use crate::strategy::{Cell, Now, Strategy};
use crate::table_cells;
use crate::validation::{Checks, int, same, text};

pub(crate) struct CsiDriverStrategy;

const MIN_TOKEN_SECONDS: i64 = 600;
const MIN_UPDATE_SECONDS: i64 = 10;
const FLAGS: &[(&str, bool)] = &[
    ("attachRequired", true),
    ("podInfoOnMount", false),
    ("storageCapacity", false),
    ("requiresRepublish", false),
    ("seLinuxMount", false),
];

fn tokens(list: &Cursor<'_>, errs: &mut FieldErrors) {
    let mut audiences: Vec<&str> = Vec::new();
    for token in list.elements() {
        let (audience, seconds) = (token.field("audience"), token.field("expirationSeconds"));
        if audiences.contains(&text(&audience)) {
            errs.duplicate(&audience.path, text(&audience));
            continue;
        }
        audiences.push(text(&audience));
        if seconds.is_absent() {
            continue;
        }
        if int(&seconds) < MIN_TOKEN_SECONDS {
            errs.invalid(&seconds, "may not specify a duration less than 10 minutes");
        }
        if int(&seconds) > 1 << 32 {
            errs.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

impl Strategy for CsiDriverStrategy {
    fn default(&self, driver: &mut Value) {
        let spec = driver.entry(&["spec"]);
        for (flag, value) in FLAGS {
            spec.set_default(&[flag], *value);
        }
        spec.set_default(&["fsGroupPolicy"], "ReadWriteOnceWithFSType");
        if spec["volumeLifecycleModes"].items().is_empty() {
            spec.set(&["volumeLifecycleModes"], vec![Value::from("Persistent")]);
        }
    }

    fn validate(&self, driver: &Value) -> FieldErrors {
        let mut errs = FieldErrors::new();
        let spec = Cursor::root(driver).field("spec");
        errs.one_of(&spec.field("fsGroupPolicy"), &["File", "None", "ReadWriteOnceWithFSType"]);
        tokens(&spec.field("tokenRequests"), &mut errs);
        let modes = spec.field("volumeLifecycleModes");
        for mode in modes.elements() {
            errs.one_of(&Cursor::new(modes.path.clone(), mode.value), &["Persistent", "Ephemeral"]);
        }
        let period = spec.field("nodeAllocatableUpdatePeriodSeconds");
        if !period.is_absent() && int(&period) < MIN_UPDATE_SECONDS {
            errs.invalid(&period, format!("must be greater than or equal to {MIN_UPDATE_SECONDS} seconds"));
        }
        errs
    }

    fn validate_update(&self, driver: &Value, old: &Value) -> FieldErrors {
        let mut errs = self.validate(driver);
        // `attachedRequired` is upstream's word in this message.
        for (field, shown) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            let value = &driver["spec"][field];
            if !same(value, &old["spec"][field]) {
                errs.invalid(&Cursor::new(Path::new("spec").child(shown), value), "field is immutable");
            }
        }
        errs
    }

    fn row(&self, driver: &Value, now: Now) -> Option<Vec<Cell>> {
        let spec = &driver["spec"];
        let flag = |name: &str, default: bool| Value::from(spec[name].as_bool().unwrap_or(default));
        let join = |all: Vec<&str>, none: &str| if all.is_empty() { none.to_owned() } else { all.join(",") };
        let modes = join(spec["volumeLifecycleModes"].items().iter().filter_map(Value::as_str).collect(), "<none>");
        let audiences =
            join(spec["tokenRequests"].items().iter().map(|t| t.str_at(&["audience"])).collect(), "<unset>");
        Some(vec![
            driver.name().into(),
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            audiences.into(),
            flag("requiresRepublish", false),
            modes.into(),
            table_cells::created(driver, now),
        ])
    }
}
