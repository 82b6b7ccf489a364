//! rbac.authorization.k8s.io: roles, and bindings of them. Their names are any segment of a path.

pub(crate) mod binding;
pub(crate) mod role;

const GROUP: &str = "rbac.authorization.k8s.io";
