//! Which images a pod runs.

use apimachinery::Value;

use super::{Operation, Request};

/// The lists of a pod's containers, in upstream's order.
pub(super) const LISTS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];

/// The images of these lists.
pub(super) fn images<'a>(pod: &'a Value, lists: &[&str]) -> Vec<&'a str> {
    lists.iter().flat_map(|list| pod["spec"][*list].items()).map(|c| c.str_at(&["image"])).collect()
}

/// Does the request bring images that were not there before?
pub(super) fn runs_others(request: &Request) -> bool {
    let is_pod = request.is_core("pods") || request.is_core_part("pods", "ephemeralcontainers");
    match request.operation {
        Operation::Create => is_pod,
        Operation::Update => is_pod && images(&request.object, LISTS) != images(&request.old_object, LISTS),
        Operation::Delete | Operation::Connect => false,
    }
}
