//! Pods: one worker each, which drives what runs toward what the API says.

pub(crate) mod container_config;
pub(crate) mod manager;
pub(crate) mod plan;
pub(crate) mod status;
mod sub_path;
pub(crate) mod worker;
