//! Pod, and what every kind that holds a template of pods shares with it.

mod annotations;
mod change;
mod claim_template;
mod containers;
mod create;
mod defaults;
mod dns;
mod environment;
mod handlers;
mod mounts;
mod options;
mod projected;
mod qos;
mod resize;
mod resources;
mod scheduling;
mod security;
mod spec;
mod status;
mod strategy;
mod table;
mod template;
mod volume_sources;
mod volumes;
mod warnings;
mod windows;

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::field::Cursor;

pub use change::ephemeral_containers;
pub(crate) use defaults::default_template;
pub(crate) use options::Options;
pub(crate) use qos::qos_class;
pub use resize::validate as resize;
pub(crate) use strategy::PodStrategy;
pub(crate) use template::validate as validate_template;
pub(crate) use volume_sources::read_only_disks;
pub(crate) use warnings::of_template as template_warnings;

/// The lists of containers, in the order in which upstream visits them.
const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Every container of a pod's spec.
fn containers_of<'a>(spec: &Cursor<'a>) -> impl Iterator<Item = Cursor<'a>> + use<'a> {
    LISTS.map(|list| spec.field(list)).into_iter().flat_map(|list| list.elements().collect::<Vec<_>>())
}

/// What the rules for containers need to know of their pod.
struct Context<'a> {
    options: Options,
    /// Volumes that are well formed.
    volumes: BTreeMap<&'a str, &'a Value>,
    claims: Vec<&'a str>,
    grace: Option<i64>,
    restart_policy: &'a str,
    /// The pod shares the host's user namespace.
    host_users: bool,
    /// `spec.os.name`, if there is a `spec.os`.
    os: Option<&'a str>,
}

impl<'a> Context<'a> {
    fn new(spec: &Cursor<'a>, volumes: BTreeMap<&'a str, &'a Value>, options: Options) -> Self {
        let value = spec.value;
        let claims = value["resourceClaims"].items().iter().map(|c| c.str_at(&["name"])).filter(|n| !n.is_empty());
        Context {
            options,
            volumes,
            claims: claims.collect(),
            grace: value["terminationGracePeriodSeconds"].as_i64(),
            restart_policy: value.str_at(&["restartPolicy"]),
            host_users: value["hostUsers"].as_bool() != Some(false),
            os: (!value["os"].is_null()).then(|| value.str_at(&["os", "name"])),
        }
    }
}
