//! OwnerReferencesPermissionEnforcement: who makes an object vanish with another must have the right to delete it, and who
//! makes another wait for it must have the right to hold that one.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::meta::{GroupVersion, Gvk, Gvr};
use apimachinery::status::Status;
use async_trait::async_trait;

use super::{Operation, Plugin, Request};
use crate::attributes::{Attributes, RequestInfo};
use crate::authz::{Authorizer, decide};

pub(super) struct OwnerReferencesPermissionEnforcement {
    pub authorizers: Vec<Arc<dyn Authorizer>>,
}

#[async_trait]
impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, request: &Request) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update)
            && !request.is_core_part("pods", "status")
            && owners(&request.object) != owners(&request.old_object)
    }

    async fn validate(&self, request: &mut Request) -> Result<(), Status> {
        let gvr = &request.gvr;
        if !self.may(request, "delete", gvr, "", &request.namespace, &request.name).await {
            return Err(request.forbidden("cannot set an ownerRef on a resource you can't delete: , <nil>"));
        }
        for owner in newly_blocking(&request.object, &request.old_object) {
            let Some(gvk) = kind_of(owner) else { continue };
            let Some(def) = api::resource_of_kind(&gvk) else {
                return Err(request.forbidden(format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}: no matches for kind {:?} in version {:?}",
                    owner.api_version(),
                    owner.kind(),
                    owner.kind(),
                    owner.api_version()
                )));
            };
            let namespace = if def.is_namespaced() { request.namespace.as_str() } else { "" };
            if !self.may(request, "update", &def.gvr, "finalizers", namespace, owner.str_at(&["name"])).await {
                return Err(request.forbidden(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
                ));
            }
        }
        Ok(())
    }
}

impl OwnerReferencesPermissionEnforcement {
    async fn may(&self, request: &Request, verb: &str, gvr: &Gvr, part: &str, namespace: &str, name: &str) -> bool {
        let asked = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            gvr: gvr.clone(),
            subresource: part.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        let asked = Attributes { user: Arc::clone(&request.user), request: Arc::new(asked) };
        decide(&self.authorizers, &asked).await.is_ok()
    }
}

fn kind_of(owner: &Value) -> Option<Gvk> {
    let version = GroupVersion::parse(owner.api_version())?;
    Some(Gvk::new(&version.group, &version.version, owner.kind()))
}

fn owners(object: &Value) -> &[Value] {
    object.meta("ownerReferences").items()
}

/// Owners that wait for this object from now on.
fn newly_blocking<'a>(object: &'a Value, old: &'a Value) -> Vec<&'a Value> {
    let blocks = |owner: &&Value| owner["blockOwnerDeletion"].as_bool() == Some(true);
    let before: BTreeSet<&str> = owners(old).iter().filter(blocks).map(|o| o.str_at(&["uid"])).collect();
    owners(object).iter().filter(blocks).filter(|o| !before.contains(o.str_at(&["uid"]))).collect()
}
