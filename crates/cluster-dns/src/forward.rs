//! Names outside of the cluster: asked of the resolvers that are named for their domain, else of those that the host uses,
//! with a cache in front. While no resolver answers, what was last heard serves on (RFC 8767).

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// How long a resolver may take before the next is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Answers that the resolvers' cache keeps.
const CACHED: u64 = 10_000;
/// How long an answer that nobody repeats serves on, and how long those who hear it may keep it.
const STALE: Duration = Duration::from_secs(3600);
const STALE_TTL: u32 = 30;
/// How long resolvers may take when there is such an answer: callers give up soon after (RFC 8767, section 5).
const PATIENCE: Duration = Duration::from_millis(1800);
/// Answers that are kept for that; of more, those that were used last.
const KEPT: u64 = 10_000;

pub(crate) struct Forwarder {
    /// By domain, the longest first; the last is for everything.
    resolvers: Vec<(Name, TokioResolver)>,
    /// The last answers that have records.
    heard: Cache<(Name, RecordType), Forwarded>,
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
        let heard =
            Cache::builder().max_capacity(KEPT).time_to_live(STALE).eviction_policy(EvictionPolicy::lru()).build();
        Ok(Forwarder { resolvers, heard })
    }

    pub(crate) async fn ask(&self, name: Name, kind: RecordType) -> Forwarded {
        let Some((_, resolver)) = self.resolvers.iter().find(|(domain, _)| domain.zone_of(&name)) else {
            return Forwarded::only(ResponseCode::Refused);
        };
        let question = (name.clone(), kind);
        let stale = self.heard.get(&question);
        let lookup = resolver.lookup(name, kind);
        let said = match stale {
            Some(_) => tokio::time::timeout(PATIENCE, lookup).await.unwrap_or(Err(NetError::Timeout)),
            None => lookup.await,
        };
        let heard = match said {
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
                return stale.map_or_else(|| Forwarded::only(ResponseCode::ServFail), aged);
            }
        };
        self.keep(question, &heard);
        heard
    }

    /// That there is nothing serves nobody later, and ends what there was.
    fn keep(&self, question: (Name, RecordType), heard: &Forwarded) {
        if heard.answers.is_empty() {
            self.heard.invalidate(&question);
        } else {
            self.heard.insert(question, heard.clone());
        }
    }
}

/// An answer that is served on although its time is over.
fn aged(mut heard: Forwarded) -> Forwarded {
    heard.answers.iter_mut().chain(&mut heard.authorities).for_each(|record| record.ttl = STALE_TTL);
    heard
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
pub(crate) mod tests {
    use super::*;
    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use std::net::{Ipv4Addr, UdpSocket};

    /// A resolver that gives every name this address, not to be kept, until the guard is dropped. Names that begin with `no.` it
    /// does not know, and those that begin with `broken.` it cannot resolve.
    pub(crate) fn upstream(address: Ipv4Addr) -> (SocketAddr, std::sync::mpsc::Sender<()>) {
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
                said.metadata.response_code = match name.iter().next() {
                    Some(b"no") => ResponseCode::NXDomain,
                    Some(b"broken") => ResponseCode::ServFail,
                    _ => ResponseCode::NoError,
                };
                if said.metadata.response_code == ResponseCode::NoError {
                    said.add_answer(Record::from_rdata(name, 0, RData::A(A(address))));
                }
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
        let mute = closed(server).await;
        tokio::time::pause(); // from now on time passes only while everybody waits
        let began = tokio::time::Instant::now();
        let said = forward.ask(Name::from_ascii("example.com.").unwrap(), RecordType::A).await;
        assert_eq!((said.code, said.answers[0].ttl), (ResponseCode::NoError, STALE_TTL));
        assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs(), "before the caller gives up");
        assert_eq!(address(&forward, "never-asked.example.").await, "ServFail");
        drop(mute);
        assert_eq!(address(&forward, "example.com.").await, "192.0.2.1", "also when it is refused");
    }

    /// The address of a resolver that ended, taken by somebody who says nothing.
    async fn closed(server: SocketAddr) -> UdpSocket {
        loop {
            // Until its socket is closed it may answer once more.
            match UdpSocket::bind(server) {
                Ok(mute) => return mute,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn the_answers_that_were_used_last_are_kept_and_only_those_with_records() {
        let forward = Forwarder::new(&[], &[]).unwrap();
        let question = |i: u64| (Name::from_ascii(format!("{i}.example.")).unwrap(), RecordType::A);
        let record = Record::from_rdata(question(0).0, 60, RData::A(A([192, 0, 2, 1].into())));
        let some = Forwarded { answers: vec![record], ..Forwarded::only(ResponseCode::NoError) };
        for i in 0..=KEPT {
            forward.keep(question(i), &some);
        }
        forward.heard.run_pending_tasks();
        assert_eq!(forward.heard.entry_count(), KEPT);
        for i in [2, KEPT + 1] {
            forward.keep(question(i), &Forwarded::only(ResponseCode::NXDomain));
        }
        let is_kept = |i| forward.heard.contains_key(&question(i));
        assert_eq!([0, 1, 2, KEPT, KEPT + 1].map(is_kept), [false, true, false, true, false]);
    }
}
