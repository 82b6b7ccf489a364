//! kube-apiserver: the one component that touches the store, and the one place where a request is authenticated,
//! authorized, admitted and stored.
//!
//! It knows `storage`, `api` and `apimachinery`; it must not know `client` or any other component: its own authorizers and
//! admission plugins read its watch cache through [`lister::Lister`].

#![forbid(unsafe_code)]

pub mod admission;
pub mod attributes;
pub mod authn;
pub mod authz;
pub mod lister;
