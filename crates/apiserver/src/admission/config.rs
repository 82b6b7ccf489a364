//! `--admission-control-config-file`: an `AdmissionConfiguration` with the configuration of each plugin, in place or in a
//! file of its own.

use std::collections::BTreeMap;
use std::path::Path;

use apimachinery::Value;
use component_base::config_file;
use serde::Deserialize;

/// The configurations by plugin.
pub type PluginConfigs = BTreeMap<String, Value>;

#[derive(Deserialize, Default)]
#[serde(default)]
struct AdmissionConfiguration {
    plugins: Vec<PluginConfiguration>,
}

#[derive(Deserialize)]
struct PluginConfiguration {
    name: String,
    /// Beside the file that names it, unless it is absolute.
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Option<serde_json::Value>,
}

/// # Errors
/// What is wrong with a file, and with which.
pub fn load(path: &Path) -> Result<PluginConfigs, String> {
    const VERSIONS: &[&str] =
        &["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1", "apiserver.k8s.io/v1alpha1"];
    let file: AdmissionConfiguration =
        config_file::load(path, VERSIONS, "AdmissionConfiguration").map_err(|e| e.to_string())?;
    let mut configs = PluginConfigs::new();
    for plugin in file.plugins {
        let config = match plugin.configuration {
            Some(config) => config,
            None if plugin.path.is_empty() => continue,
            None => {
                let at = path.parent().unwrap_or(Path::new("")).join(&plugin.path);
                let text = std::fs::read_to_string(&at).map_err(|e| format!("cannot read {}: {e}", at.display()))?;
                serde_saphyr::from_str(&text).map_err(|e| format!("{}: {e}", at.display()))?
            }
        };
        configs.insert(plugin.name, Value::from(config));
    }
    Ok(configs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_configured_in_place_or_in_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("limits.yaml"), "limits: [{type: Server}]").unwrap();
        let main = dir.path().join("admission.yaml");
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- {name: EventRateLimit, path: limits.yaml}\n- name: PodSecurity\n  configuration: {defaults: {enforce: baseline}}\n";
        std::fs::write(&main, text).unwrap();
        let configs = load(&main).unwrap();
        assert_eq!(configs["EventRateLimit"]["limits"].items().len(), 1);
        assert_eq!(configs["PodSecurity"].str_at(&["defaults", "enforce"]), "baseline");
        assert!(load(&dir.path().join("limits.yaml")).is_err());
    }
}
