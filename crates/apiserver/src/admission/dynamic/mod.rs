//! Admission that is configured by objects of the API: policies and webhooks. What they share: which requests they are for,
//! and how a request looks to them.

pub(super) mod matching;
pub(super) mod review;
