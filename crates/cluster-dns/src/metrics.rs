//! What cluster DNS measures, under CoreDNS's names.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use hickory_server::net::xfer::Protocol;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    zone: String,
    proto: &'static str,
    family: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    zone: String,
    rcode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ZoneLabels {
    zone: String,
}

/// What a question was like.
pub(crate) struct Asked {
    pub protocol: Protocol,
    pub source: IpAddr,
    pub kind: Option<RecordType>,
    /// Whether the answer comes from the cluster.
    pub own: bool,
}

pub(crate) struct DnsMetrics {
    /// The cluster's domain.
    zone: String,
    requests: Family<RequestLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    durations: Family<ZoneLabels, Histogram, fn() -> Histogram>,
}

fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

impl DnsMetrics {
    pub(crate) fn register(registry: &mut Registry, zone: &str) -> Self {
        let metrics = DnsMetrics {
            zone: zone.to_owned(),
            requests: Family::default(),
            responses: Family::default(),
            durations: Family::new_with_constructor(durations),
        };
        registry.register("coredns_dns_requests", "Questions", metrics.requests.clone());
        registry.register("coredns_dns_responses", "Answers by their code", metrics.responses.clone());
        registry.register("coredns_dns_request_duration_seconds", "Time of an answer", metrics.durations.clone());
        metrics
    }

    pub(crate) fn answered(&self, asked: &Asked, code: ResponseCode, took: Duration) {
        let zone = if asked.own { self.zone.clone() } else { ".".to_owned() };
        let proto = if asked.protocol == Protocol::Udp { "udp" } else { "tcp" };
        let family = if asked.source.is_ipv4() { "1" } else { "2" };
        let r#type = kind_name(asked.kind);
        self.requests.get_or_create(&RequestLabels { zone: zone.clone(), proto, family, r#type }).inc();
        self.responses.get_or_create(&ResponseLabels { zone: zone.clone(), rcode: code_name(code) }).inc();
        self.durations.get_or_create(&ZoneLabels { zone }).observe(took.as_secs_f64());
    }
}

/// The kinds that are counted on their own.
fn kind_name(kind: Option<RecordType>) -> &'static str {
    match kind {
        Some(RecordType::A) => "A",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::ANY) => "ANY",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::MX) => "MX",
        Some(RecordType::NS) => "NS",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::SOA) => "SOA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::TXT) => "TXT",
        _ => "other",
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
