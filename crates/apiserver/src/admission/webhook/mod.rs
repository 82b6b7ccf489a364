//! Admission webhooks: somebody outside is asked, over TLS, about every request that a configuration names.
//!
//! `hook` decides whether to, and what an answer means; `mutating` and `validating` are the two plugins.

mod hook;
mod mutating;
mod validating;

pub(super) use mutating::MutatingAdmissionWebhook;
pub(super) use validating::ValidatingAdmissionWebhook;
