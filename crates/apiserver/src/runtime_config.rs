//! `--runtime-config`: which versions of the built-in groups, and which of their resources, are served.

use std::collections::BTreeMap;

use api::ResourceDef;

/// What the flag says; of nothing that it does not name. From the general to the particular: a stage of versions, a version,
/// a resource of a version.
#[derive(Clone, Debug, Default)]
pub struct RuntimeConfig {
    /// `api/all`, `api/ga`, `api/beta`, `api/alpha`.
    stages: BTreeMap<String, bool>,
    /// `v1`, `apps/v1`.
    versions: BTreeMap<String, bool>,
    /// `apps/v1/deployments`.
    resources: BTreeMap<String, bool>,
}

impl RuntimeConfig {
    /// Reads the values of the flag.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, Vec<String>> {
        let mut config = RuntimeConfig::default();
        let mut wrong = Vec::new();
        for (key, value) in given {
            let on = match value.as_str() {
                "" | "true" => true,
                "false" => false,
                other => {
                    wrong.push(format!("invalid value of runtime-config {key}={other}"));
                    continue;
                }
            };
            let version = key.strip_prefix("api/").filter(|version| !is_stage(version)).unwrap_or(key);
            let knows = |matches: &dyn Fn(&ResourceDef) -> bool| api::resources().iter().any(matches);
            if is_stage(key.strip_prefix("api/").unwrap_or_default()) {
                config.stages.insert(key.clone(), on);
            } else if knows(&|def| version_of(def) == version) {
                config.versions.insert(version.to_owned(), on);
            } else if knows(&|def| resource_of(def) == version) {
                config.resources.insert(version.to_owned(), on);
            } else {
                wrong.push(format!("unknown api groups {key}"));
            }
        }
        if wrong.is_empty() { Ok(config) } else { Err(wrong) }
    }

    #[must_use]
    pub fn serves(&self, def: &ResourceDef) -> bool {
        let version = def.gvr.version.as_str();
        let stage = match (version.contains("alpha"), version.contains("beta")) {
            (true, _) => "api/alpha",
            (_, true) => "api/beta",
            _ => "api/ga",
        };
        let said = [
            self.resources.get(&resource_of(def)),
            self.versions.get(&version_of(def)),
            self.stages.get(stage),
            self.stages.get("api/all"),
        ];
        said.into_iter().flatten().next().copied().unwrap_or(def.on_by_default)
    }
}

fn is_stage(name: &str) -> bool {
    ["all", "ga", "beta", "alpha"].contains(&name)
}

fn version_of(def: &ResourceDef) -> String {
    def.gvr.group_version().to_string()
}

fn resource_of(def: &ResourceDef) -> String {
    format!("{}/{}", def.gvr.group_version(), def.gvr.resource)
}

#[cfg(test)]
mod tests {
    use apimachinery::meta::Gvr;

    use super::*;

    fn config(text: &str) -> Result<RuntimeConfig, Vec<String>> {
        RuntimeConfig::parse(&component_base::flags::key_values(text).unwrap())
    }

    #[track_caller]
    fn check(text: &str, group: &str, version: &str, resource: &str, want: bool) {
        let def = api::resource(&Gvr::new(group, version, resource)).unwrap();
        assert_eq!(config(text).unwrap().serves(def), want, "{text}: {group}/{version}/{resource}");
    }

    #[test]
    fn the_particular_wins_over_the_general() {
        let (beta, alpha) = ("storagemigration.k8s.io", "scheduling.k8s.io");
        check("", "", "v1", "pods", true);
        check("", beta, "v1beta1", "storageversionmigrations", false);
        check("api/all=true", beta, "v1beta1", "storageversionmigrations", true);
        check("api/beta=true", beta, "v1beta1", "storageversionmigrations", true);
        check("api/beta=true", alpha, "v1alpha2", "workloads", false);
        check("api/all,api/alpha=false", alpha, "v1alpha2", "workloads", false);
        check("scheduling.k8s.io/v1alpha2=true", alpha, "v1alpha2", "workloads", true);
        check("scheduling.k8s.io/v1alpha2/podgroups=true", alpha, "v1alpha2", "podgroups", true);
        check("scheduling.k8s.io/v1alpha2/podgroups=true", alpha, "v1alpha2", "workloads", false);
        check("api/all=false,api/v1=true", "", "v1", "pods", true);
        check("api/all=false,api/v1=true", "apps", "v1", "deployments", false);
    }

    #[test]
    fn what_there_is_not_is_named() {
        assert_eq!(
            config("nope/v1=true,api/all=maybe").unwrap_err(),
            ["invalid value of runtime-config api/all=maybe", "unknown api groups nope/v1"]
        );
    }
}
