//! Levels and versions, and the labels by which a namespace chooses them.

use std::fmt;

use apimachinery::Value;
use apimachinery::field::{FieldErrors, Path};

/// From the least strict to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Of the rules: those of a minor version of Kubernetes, or the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Minor(u32),
    Latest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub level: Level,
    pub version: Version,
}

/// What is refused, what is noted in the audit log, and what the client is warned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub enforce: LevelVersion,
    pub audit: LevelVersion,
    pub warn: LevelVersion,
}

pub(super) const BAD_LEVEL: &str = "must be one of privileged, baseline, restricted";
pub(super) const BAD_VERSION: &str = "must be \"latest\" or \"v1.x\"";

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Level::Privileged, Level::Baseline, Level::Restricted].into_iter().find(|level| level.to_string() == text)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })
    }
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Version::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let is_plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        if is_plain { minor.parse().ok().map(Version::Minor) } else { None }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Minor(minor) => write!(f, "v1.{minor}"),
            Version::Latest => f.write_str("latest"),
        }
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

impl LevelVersion {
    pub(super) const PRIVILEGED: LevelVersion = LevelVersion { level: Level::Privileged, version: Version::Latest };
}

impl Policy {
    pub(super) const PRIVILEGED: Policy =
        Policy { enforce: LevelVersion::PRIVILEGED, audit: LevelVersion::PRIVILEGED, warn: LevelVersion::PRIVILEGED };

    /// What the labels of a namespace ask for. What cannot be read counts as `restricted` where it is enforced, and as
    /// nothing where it would only be told.
    pub(super) fn of_labels(namespace: &Value, defaults: Policy) -> (Policy, FieldErrors) {
        let mut policy = defaults;
        let mut errs = FieldErrors::new();
        let labels = Path::new("metadata").child("labels");
        let modes = [
            ("enforce", &mut policy.enforce, Level::Restricted),
            ("audit", &mut policy.audit, Level::Privileged),
            ("warn", &mut policy.warn, Level::Privileged),
        ];
        for (mode, at, fallback) in modes {
            let key = format!("pod-security.kubernetes.io/{mode}");
            if let Some(text) = namespace.label(&key) {
                at.level = Level::parse(text).unwrap_or_else(|| {
                    errs.invalid_value(&labels.key(&key), text, BAD_LEVEL);
                    fallback
                });
            }
            let key = format!("{key}-version");
            if let Some(text) = namespace.label(&key) {
                at.version = Version::parse(text).unwrap_or_else(|| {
                    errs.invalid_value(&labels.key(&key), text, BAD_VERSION);
                    Version::Latest
                });
            }
        }
        (policy, errs)
    }

    /// Upstream's short form: privileged levels are left out.
    pub(super) fn compact(&self) -> String {
        let modes = [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)];
        let shown = modes.iter().filter(|(_, lv)| lv.level != Level::Privileged);
        shown.map(|(mode, lv)| format!("{mode}={lv}")).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|lv| lv.level == Level::Privileged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(labels: &str, want: &str, wrong: usize) {
        let namespace: Value = serde_json::from_str(&format!(r#"{{"metadata":{{"labels":{labels}}}}}"#)).unwrap();
        let (policy, errs) = Policy::of_labels(&namespace, Policy::PRIVILEGED);
        assert_eq!((policy.compact().as_str(), errs.0.len()), (want, wrong));
    }

    #[test]
    fn labels_choose_levels_and_versions() {
        check("{}", "", 0);
        check(
            r#"{"pod-security.kubernetes.io/enforce":"baseline","pod-security.kubernetes.io/enforce-version":"v1.30"}"#,
            "enforce=baseline:v1.30",
            0,
        );
        check(r#"{"pod-security.kubernetes.io/enforce":"strict"}"#, "enforce=restricted:latest", 1);
        check(r#"{"pod-security.kubernetes.io/warn":"x","pod-security.kubernetes.io/warn-version":"1.2"}"#, "", 2);
    }

    #[test]
    fn versions_are_plain_minors() {
        for (text, ok) in
            [("v1.0", true), ("v1.36", true), ("v1.01", false), ("v2.1", false), ("latest", true), ("v1.", false)]
        {
            assert_eq!(Version::parse(text).is_some(), ok, "{text}");
        }
    }
}
