//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: admission in expressions (KEP-3488, KEP-3962).
//!
//! `compiled` holds the policies as they are evaluated, made anew when one changes; `scope` binds what expressions see;
//! `params` finds the parameters of a binding; `validating` and `mutating` are the two plugins.

mod authorizer;
mod check;
mod compiled;
mod mutating;
mod params;
mod scope;
mod validating;

pub(crate) use check::{check_policy, check_webhooks};
pub(super) use compiled::Compiled;
pub(super) use mutating::MutatingAdmissionPolicy;
pub(super) use scope::{Facts, Scope};
pub(super) use validating::ValidatingAdmissionPolicy;
