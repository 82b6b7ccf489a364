//! Configuration files of upstream's kinds (`KubeletConfiguration`, `KubeSchedulerConfiguration`, …), read strictly.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Syntax { path: PathBuf, problem: String },
    #[error("{}: no kind \"{kind}\" is registered for version \"{api_version}\"; expected {expected}", path.display())]
    Kind { path: PathBuf, kind: String, api_version: String, expected: String },
    #[error("{}: strict decoding error: {}", path.display(), fields.join(", "))]
    Unknown { path: PathBuf, fields: Vec<String> },
    #[error("{}: {problem}", path.display())]
    Field { path: PathBuf, problem: String },
}

/// Reads a YAML or JSON file that must be of one of `api_versions` and of `kind`. All unknown fields are reported at once.
///
/// # Errors
/// When the file cannot be read, is of another kind, or has fields that the kind does not know.
pub fn load<T: DeserializeOwned>(path: &Path, api_versions: &[&str], kind: &str) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path, api_versions, kind)
}

/// As [`load`], for a text that has been read already; `path` is for messages.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    api_versions: &[&str],
    kind: &str,
) -> Result<T, ConfigError> {
    let path = path.to_owned();
    let mut value: serde_json::Value = match serde_saphyr::from_str(text) {
        Ok(value) => value,
        Err(e) => return Err(ConfigError::Syntax { path, problem: e.to_string() }),
    };
    let has = |field: &str| value.get(field).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let (found_version, found_kind) = (has("apiVersion"), has("kind"));
    if found_kind != kind || !api_versions.contains(&found_version.as_str()) {
        let expected = format!("{kind} of {}", api_versions.join(" or "));
        return Err(ConfigError::Kind { path, kind: found_kind, api_version: found_version, expected });
    }
    if let Some(map) = value.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    let mut fields = Vec::new();
    let parsed = serde_ignored::deserialize(value, |field| fields.push(format!("unknown field \"{field}\"")));
    match parsed {
        Err(e) => Err(ConfigError::Field { path, problem: e.to_string() }),
        Ok(_) if !fields.is_empty() => Err(ConfigError::Unknown { path, fields }),
        Ok(parsed) => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(rename_all = "camelCase", default)]
    struct Thing {
        node_ports: Vec<u16>,
        mode: String,
    }

    impl Default for Thing {
        fn default() -> Self {
            Thing { node_ports: vec![1], mode: "auto".into() }
        }
    }

    fn check(text: &str) -> Result<Thing, String> {
        parse(text, Path::new("thing.yaml"), &["thing.k8s.io/v1"], "Thing").map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let thing = check("apiVersion: thing.k8s.io/v1\nkind: Thing\nmode: fast\n").unwrap();
        assert_eq!(thing, Thing { node_ports: vec![1], mode: "fast".into() });
    }

    #[test]
    fn all_unknown_fields_are_named() {
        let text = "apiVersion: thing.k8s.io/v1\nkind: Thing\nmod: fast\nports: []\n";
        let error = "thing.yaml: strict decoding error: unknown field \"mod\", unknown field \"ports\"";
        assert_eq!(check(text), Err(error.to_owned()));
    }

    #[test]
    fn another_kind_is_refused() {
        let error = check("apiVersion: thing.k8s.io/v2\nkind: Thing\n").unwrap_err();
        assert!(error.contains("no kind \"Thing\" is registered for version \"thing.k8s.io/v2\""), "{error}");
        assert!(check("{").is_err());
    }
}
