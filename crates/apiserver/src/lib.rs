//! kube-apiserver: the one component that touches the store, and the one place where a request is authenticated,
//! authorized, admitted and stored.
//!
//! It knows `storage`, `api` and `apimachinery`; it must not know `client` or any other component: its own authorizers and
//! admission plugins read its watch cache through [`lister::Lister`].

#![forbid(unsafe_code)]

pub mod admission;
mod aggregation;
pub mod attributes;
mod audit;
pub mod authn;
pub mod authz;
mod body;
pub mod bootstrap;
mod cache;
mod config;
mod custom;
mod discovery;
mod encoding;
mod encryption;
mod flowcontrol;
mod gates;
mod gzip;
mod handlers;
mod impersonation;
pub mod lister;
mod metrics;
mod nonresource;
pub mod objects;
mod openapi;
mod options;
mod outbound;
mod pipeline;
mod proxy;
mod query;
mod registry;
mod request_info;
mod resources;
mod runtime_config;
mod seats;
mod server;
pub mod service_alloc;
mod service_repair;
mod statusz;
mod subresources;
mod traces;

pub use body::{Body, BoxError};
pub use config::{
    AuditConfig, AuditLogConfig, AuditMode, AuditWebhookConfig, AuthenticationConfig, AuthorizationConfig,
    AuthorizationWebhookConfig, Config, EncryptionConfig, EtcdConfig, KubeletConfig, OidcConfig, RequestHeaderConfig,
    SeatsConfig, ServiceAccountConfig, ServiceConfig, ServingConfig, StorageEncoding, StoreConfig, TokenWebhookConfig,
};
pub use options::Flags;
pub use server::{ApiServer, Error, Handle, LocalService, run, start};
