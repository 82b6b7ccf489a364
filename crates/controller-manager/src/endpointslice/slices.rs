//! Which slices to create, update and delete so that together they hold the wanted endpoints, touching as few as
//! possible.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::core::ObjectMeta;

use super::{
    MANAGED_BY, MANAGER, SERVICE_NAME,
    endpoint::{AddressType, EndpointId, Ports, Wanted},
    ports::is_headless,
};
use crate::owner::controller_reference;

const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Plans one family of one Service. `known` are its slices of that family.
pub(super) fn plan(
    service: &Service,
    address_type: AddressType,
    mut wanted: Wanted,
    known: Vec<Arc<EndpointSlice>>,
    max_per_slice: usize,
    changes: &mut Changes,
) {
    let labels = labels_of(service);
    // Without endpoints one empty slice says that this is on purpose.
    if wanted.by_ports.is_empty() {
        wanted.by_ports.push((Ports::new(), BTreeMap::new()));
    }
    let (mut creates, mut spare) = (Vec::new(), Vec::new());
    let mut left = known;
    for (ports, endpoints) in wanted.by_ports {
        let same: Vec<_> = left.extract_if(.., |slice| has_ports(slice, &ports)).collect();
        plan_ports(&labels, &ports, endpoints, same, max_per_slice, &mut creates, &mut spare, changes);
    }
    // Slices of ports that nobody has any more, and emptied ones, are given new content before new ones are made.
    spare.extend(left);
    let mut spare = spare.into_iter();
    for (ports, endpoints) in creates {
        let base = match spare.next() {
            Some(old) => (*old).clone(),
            None => new_slice(service, address_type),
        };
        let is_new = base.metadata.uid.is_none();
        let slice = filled(base, &labels, ports, endpoints);
        if is_new { changes.create.push(slice) } else { changes.update.push(slice) }
    }
    changes.delete.extend(spare);
}

/// Plans the endpoints of one set of ports over the slices that have these ports.
#[expect(clippy::too_many_arguments, reason = "three of them are results")]
fn plan_ports(
    labels: &BTreeMap<String, String>,
    ports: &Ports,
    mut wanted: BTreeMap<EndpointId, Endpoint>,
    same: Vec<Arc<EndpointSlice>>,
    max_per_slice: usize,
    creates: &mut Vec<(Ports, Vec<Endpoint>)>,
    spare: &mut Vec<Arc<EndpointSlice>>,
    changes: &mut Changes,
) {
    let is_placeholder = wanted.is_empty();
    // Each known endpoint stays in its slice.
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::with_capacity(same.len());
    for slice in same {
        let old = slice.endpoints.as_deref().unwrap_or_default();
        let stay: Vec<Endpoint> = old.iter().filter_map(|known| wanted.remove(&EndpointId::of(known))).collect();
        let changed = stay != old || !labels_match(&slice, labels);
        kept.push((slice, stay, changed));
    }
    let mut rest = wanted.into_values();
    // Slices that are written anyway are filled first; then the fullest that takes all the rest; then new ones.
    for (_, endpoints, changed) in kept.iter_mut().filter(|(_, _, changed)| *changed) {
        let room = max_per_slice.saturating_sub(endpoints.len());
        endpoints.extend(rest.by_ref().take(room));
        *changed = true;
    }
    let left = rest.len();
    if left > 0 && left < max_per_slice {
        let fits = |(_, endpoints, _): &&mut (_, Vec<Endpoint>, bool)| endpoints.len() + left <= max_per_slice;
        if let Some((_, endpoints, changed)) =
            kept.iter_mut().filter(fits).max_by_key(|(_, endpoints, _)| endpoints.len())
        {
            endpoints.extend(rest.by_ref());
            *changed = true;
        }
    }
    let mut has_placeholder = false;
    for (slice, endpoints, changed) in kept {
        if endpoints.is_empty() && (!is_placeholder || has_placeholder) {
            spare.push(slice);
            continue;
        }
        has_placeholder = true;
        if changed {
            changes.update.push(filled((*slice).clone(), labels, ports.clone(), endpoints));
        }
    }
    if is_placeholder && !has_placeholder {
        creates.push((ports.clone(), Vec::new()));
    }
    loop {
        let chunk: Vec<Endpoint> = rest.by_ref().take(max_per_slice.max(1)).collect();
        if chunk.is_empty() {
            return;
        }
        creates.push((ports.clone(), chunk));
    }
}

fn has_ports(slice: &EndpointSlice, ports: &Ports) -> bool {
    slice.ports.as_deref().unwrap_or_default() == ports.as_slice()
}

fn labels_match(slice: &EndpointSlice, labels: &BTreeMap<String, String>) -> bool {
    slice.metadata.labels.as_ref() == Some(labels)
}

fn filled(
    mut slice: EndpointSlice,
    labels: &BTreeMap<String, String>,
    ports: Ports,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    slice.metadata.labels = Some(labels.clone());
    slice.ports = Some(ports);
    slice.endpoints = Some(endpoints);
    slice
}

/// The Service's labels and the three of ours.
fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(service: &Service, address_type: AddressType) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: service.metadata.name.as_ref().map(|name| format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: address_type.as_str().to_owned(),
        ..EndpointSlice::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::{
        super::endpoint::tests::{pod, service},
        *,
    };

    fn wanted(ips: &[&str], port: i32) -> Wanted {
        let service = service(IntOrString::String("web".into()));
        let pods: Vec<_> = ips.iter().map(|ip| pod(ip, ip, true, port)).collect();
        Wanted::of(&service, &pods, AddressType::Ipv4, |_| Some(Arc::default()))
    }

    /// Plans, and gives the slices as they are after the changes.
    fn step(known: &mut Vec<Arc<EndpointSlice>>, wanted: Wanted, max: usize) -> String {
        let mut changes = Changes::default();
        let service = service(IntOrString::String("web".into()));
        plan(&service, AddressType::Ipv4, wanted, known.clone(), max, &mut changes);
        let summary = format!("+{} ~{} -{}", changes.create.len(), changes.update.len(), changes.delete.len());
        let uid = |slice: &EndpointSlice| slice.metadata.uid.clone();
        known.retain(|slice| !changes.delete.iter().any(|gone| uid(gone) == uid(slice)));
        for update in changes.update {
            let slot = known.iter_mut().find(|slice| uid(slice) == uid(&update)).unwrap();
            *slot = Arc::new(update);
        }
        for mut created in changes.create {
            created.metadata.uid = Some(format!("uid-{}", known.len()));
            known.push(Arc::new(created));
        }
        let sizes: Vec<_> = known.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len).to_string()).collect();
        format!("{summary} [{}]", sizes.join(" "))
    }

    #[test]
    fn endpoints_fill_slices_and_stay_where_they_are() {
        let mut known = Vec::new();
        assert_eq!(step(&mut known, wanted(&[], 80), 3), "+1 ~0 -0 [0]");
        assert_eq!(step(&mut known, wanted(&[], 80), 3), "+0 ~0 -0 [0]");
        assert_eq!(step(&mut known, wanted(&["10.0.0.1", "10.0.0.2"], 80), 3), "+0 ~1 -0 [2]");
        let five = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        assert_eq!(step(&mut known, wanted(&five, 80), 3), "+1 ~0 -0 [2 3]");
        assert_eq!(step(&mut known, wanted(&five, 80), 3), "+0 ~0 -0 [2 3]");
        assert_eq!(step(&mut known, wanted(&five[1..], 80), 3), "+0 ~1 -0 [1 3]");
        assert_eq!(step(&mut known, wanted(&five[2..], 80), 3), "+0 ~0 -1 [3]");
        assert_eq!(step(&mut known, wanted(&[], 80), 3), "+0 ~1 -0 [0]");
    }

    #[test]
    fn a_slice_of_other_ports_is_reused() {
        let mut known = Vec::new();
        assert_eq!(step(&mut known, wanted(&["10.0.0.1"], 80), 3), "+1 ~0 -0 [1]");
        assert_eq!(step(&mut known, wanted(&["10.0.0.1"], 81), 3), "+0 ~1 -0 [1]");
        assert_eq!(known[0].ports.as_ref().unwrap()[0].port, Some(81));
        assert_eq!(known[0].metadata.labels.as_ref().unwrap()[SERVICE_NAME], "web");
    }
}
