//! From a DNS message to its answer.

use std::net::IpAddr;
use std::time::Instant;

use async_trait::async_trait;
use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use crate::forward::Forwarder;
use crate::metrics::{Asked, DnsMetrics};
use crate::records::{Data, Records};
use crate::zone::{Domain, Subject, reverse_address};

/// How long resolvers may keep an answer, in seconds.
const TTL: u32 = 30;
/// How long they may keep that there is none.
const NEGATIVE_TTL: u32 = 5;
/// An alias of an alias of … within the cluster: followed this far.
const MAX_ALIASES: usize = 8;

/// The size of answers over UDP that no network cuts into pieces (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;

pub(crate) struct Handler {
    domain: Domain,
    records: Records,
    forward: Forwarder,
    metrics: DnsMetrics,
}

/// Everything that goes into a response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

impl Answer {
    fn of(code: ResponseCode) -> Self {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Answer { code, authoritative: true, answers, authorities, additionals }
    }
}

impl Handler {
    pub(crate) fn new(domain: Domain, records: Records, forward: Forwarder, metrics: DnsMetrics) -> Self {
        Handler { domain, records, forward, metrics }
    }

    pub(crate) async fn answer(&self, name: &Name, kind: RecordType, class: DNSClass) -> Answer {
        if class != DNSClass::IN {
            return Answer::of(ResponseCode::Refused);
        }
        let labels: Vec<String> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        if let Some(subject) = self.domain.subject(&labels) {
            if subject == Subject::Apex {
                return self.apex(name, kind);
            }
            return match self.records.of(&subject) {
                None => self.negative(ResponseCode::NXDomain),
                Some(data) => self.positive(name, kind, &labels, data).await,
            };
        }
        if let Some(names) =
            reverse_address(&labels).map(|address| self.records.names_of(address)).filter(|n| !n.is_empty())
        {
            return self.positive(name, kind, &labels, names.into_iter().map(Data::Pointer).collect()).await;
        }
        let outside = self.forward.ask(name.clone(), kind).await;
        Answer {
            code: outside.code,
            authoritative: false,
            answers: outside.answers,
            authorities: outside.authorities,
            additionals: Vec::new(),
        }
    }

    /// The domain itself: who answers for it, and how long that there is nothing holds.
    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        let mut answer = Answer::of(ResponseCode::NoError);
        let server = || Name::from_ascii(format!("ns.dns.{}", self.domain.fqdn())).ok();
        if matches!(kind, RecordType::SOA | RecordType::ANY) {
            answer.answers.extend(self.start_of_authority());
        }
        if matches!(kind, RecordType::NS | RecordType::ANY) {
            answer.answers.extend(server().map(|server| record(name, RData::NS(NS(server)))));
            let addresses = self.records.of(&Subject::NameServer).unwrap_or_default();
            for (server, data) in server().iter().flat_map(|server| addresses.iter().map(move |data| (server, data))) {
                if let Data::Address(ip) = data {
                    answer.additionals.extend(address_record(server, *ip, RecordType::ANY));
                }
            }
        }
        if answer.answers.is_empty() { self.negative(ResponseCode::NoError) } else { answer }
    }

    async fn positive(&self, name: &Name, kind: RecordType, labels: &[String], data: Vec<Data>) -> Answer {
        let mut answer = Answer::of(ResponseCode::NoError);
        for item in data {
            match (item, kind) {
                (Data::Address(ip), _) => answer.answers.extend(address_record(name, ip, kind)),
                (Data::Text(text), RecordType::TXT | RecordType::ANY) => {
                    answer.answers.push(record(name, RData::TXT(TXT::new(vec![text]))));
                }
                (Data::Pointer(below), RecordType::PTR | RecordType::ANY) => {
                    if let Ok(target) = self.absolute(&below) {
                        answer.answers.push(record(name, RData::PTR(PTR(target))));
                    }
                }
                (Data::Port { port, target, addresses }, RecordType::SRV) => {
                    let Ok(target) = self.absolute(&srv_target(labels, &target)) else { continue };
                    answer.answers.push(record(name, RData::SRV(SRV::new(0, 100, port, target.clone()))));
                    for ip in addresses {
                        answer.additionals.extend(address_record(&target, ip, RecordType::ANY));
                    }
                }
                (Data::Alias(target), _) => self.follow(name, &target, kind, &mut answer).await,
                (Data::Text(_) | Data::Pointer(_) | Data::Port { .. }, _) => {}
            }
        }
        if answer.answers.is_empty() {
            return self.negative(ResponseCode::NoError); // the name exists, without records of this type
        }
        answer
    }

    /// A CNAME, and what it leads to when an address was asked for; the code is that of the last name (RFC 6604).
    async fn follow(&self, name: &Name, target: &str, kind: RecordType, answer: &mut Answer) {
        let (mut from, mut target) = (name.clone(), target.to_owned());
        for _ in 0..MAX_ALIASES {
            let Ok(to) = Name::from_utf8(format!("{}.", target.trim_end_matches('.'))) else { return };
            answer.answers.push(record(&from, RData::CNAME(CNAME(to.clone()))));
            if !matches!(kind, RecordType::A | RecordType::AAAA) {
                return;
            }
            let labels: Vec<String> = to.iter().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).collect();
            let Some(subject) = self.domain.subject(&labels) else {
                let outside = self.forward.ask(to, kind).await;
                answer.answers.extend(outside.answers);
                answer.authorities.extend(outside.authorities);
                // Where we may ask nobody, the caller may know somebody who does.
                if outside.code != ResponseCode::Refused {
                    answer.code = outside.code;
                }
                return;
            };
            let Some(data) = self.records.of(&subject) else {
                answer.code = ResponseCode::NXDomain;
                answer.authorities.extend(self.start_of_authority());
                return;
            };
            let addresses = data.iter().filter_map(|d| if let Data::Address(ip) = d { Some(*ip) } else { None });
            let found: Vec<Record> = addresses.filter_map(|ip| address_record(&to, ip, kind)).collect();
            match data.iter().find_map(|d| if let Data::Alias(next) = d { Some(next) } else { None }) {
                Some(next) => (from, target) = (to, next.clone()),
                None => {
                    if found.is_empty() {
                        answer.authorities.extend(self.start_of_authority());
                    }
                    answer.answers.extend(found);
                    return;
                }
            }
        }
    }

    /// No record: with the SOA that says how long that holds.
    fn negative(&self, code: ResponseCode) -> Answer {
        let mut answer = Answer::of(code);
        answer.authorities.extend(self.start_of_authority());
        answer
    }

    fn start_of_authority(&self) -> Option<Record> {
        let zone = self.domain.fqdn();
        let name = Name::from_ascii(&zone).ok()?;
        let server = Name::from_ascii(format!("ns.dns.{zone}")).ok()?;
        let mail = Name::from_ascii(format!("hostmaster.{zone}")).ok()?;
        let soa = SOA::new(server, mail, 1, 7200, 1800, 86400, NEGATIVE_TTL);
        Some(Record::from_rdata(name, NEGATIVE_TTL, RData::SOA(soa)))
    }

    fn absolute(&self, below: &str) -> Result<Name, hickory_proto::ProtoError> {
        Name::from_ascii(format!("{below}.{}", self.domain.fqdn()))
    }
}

/// The name below the domain that an SRV record of `labels` points at.
fn srv_target(labels: &[String], target: &str) -> String {
    // The Service's own name: the two labels for port and protocol, if they are there, left out.
    let skip = labels.iter().take_while(|l| l.starts_with('_')).count();
    let service = labels[skip..].iter().take(3).map(String::as_str).collect::<Vec<_>>().join(".");
    if target.is_empty() { service } else { format!("{target}.{service}") }
}

fn address_record(name: &Name, ip: IpAddr, kind: RecordType) -> Option<Record> {
    let data = match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(A(ip)),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(record(name, data))
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut sender: R) -> ResponseInfo {
        let started = Instant::now();
        let asked = request.request_info().ok().filter(|_| request.metadata.op_code == OpCode::Query);
        let kind = asked.as_ref().map(|info| info.query.query_type());
        let edns = request.edns.as_ref().map(|theirs| {
            let mut ours = Edns::new();
            ours.set_max_payload(theirs.max_payload().clamp(512, UDP_PAYLOAD)).set_version(0);
            ours
        });
        let too_new = request.edns.as_ref().is_some_and(|theirs| theirs.version() > 0);
        let answer = match asked {
            // A version that nobody has defined yet (RFC 6891).
            Some(_) if too_new => Answer::of(ResponseCode::BADVERS),
            Some(info) => {
                let name = Name::from(info.query.name());
                self.answer(&name, info.query.query_type(), info.query.query_class()).await
            }
            None => Answer::of(ResponseCode::NotImp),
        };
        let asked = Asked { protocol: request.protocol(), source: request.src().ip(), kind, own: answer.authoritative };
        self.metrics.answered(&asked, answer.code, started.elapsed());
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &answer.answers, &answer.authorities, &[], &answer.additionals);
        match sender.send_response(response).await {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                let header = hickory_proto::op::Header { metadata, counts: hickory_proto::op::HeaderCounts::default() };
                header.into()
            }
        }
    }
}
