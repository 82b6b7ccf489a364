//! Names outside of the cluster: asked of the resolvers that are named for their domain, else of those that the host uses,
//! with a cache in front. While no resolver answers, what was last heard serves on (RFC 8767).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

/// How long a resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Answers that the resolvers' cache keeps.
const CACHED: u64 = 10_000;
/// How long an answer that nobody repeats serves on, and how long those who hear it may keep it.
const STALE: Duration = Duration::from_secs(3600);
const STALE_TTL: u32 = 30;
/// Answers that are kept for that.
const KEPT: usize = 10_000;

pub(crate) struct Forwarder {
    /// By domain, the longest first; the last is for everything.
    resolvers: Vec<(Name, TokioResolver)>,
    heard: Mutex<HashMap<(Name, RecordType), (Instant, Forwarded)>>,
}

/// What the outside said.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Forwarded {
    fn only(code: ResponseCode) -> Self {
        Forwarded { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

impl Forwarder {
    /// `stubs` are domains with resolvers of their own.
    pub(crate) fn new(upstreams: &[SocketAddr], stubs: &[(Name, Vec<SocketAddr>)]) -> Result<Self, NetError> {
        let mut resolvers = Vec::new();
        for (domain, servers) in stubs {
            let mut domain = domain.clone();
            domain.set_fqdn(true);
            resolvers.push((domain, resolver(servers)?));
        }
        if !upstreams.is_empty() {
            resolvers.push((Name::root(), resolver(upstreams)?));
        }
        resolvers.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.num_labels()));
        Ok(Forwarder { resolvers, heard: Mutex::default() })
    }

    pub(crate) async fn ask(&self, name: Name, kind: RecordType) -> Forwarded {
        let Some((_, resolver)) = self.resolvers.iter().find(|(domain, _)| domain.zone_of(&name)) else {
            return Forwarded::only(ResponseCode::Refused);
        };
        let heard = match resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => Forwarded {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: lookup.authorities().to_vec(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) if none.response_code != ResponseCode::ServFail => {
                Forwarded {
                    code: none.response_code,
                    answers: Vec::new(),
                    authorities: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a name could not be resolved outside of the cluster");
                return self.stale(&(name, kind)).unwrap_or_else(|| Forwarded::only(ResponseCode::ServFail));
            }
        };
        self.keep((name, kind), &heard);
        heard
    }

    fn keep(&self, question: (Name, RecordType), heard: &Forwarded) {
        let mut kept = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT && !kept.contains_key(&question) {
            kept.retain(|_, (since, _)| since.elapsed() < STALE / 2);
        }
        if kept.len() < KEPT {
            kept.insert(question, (Instant::now(), heard.clone()));
        }
    }

    fn stale(&self, question: &(Name, RecordType)) -> Option<Forwarded> {
        let kept = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, heard) = kept.get(question).filter(|(since, _)| since.elapsed() < STALE)?;
        let mut heard = heard.clone();
        heard.answers.iter_mut().chain(&mut heard.authorities).for_each(|record| record.ttl = STALE_TTL);
        Some(heard)
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let server = |address: &SocketAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        server.connections.iter_mut().for_each(|connection| connection.port = address.port());
        server
    };
    let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.ndots = 0;
    options.preserve_intermediates = true;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHED;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use std::net::{Ipv4Addr, UdpSocket};

    /// A resolver that gives every name this address, not to be kept, until the guard is dropped.
    fn upstream(address: Ipv4Addr) -> (SocketAddr, std::sync::mpsc::Sender<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let own = socket.local_addr().unwrap();
        let (guard, ends) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while ends.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let mut said = Message::response(asked.metadata.id, OpCode::Query);
                let name = asked.queries[0].name().clone();
                said.add_query(asked.queries[0].clone());
                said.add_answer(Record::from_rdata(name, 0, RData::A(A(address))));
                socket.send_to(&said.to_vec().unwrap(), from).unwrap();
            }
        });
        (own, guard)
    }

    async fn address(forward: &Forwarder, name: &str) -> String {
        let said = forward.ask(Name::from_ascii(name).unwrap(), RecordType::A).await;
        match said.answers.first().map(|record| &record.data) {
            Some(RData::A(A(ip))) => ip.to_string(),
            _ => format!("{:?}", said.code),
        }
    }

    #[tokio::test]
    async fn domains_may_have_resolvers_of_their_own() {
        let (general, _a) = upstream([192, 0, 2, 1].into());
        let (corp, _b) = upstream([192, 0, 2, 2].into());
        let (lab, _c) = upstream([192, 0, 2, 3].into());
        let stub = |domain: &str, server| (Name::from_ascii(domain).unwrap(), vec![server]);
        let stubs = [stub("corp.example", corp), stub("lab.corp.example.", lab)];
        let forward = Forwarder::new(&[general], &stubs).unwrap();
        assert_eq!(address(&forward, "example.com.").await, "192.0.2.1");
        assert_eq!(address(&forward, "a.corp.example.").await, "192.0.2.2");
        assert_eq!(address(&forward, "a.lab.corp.example.").await, "192.0.2.3");
        let only_stubs = Forwarder::new(&[], &stubs).unwrap();
        assert_eq!(address(&only_stubs, "example.com.").await, "Refused");
    }

    #[tokio::test]
    async fn what_was_heard_serves_on_while_no_resolver_answers() {
        let (server, guard) = upstream([192, 0, 2, 1].into());
        let forward = Forwarder::new(&[server], &[]).unwrap();
        assert_eq!(address(&forward, "example.com.").await, "192.0.2.1");
        drop(guard);
        // Until its socket is closed it may answer once more.
        while UdpSocket::bind(server).is_err() {
            tokio::task::yield_now().await;
        }
        let said = forward.ask(Name::from_ascii("example.com.").unwrap(), RecordType::A).await;
        assert_eq!((said.code, said.answers[0].ttl), (ResponseCode::NoError, STALE_TTL));
        assert_eq!(address(&forward, "never-asked.example.").await, "ServFail");
    }
}
