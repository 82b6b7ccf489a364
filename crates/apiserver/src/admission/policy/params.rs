//! The parameters that a binding gives its policy.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvk, Gvr};
use apimachinery::selector::LabelSelector;

use crate::admission::{OwnObjects, Request};
use crate::lister::Lister;

/// A kind of parameter as the server serves it.
struct Kind {
    gvr: Gvr,
    namespaced: bool,
}

/// One evaluation for each parameter; without parameters one evaluation with none.
///
/// # Errors
/// Why the binding cannot be evaluated, in upstream's words.
pub(super) async fn collect(
    policy: &Value,
    binding: &Value,
    request: &Request,
    lister: &dyn Lister,
    own: &OwnObjects,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (kind, reference) = (&policy["spec"]["paramKind"], &binding["spec"]["paramRef"]);
    if kind.is_null() || reference.is_null() {
        return Ok(vec![None]);
    }
    let kind = resolve(kind, lister).ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{}, Kind={}'", kind.api_version(), kind.kind())
    })?;
    let mut namespace = reference.str_at(&["namespace"]);
    if kind.namespaced {
        if namespace.is_empty() {
            namespace = &request.namespace;
        }
        if namespace.is_empty() {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
    } else if !namespace.is_empty() {
        return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
    }
    let resource = kind.gvr.group_resource();
    let name = reference.str_at(&["name"]);
    let found: Vec<Arc<Value>> = if name.is_empty() {
        let selector = LabelSelector::from_value(&reference["selector"]).map_err(|e| e.to_string())?;
        let Some(selector) = selector else {
            return Err("one of paramRef.name or paramRef.selector must be provided".to_owned());
        };
        lister.list(&resource, namespace).into_iter().filter(|p| selector.matches_object(p)).collect()
    } else {
        match lister.get(&resource, namespace, name) {
            Some(found) => vec![found],
            // The cache may not know of the kind yet, or not of the object.
            None => match own.get() {
                Ok(own) => own.get(&kind.gvr, namespace, name).await.ok().map(Arc::new).into_iter().collect(),
                Err(_) => Vec::new(),
            },
        }
    };
    if found.is_empty() && reference.str_at(&["parameterNotFoundAction"]) != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.into_iter().map(Some).collect())
}

/// A built-in kind, or one of a custom resource.
fn resolve(kind: &Value, lister: &dyn Lister) -> Option<Kind> {
    let version = GroupVersion::parse(kind.api_version())?;
    if let Some(def) = api::resource_of_kind(&Gvk::new(&version.group, &version.version, kind.kind())) {
        return Some(Kind { gvr: def.gvr.clone(), namespaced: def.is_namespaced() });
    }
    let defines = |definition: &Arc<Value>| {
        let spec = &definition["spec"];
        spec.str_at(&["group"]) == version.group && spec.str_at(&["names", "kind"]) == kind.kind()
    };
    let definition = lister.list("customresourcedefinitions.apiextensions.k8s.io", "").into_iter().find(defines)?;
    let plural = definition.str_at(&["spec", "names", "plural"]);
    Some(Kind {
        gvr: Gvr::new(&version.group, &version.version, plural),
        namespaced: definition.str_at(&["spec", "scope"]) == "Namespaced",
    })
}
