//! Which plugins run, in upstream's order (`AllOrderedPlugins`).

use std::sync::Arc;

use super::Plugin;
use super::{
    default_toleration_seconds, namespace_lifecycle, node_restriction, priority, service_account,
    taint_nodes_by_condition,
};
use crate::lister::Lister;

/// What an operator may set about the plugins.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    pub not_ready_toleration_seconds: i64,
    pub unreachable_toleration_seconds: i64,
}

/// A name in `--enable-admission-plugins` or `--disable-admission-plugins` that upstream does not know either.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag} plugin \"{name}\" is unknown")]
pub struct UnknownPlugin {
    pub flag: &'static str,
    pub name: String,
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
/// When a name is unknown.
pub fn plugins(settings: &Settings, lister: &Arc<dyn Lister>) -> Result<Vec<Arc<dyn Plugin>>, UnknownPlugin> {
    let lists = [("enable-admission-plugins", &settings.enable), ("disable-admission-plugins", &settings.disable)];
    for (flag, names) in lists {
        if let Some(name) = names.iter().find(|name| !ORDER.iter().any(|(n, _)| n == name)) {
            return Err(UnknownPlugin { flag, name: name.clone() });
        }
    }
    let runs = |(name, default): &&(&str, bool)| {
        let listed = |list: &[String]| list.iter().any(|n| n == name);
        (*default || listed(&settings.enable)) && !listed(&settings.disable)
    };
    Ok(ORDER.iter().filter(runs).filter_map(|(name, _)| make(name, settings, lister)).collect())
}

fn make(name: &str, settings: &Settings, lister: &Arc<dyn Lister>) -> Option<Arc<dyn Plugin>> {
    let lister = Arc::clone(lister);
    Some(match name {
        "NamespaceLifecycle" => Arc::new(namespace_lifecycle::NamespaceLifecycle { lister }),
        "ServiceAccount" => Arc::new(service_account::ServiceAccount { lister }),
        "NodeRestriction" => Arc::new(node_restriction::NodeRestriction { lister }),
        "TaintNodesByCondition" => Arc::new(taint_nodes_by_condition::TaintNodesByCondition),
        "Priority" => Arc::new(priority::Priority { lister }),
        "DefaultTolerationSeconds" => Arc::new(default_toleration_seconds::DefaultTolerationSeconds {
            not_ready: settings.not_ready_toleration_seconds,
            unreachable: settings.unreachable_toleration_seconds,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    fn names(enable: &[&str], disable: &[&str]) -> Result<Vec<&'static str>, UnknownPlugin> {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let settings = Settings { enable: own(enable), disable: own(disable), ..Settings::default() };
        let lister: Arc<dyn Lister> = Arc::new(MapLister::default());
        Ok(plugins(&settings, &lister)?.iter().map(|p| p.name()).collect())
    }

    #[test]
    fn plugins_run_in_upstreams_order() {
        let default = names(&["NodeRestriction"], &["Priority"]).unwrap();
        let want = [
            "NamespaceLifecycle",
            "ServiceAccount",
            "NodeRestriction",
            "TaintNodesByCondition",
            "DefaultTolerationSeconds",
        ];
        assert_eq!(default, want);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = names(&[], &["NoSuch"]).unwrap_err();
        assert_eq!(error.to_string(), "--disable-admission-plugins plugin \"NoSuch\" is unknown");
    }
}
