//! What every component has: flags and configuration files, feature gates, logs, metrics, health endpoints, TLS files, an
//! injected clock, and running other programs.
//!
//! It knows no component and no API object. Entry points: [`flags::parse`], [`config_file::load`], [`serving::Server`],
//! [`metrics::Metrics`].

#![forbid(unsafe_code)]

pub mod clock;
pub mod config_file;
pub mod connections;
pub mod feature_gates;
pub mod flags;
pub mod logs;
pub mod metrics;
pub mod program;
pub mod secure_port;
pub mod serving;
pub mod tls;
pub mod version;
