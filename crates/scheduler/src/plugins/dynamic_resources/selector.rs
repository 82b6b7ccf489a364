//! CEL expressions over devices.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use cel::extractors::This;
use cel::objects::{Key, Map, Opaque};
use cel::{Context, Env, Program, Value};
use k8s_openapi::api::resource::v1::DeviceAttribute;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;

use super::devices::Offered;
use crate::quantity::Amount;

/// Compiled expressions, kept as long as there are not too many.
#[derive(Default)]
pub(super) struct Programs(Mutex<HashMap<String, Option<Arc<Program>>>>);

const KEPT: usize = 1024;

impl Programs {
    /// Whether the expression is true of the device. One that fails is not: a device without an attribute is not one with
    /// a value of it.
    pub(super) fn matches(&self, expression: &str, device: &Offered) -> bool {
        let Some(program) = self.program(expression) else { return false };
        let mut context = Context::default();
        if declare(&mut context).is_err() {
            return false;
        }
        context.add_variable_from_value("device", device_value(device));
        matches!(program.execute(&context), Ok(Value::Bool(true)))
    }

    fn program(&self, expression: &str) -> Option<Arc<Program>> {
        let mut programs = self.0.lock();
        if programs.len() > KEPT {
            programs.clear();
        }
        let compile = || Env::stdlib().compile(expression).ok().map(Arc::new);
        programs.entry(expression.to_owned()).or_insert_with(compile).clone()
    }
}

/// A quantity or a semantic version.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ordered {
    Quantity(Amount),
    Version { numbers: [u64; 3], pre_release: String },
}

impl Opaque for Ordered {
    fn runtime_type_name(&self) -> &str {
        match self {
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Version { .. } => "kubernetes.Semver",
        }
    }
}

impl Ordered {
    fn version(text: &str) -> Option<Self> {
        let text = text.split('+').next()?;
        let (core, pre_release) = text.split_once('-').unwrap_or((text, ""));
        let numbers: Vec<u64> = core.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self::Version { numbers: numbers.try_into().ok()?, pre_release: pre_release.to_owned() })
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Quantity(a), Self::Quantity(b)) => Some(a.cmp(b)),
            (Self::Version { numbers: a, pre_release: x }, Self::Version { numbers: b, pre_release: y }) => {
                // A release is after its own pre-releases.
                Some(a.cmp(b).then_with(|| x.is_empty().cmp(&y.is_empty())).then_with(|| x.cmp(y)))
            }
            _ => None,
        }
    }
}

type Argument = Arc<dyn Opaque>;

fn compare(a: &Argument, b: &Argument) -> Result<Ordering, cel::ExecutionError> {
    let both = a.downcast_ref::<Ordered>().zip(b.downcast_ref::<Ordered>());
    let order = both.and_then(|(a, b)| a.compare(b));
    order.ok_or_else(|| cel::ExecutionError::function_error("compareTo", "values of different types"))
}

fn declare(context: &mut Context<'_, '_>) -> Result<(), cel::DeclarationError> {
    context.add_function("isGreaterThan", |This(a): This<Argument>, b: Argument| {
        compare(&a, &b).map(|order| order == Ordering::Greater)
    })?;
    context.add_function("isLessThan", |This(a): This<Argument>, b: Argument| {
        compare(&a, &b).map(|order| order == Ordering::Less)
    })?;
    context
        .add_function("compareTo", |This(a): This<Argument>, b: Argument| compare(&a, &b).map(|order| order as i64))?;
    context.add_function("quantity", |text: Arc<String>| {
        Value::Opaque(Arc::new(Ordered::Quantity(Amount::of(&Quantity(text.to_string())))))
    })?;
    context.add_function("semver", |text: Arc<String>| {
        let version = Ordered::version(&text).map(|version| Value::Opaque(Arc::new(version)));
        version.ok_or_else(|| cel::ExecutionError::function_error("semver", "not a semantic version"))
    })?;
    Ok(())
}

fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let entries = entries.into_iter().map(|(key, value)| (Key::String(Arc::new(key)), value));
    Value::Map(Map { map: Arc::new(entries.collect()) })
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn attribute(value: &DeviceAttribute) -> Value {
    let DeviceAttribute { bool: boolean, int, string, version, bools, ints, strings, versions } = value;
    let version_of = |text: &String| Ordered::version(text).map_or(Value::Null, |v| Value::Opaque(Arc::new(v)));
    let list = |values: Vec<Value>| Value::List(Arc::new(values));
    if let Some(own) = boolean {
        Value::Bool(*own)
    } else if let Some(own) = int {
        Value::Int(*own)
    } else if let Some(own) = string {
        text(own)
    } else if let Some(own) = version {
        version_of(own)
    } else if let Some(own) = bools {
        list(own.iter().map(|own| Value::Bool(*own)).collect())
    } else if let Some(own) = ints {
        list(own.iter().map(|own| Value::Int(*own)).collect())
    } else if let Some(own) = strings {
        list(own.iter().map(|own| text(own)).collect())
    } else {
        list(versions.iter().flatten().map(version_of).collect())
    }
}

/// A name without a domain is of the driver's.
pub(super) fn qualified<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

/// Values by domain and name.
fn by_domain(values: impl Iterator<Item = (String, String, Value)>, driver: &str) -> Value {
    let mut domains: HashMap<String, Vec<(String, Value)>> = HashMap::from([(driver.to_owned(), Vec::new())]);
    for (domain, name, value) in values {
        domains.entry(domain).or_default().push((name, value));
    }
    map(domains.into_iter().map(|(domain, values)| (domain, map(values))))
}

fn device_value(offered: &Offered) -> Value {
    let driver = &*offered.id.driver;
    let name = |name: &str| {
        let (domain, name) = qualified(name, driver);
        (domain.to_owned(), name.to_owned())
    };
    let attributes = offered.device.attributes.iter().flatten().map(|(key, value)| {
        let (domain, name) = name(key);
        (domain, name, attribute(value))
    });
    let capacity = offered.device.capacity.iter().flatten().map(|(key, capacity)| {
        let (domain, name) = name(key);
        (domain, name, Value::Opaque(Arc::new(Ordered::Quantity(Amount::of(&capacity.value)))))
    });
    map([
        ("driver".to_owned(), text(driver)),
        ("attributes".to_owned(), by_domain(attributes, driver)),
        ("capacity".to_owned(), by_domain(capacity, driver)),
        (
            "allowMultipleAllocations".to_owned(),
            Value::Bool(offered.device.allow_multiple_allocations.unwrap_or_default()),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::devices::{DeviceId, Reach};
    use super::*;

    #[track_caller]
    fn check(expression: &str, want: bool) {
        let device = json!({
            "name": "gpu-0",
            "attributes": {
                "model": {"string": "a100"}, "index": {"int": 3}, "ecc": {"bool": true},
                "driverVersion": {"version": "1.2.3"}, "other.example.com/slot": {"string": "x"}},
            "capacity": {"memory": {"value": "40Gi"}},
        });
        let id = DeviceId { driver: "gpu.example.com".into(), pool: "p".into(), device: "gpu-0".into() };
        let offered = Offered { id, device: serde_json::from_value(device).unwrap(), reach: Reach::All };
        assert_eq!(Programs::default().matches(expression, &offered), want, "{expression}");
    }

    #[test]
    fn expressions_select_devices() {
        check("device.driver == 'gpu.example.com'", true);
        check("device.attributes['gpu.example.com'].model == 'a100'", true);
        check("device.attributes['gpu.example.com'].index > 3", false);
        check("device.attributes['gpu.example.com'].ecc", true);
        check("device.attributes['other.example.com'].slot == 'x'", true);
        check("device.attributes['gpu.example.com'].absent == 'x'", false);
        check("'absent' in device.attributes['gpu.example.com']", false);
        check("device.capacity['gpu.example.com'].memory.compareTo(quantity('10Gi')) > 0", true);
        check("device.capacity['gpu.example.com'].memory.isLessThan(quantity('40Gi'))", false);
        check("device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('1.2.3-rc.1'))", true);
        check("not an expression", false);
    }
}
