//! Names outside of the cluster: asked of the resolvers that the host uses, with a cache in front.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

pub(crate) struct Forwarder {
    resolver: Option<TokioResolver>,
}

/// What the outside said.
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
    pub(crate) fn new(upstreams: &[IpAddr]) -> Result<Self, NetError> {
        if upstreams.is_empty() {
            return Ok(Forwarder { resolver: None });
        }
        let servers = upstreams.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip)).collect();
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().ndots = 0;
        builder.options_mut().preserve_intermediates = true;
        Ok(Forwarder { resolver: Some(builder.build()?) })
    }

    pub(crate) async fn ask(&self, name: Name, kind: RecordType) -> Forwarded {
        let Some(resolver) = &self.resolver else { return Forwarded::only(ResponseCode::Refused) };
        match resolver.lookup(name, kind).await {
            Ok(lookup) => Forwarded {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: lookup.authorities().to_vec(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Forwarded {
                code: none.response_code,
                answers: Vec::new(),
                authorities: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
            },
            Err(error) => {
                tracing::debug!(%error, "a name could not be resolved outside of the cluster");
                Forwarded::only(ResponseCode::ServFail)
            }
        }
    }
}
