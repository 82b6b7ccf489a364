//! Feature gates: a value that is handed around, never a global.

use std::collections::BTreeMap;
use std::str::FromStr;

/// A gate that a component knows.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub name: &'static str,
    pub default: bool,
    /// A gate whose feature can no longer be switched.
    pub locked: bool,
}

/// What `--feature-gates` and a configuration file's `featureGates` say: `A=true,B=false`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates(BTreeMap<String, bool>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    #[error("missing bool value for {0}")]
    NoValue(String),
    #[error("invalid value of {name}={value}, err: strconv.ParseBool: parsing \"{value}\": invalid syntax")]
    NotABool { name: String, value: String },
    #[error("cannot set feature gate {name} to {value}, feature is locked to {default}")]
    Locked { name: &'static str, value: bool, default: bool },
}

impl FromStr for FeatureGates {
    type Err = GateError;

    fn from_str(s: &str) -> Result<Self, GateError> {
        let mut gates = BTreeMap::new();
        for part in s.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| GateError::NoValue(part.to_owned()))?;
            let on = crate::flags::go_bool(value.trim())
                .ok_or_else(|| GateError::NotABool { name: name.to_owned(), value: value.to_owned() })?;
            gates.insert(name.trim().to_owned(), on);
        }
        Ok(FeatureGates(gates))
    }
}

impl FeatureGates {
    #[must_use]
    pub fn new(gates: BTreeMap<String, bool>) -> Self {
        FeatureGates(gates)
    }

    /// Whether a gate is on: as set, or as `AllAlpha`/`AllBeta` cannot say here, its default.
    #[must_use]
    pub fn enabled(&self, gate: Gate) -> bool {
        self.0.get(gate.name).copied().unwrap_or(gate.default)
    }

    /// The settings of the other win: flags over a file.
    #[must_use]
    pub fn overridden_by(mut self, other: &FeatureGates) -> Self {
        self.0.extend(other.0.iter().map(|(k, v)| (k.clone(), *v)));
        self
    }

    /// Settings of gates that are locked, and names that no gate of `known` has: upstream refuses the former; the latter
    /// are returned for a warning, because a newer or older release may know them.
    ///
    /// # Errors
    /// [`GateError::Locked`] for the first locked gate that is set to something else.
    pub fn check(&self, known: &[Gate]) -> Result<Vec<String>, GateError> {
        for gate in known.iter().filter(|g| g.locked) {
            if let Some(value) = self.0.get(gate.name).filter(|v| **v != gate.default) {
                return Err(GateError::Locked { name: gate.name, value: *value, default: gate.default });
            }
        }
        Ok(self.0.keys().filter(|name| !known.iter().any(|g| g.name == **name)).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: Gate = Gate { name: "A", default: true, locked: false };

    #[test]
    fn a_gate_is_as_set_or_as_it_is_by_default() {
        let gates: FeatureGates = "A=false, B=true".parse().unwrap();
        assert!(!gates.enabled(GATE));
        assert!(FeatureGates::default().enabled(GATE));
        assert!(gates.clone().overridden_by(&"A=true".parse().unwrap()).enabled(GATE));
        assert_eq!(gates.check(&[GATE]), Ok(vec!["B".to_owned()]));
    }

    #[test]
    fn bad_settings_are_refused() {
        assert_eq!("A".parse::<FeatureGates>(), Err(GateError::NoValue("A".into())));
        assert!("A=maybe".parse::<FeatureGates>().is_err());
        let locked = Gate { locked: true, ..GATE };
        assert!("A=false".parse::<FeatureGates>().unwrap().check(&[locked]).is_err());
    }
}
