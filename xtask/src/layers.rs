//! Who may import whom. The same table stands in ARCHITECTURE.md; this one is checked.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::shell;

/// A crate and the crates of the workspace that it may import. `testing` may be a dev-dependency of anybody.
const ALLOWED: &[(&str, &[&str])] = &[
    ("apimachinery", &[]),
    ("api", &["apimachinery"]),
    ("component-base", &["apimachinery"]),
    ("storage", &["apimachinery", "component-base"]),
    ("client", &["apimachinery", "api", "component-base"]),
    ("expressions", &["apimachinery", "api"]),
    ("apiserver", &["apimachinery", "api", "expressions", "storage", "component-base"]),
    ("scheduler", COMPONENT),
    ("controller-manager", &["apimachinery", "api", "client", "component-base", "expressions"]),
    ("kubelet", COMPONENT),
    ("kube-proxy", COMPONENT),
    ("cluster-dns", COMPONENT),
    ("pod-network", COMPONENT),
    ("local-path-provisioner", COMPONENT),
    ("metrics-server", COMPONENT),
    ("kelson", EVERYTHING),
    ("testing", &[]),
    ("xtask", &[]),
];

const COMPONENT: &[&str] = &["apimachinery", "api", "client", "component-base"];

const EVERYTHING: &[&str] = &[
    "apimachinery",
    "api",
    "component-base",
    "expressions",
    "storage",
    "client",
    "apiserver",
    "scheduler",
    "controller-manager",
    "kubelet",
    "kube-proxy",
    "cluster-dns",
    "pod-network",
    "local-path-provisioner",
    "metrics-server",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for a normal one.
    kind: Option<String>,
    /// Only crates of the workspace have one.
    path: Option<String>,
}

pub(crate) fn run() -> Result<()> {
    let text = shell::output("cargo", &["metadata", "--format-version=1", "--no-deps"])?;
    let metadata: Metadata = serde_json::from_str(&text)?;
    let wrong = violations(&metadata);
    if !wrong.is_empty() {
        bail!("imports that the design does not allow:\n  {}", wrong.join("\n  "));
    }
    println!("layers: {} crates, every import allowed", metadata.packages.len());
    Ok(())
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            let for_tests = dependency.kind.as_deref() == Some("dev");
            // A crate names itself there to switch on a feature that only tests use.
            let is_test_harness = for_tests && (dependency.name == "testing" || dependency.name == package.name);
            if !is_test_harness && !may.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} imports {}", package.name, dependency.name));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
        let dependency = Dependency { name: dependency.into(), kind: kind.map(Into::into), path: Some("/x".into()) };
        violations(&Metadata { packages: vec![Package { name: name.into(), dependencies: vec![dependency] }] })
    }

    #[test]
    fn only_the_apiserver_may_import_the_store() {
        assert_eq!(check("apiserver", "storage", None), Vec::<String>::new());
        assert_eq!(check("kubelet", "storage", None), ["kubelet imports storage"]);
        assert_eq!(check("scheduler", "kubelet", None), ["scheduler imports kubelet"]);
    }

    #[test]
    fn the_harness_is_for_tests_only() {
        assert_eq!(check("kubelet", "testing", Some("dev")), Vec::<String>::new());
        assert_eq!(check("kubelet", "testing", None), ["kubelet imports testing"]);
        assert_eq!(check("storage", "storage", Some("dev")), Vec::<String>::new());
    }

    #[test]
    fn a_crate_that_the_table_does_not_name_is_refused() {
        assert_eq!(check("drawer", "api", None), ["drawer is not in the table"]);
    }

    #[test]
    fn this_workspace_keeps_its_layers() {
        run().unwrap();
    }
}
