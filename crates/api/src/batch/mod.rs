//! Kinds of the group `batch`: work that ends.

pub(crate) mod cron_job;
mod failure_policy;
mod indexes;
pub(crate) mod job;
mod job_change;
mod job_rules;
mod job_status;
mod schedule;
mod time_zone;
