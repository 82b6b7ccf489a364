//! The feature gates that this crate asks about, with upstream's defaults.

use component_base::feature_gates::Gate;

/// Rights to be somebody else that are bound to what is done (KEP-5284).
pub(crate) const CONSTRAINED_IMPERSONATION: Gate =
    Gate { name: "ConstrainedImpersonation", default: true, locked: false };

/// CBOR is served, as an encoding of everything.
pub(crate) const CBOR: Gate = Gate { name: "CBORServingAndStorage", default: false, locked: false };

/// A WebSocket to exec, attach or port-forward needs the right to create, not only to get.
pub(crate) const WEBSOCKET_NEEDS_CREATE: Gate =
    Gate { name: "AuthorizePodWebsocketUpgradeCreatePermission", default: true, locked: false };
