//! What each built-in kind of the API is: its names, its defaults, its rules, its columns.
//!
//! Pure, like `apimachinery`: it knows no I/O, no clock and no other component. Entry points: [`resources`], the one table
//! of everything that is served, and [`Strategy`], the hooks in which a kind states its own rules.
//!
//! Invariants:
//! - Every hook works on [`apimachinery::Value`] trees that the codec has already checked against the schema: fields have
//!   their schema's types, unknown fields are gone.
//! - A kind without a module here still works: names and verbs come from the table, and every hook has a default.

#![forbid(unsafe_code)]

mod admissionregistration;
mod apiregistration;
mod apiserverinternal;
mod apps;
mod authorization;
mod autoscaling;
mod batch;
mod certificates;
mod coordination;
mod core;
mod discovery;
mod event;
mod extensions;
mod flowcontrol;
mod go_json;
mod networking;
mod node;
mod policy;
mod rbac;
pub mod resource;
mod resource_api;
mod scheduling;
mod storage;
mod storagemigration;
mod strategies;
pub mod strategy;
pub mod table;
mod table_cells;
mod validation;

pub use crate::core::pod::{ephemeral_containers as validate_ephemeral_containers, resize as validate_resize};
pub use crate::core::validate_service_addresses;
pub use authorization::validate_access_review;
pub use certificates::validate_conditions as validate_signing_conditions;
pub use resource::{ResourceDef, Scope, Subresource};
pub use strategy::{Cell, Column, Strategy};
pub use table::{resource, resource_of_kind, resources};
pub use table_cells::age;
