//! Which plugins run, in upstream's order (`AllOrderedPlugins`).

use std::sync::Arc;

use apimachinery::Value;

use super::config::PluginConfigs;
use super::own::OwnObjects;
use super::{
    Plugin, always, always_pull_images, certificate_subject_restriction, default_classes, default_toleration_seconds,
    deny_service_external_ips, event_rate_limit, extended_resource_toleration, image_policy_webhook,
    limit_pod_hard_anti_affinity_topology, limit_ranger, namespace_lifecycle, namespaces, node_restriction,
    owner_references_permission_enforcement, persistent_volume_claim_resize, pod_node_selector, pod_resize_validator,
    pod_security, pod_toleration_restriction, pod_topology_labels, policy, priority, quota, runtime_class,
    service_account, signers, storage_object_in_use_protection, taint_nodes_by_condition, webhook,
};
use crate::authz::Authorizer;
use crate::lister::Lister;

/// What an operator may set about the plugins.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    pub not_ready_toleration_seconds: i64,
    pub unreachable_toleration_seconds: i64,
    /// From `--admission-control-config-file`.
    pub configs: PluginConfigs,
}

/// What plugins work with.
#[derive(Clone)]
pub struct Tools {
    pub lister: Arc<dyn Lister>,
    pub authorizers: Vec<Arc<dyn Authorizer>>,
    pub own: Arc<OwnObjects>,
}

/// Why there is no chain.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// A name that upstream does not know either.
    #[error("--{flag} plugin \"{name}\" is unknown")]
    Unknown { flag: &'static str, name: String },
    #[error("failed to initialize admission: couldn't init admission plugin {name:?}: {why}")]
    Config { name: String, why: String },
}

/// Upstream's plugins in their order, and whether each runs unless it is disabled.
const ORDER: &[(&str, bool)] = &[
    ("AlwaysAdmit", false),
    ("NamespaceAutoProvision", false),
    ("NamespaceLifecycle", true),
    ("NamespaceExists", false),
    ("LimitPodHardAntiAffinityTopology", false),
    ("LimitRanger", true),
    ("ServiceAccount", true),
    ("NodeRestriction", false),
    ("TaintNodesByCondition", true),
    ("AlwaysPullImages", false),
    ("ImagePolicyWebhook", false),
    ("PodSecurity", true),
    ("PodNodeSelector", false),
    ("Priority", true),
    ("DefaultTolerationSeconds", true),
    ("PodTolerationRestriction", false),
    ("EventRateLimit", false),
    ("ExtendedResourceToleration", false),
    ("DefaultStorageClass", true),
    ("StorageObjectInUseProtection", true),
    ("OwnerReferencesPermissionEnforcement", false),
    ("PersistentVolumeClaimResize", true),
    ("RuntimeClass", true),
    ("CertificateApproval", true),
    ("CertificateSigning", true),
    ("ClusterTrustBundleAttest", true),
    ("CertificateSubjectRestriction", true),
    ("DefaultIngressClass", true),
    ("PodTopologyLabels", true),
    ("NodeDeclaredFeatureValidator", true),
    ("PodResizeValidator", true),
    ("DenyServiceExternalIPs", false),
    ("MutatingAdmissionPolicy", true),
    ("MutatingAdmissionWebhook", true),
    ("ValidatingAdmissionPolicy", true),
    ("ValidatingAdmissionWebhook", true),
    ("ResourceQuota", true),
    ("AlwaysDeny", false),
];

/// The plugins that run, in order.
///
/// # Errors
/// When a name is unknown, or a plugin's configuration is wrong.
pub fn plugins(settings: &Settings, tools: &Tools) -> Result<Vec<Arc<dyn Plugin>>, PluginError> {
    let lists = [("enable-admission-plugins", &settings.enable), ("disable-admission-plugins", &settings.disable)];
    for (flag, names) in lists {
        if let Some(name) = names.iter().find(|name| !ORDER.iter().any(|(n, _)| n == name)) {
            return Err(PluginError::Unknown { flag, name: name.clone() });
        }
    }
    let runs = |(name, default): &&(&str, bool)| {
        let listed = |list: &[String]| list.iter().any(|n| n == name);
        (*default || listed(&settings.enable)) && !listed(&settings.disable)
    };
    let mut chain = Vec::new();
    for (name, _) in ORDER.iter().filter(runs) {
        let made = make(name, settings, tools);
        chain.extend(made.map_err(|why| PluginError::Config { name: (*name).to_owned(), why })?);
    }
    Ok(chain)
}

fn make(name: &str, settings: &Settings, tools: &Tools) -> Result<Option<Arc<dyn Plugin>>, String> {
    let lister = Arc::clone(&tools.lister);
    let authorizers = || tools.authorizers.clone();
    let own = || Arc::clone(&tools.own);
    let config = settings.configs.get(name).unwrap_or(&Value::Null);
    Ok(Some(match name {
        "AlwaysAdmit" => Arc::new(always::AlwaysAdmit),
        "NamespaceAutoProvision" => Arc::new(namespaces::NamespaceAutoProvision { lister, own: own() }),
        "NamespaceLifecycle" => Arc::new(namespace_lifecycle::NamespaceLifecycle { lister }),
        "NamespaceExists" => Arc::new(namespaces::NamespaceExists { lister }),
        "LimitPodHardAntiAffinityTopology" => {
            Arc::new(limit_pod_hard_anti_affinity_topology::LimitPodHardAntiAffinityTopology)
        }
        "LimitRanger" => Arc::new(limit_ranger::LimitRanger { lister }),
        "ServiceAccount" => Arc::new(service_account::ServiceAccount { lister }),
        "NodeRestriction" => Arc::new(node_restriction::NodeRestriction { lister }),
        "TaintNodesByCondition" => Arc::new(taint_nodes_by_condition::TaintNodesByCondition),
        "AlwaysPullImages" => Arc::new(always_pull_images::AlwaysPullImages),
        "ImagePolicyWebhook" => Arc::new(image_policy_webhook::ImagePolicyWebhook::parse(config)?),
        "PodSecurity" => {
            Arc::new(pod_security::PodSecurity { lister, settings: pod_security::Settings::parse(config)? })
        }
        "PodNodeSelector" => {
            Arc::new(pod_node_selector::PodNodeSelector { lister, config: pod_node_selector::parse_config(config) })
        }
        "Priority" => Arc::new(priority::Priority { lister }),
        "DefaultTolerationSeconds" => Arc::new(default_toleration_seconds::DefaultTolerationSeconds {
            not_ready: settings.not_ready_toleration_seconds,
            unreachable: settings.unreachable_toleration_seconds,
        }),
        "PodTolerationRestriction" => {
            Arc::new(pod_toleration_restriction::PodTolerationRestriction { lister, config: config.clone() })
        }
        "EventRateLimit" => Arc::new(event_rate_limit::EventRateLimit::parse(config)?),
        "ExtendedResourceToleration" => Arc::new(extended_resource_toleration::ExtendedResourceToleration),
        "DefaultStorageClass" => Arc::new(default_classes::DefaultClass { lister, kind: &default_classes::STORAGE }),
        "StorageObjectInUseProtection" => Arc::new(storage_object_in_use_protection::StorageObjectInUseProtection),
        "OwnerReferencesPermissionEnforcement" => {
            Arc::new(owner_references_permission_enforcement::OwnerReferencesPermissionEnforcement {
                authorizers: authorizers(),
            })
        }
        "PersistentVolumeClaimResize" => {
            Arc::new(persistent_volume_claim_resize::PersistentVolumeClaimResize { lister })
        }
        "RuntimeClass" => Arc::new(runtime_class::RuntimeClass { lister }),
        "CertificateApproval" => {
            Arc::new(signers::SignerRight { authorizers: authorizers(), right: &signers::APPROVE })
        }
        "CertificateSigning" => Arc::new(signers::SignerRight { authorizers: authorizers(), right: &signers::SIGN }),
        "ClusterTrustBundleAttest" => {
            Arc::new(signers::SignerRight { authorizers: authorizers(), right: &signers::ATTEST })
        }
        "CertificateSubjectRestriction" => Arc::new(certificate_subject_restriction::CertificateSubjectRestriction),
        "DefaultIngressClass" => Arc::new(default_classes::DefaultClass { lister, kind: &default_classes::INGRESS }),
        "PodTopologyLabels" => Arc::new(pod_topology_labels::PodTopologyLabels { lister }),
        "PodResizeValidator" => Arc::new(pod_resize_validator::PodResizeValidator { lister }),
        "DenyServiceExternalIPs" => Arc::new(deny_service_external_ips::DenyServiceExternalIps),
        "MutatingAdmissionPolicy" => Arc::new(policy::MutatingAdmissionPolicy::new(tools)),
        "MutatingAdmissionWebhook" => Arc::new(webhook::MutatingAdmissionWebhook::new(tools)),
        "ValidatingAdmissionPolicy" => Arc::new(policy::ValidatingAdmissionPolicy::new(tools)),
        "ValidatingAdmissionWebhook" => Arc::new(webhook::ValidatingAdmissionWebhook::new(tools)),
        "ResourceQuota" => Arc::new(quota::ResourceQuota::new(lister, own(), config)),
        "AlwaysDeny" => Arc::new(always::AlwaysDeny),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    fn names(enable: &[&str], disable: &[&str]) -> Result<Vec<&'static str>, PluginError> {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let settings = Settings { enable: own(enable), disable: own(disable), ..Settings::default() };
        let lister: Arc<dyn Lister> = Arc::new(MapLister::default());
        let tools = Tools { lister, authorizers: Vec::new(), own: Arc::default() };
        Ok(plugins(&settings, &tools)?.iter().map(|p| p.name()).collect())
    }

    #[test]
    fn plugins_run_in_upstreams_order() {
        let default = names(&["NodeRestriction"], &["Priority"]).unwrap();
        let at = |name: &str| ORDER.iter().position(|(n, _)| *n == name);
        assert!(default.is_sorted_by_key(|name| at(name)));
        assert!(default.contains(&"NodeRestriction") && default.contains(&"PodSecurity"));
        assert!(!default.contains(&"Priority") && !default.contains(&"AlwaysPullImages"));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = names(&[], &["NoSuch"]).unwrap_err();
        assert_eq!(error.to_string(), "--disable-admission-plugins plugin \"NoSuch\" is unknown");
    }
}
