//! Pods: one worker each, which drives what runs toward what the API says.

pub(crate) mod admission;
pub(crate) mod container_config;
pub(crate) mod manager;
pub(crate) mod plan;
mod resize;
mod start;
pub(crate) mod status;
mod stop;
pub(crate) mod sub_path;
pub(crate) mod sysctls;
pub(crate) mod worker;
