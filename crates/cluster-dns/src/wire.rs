//! Questions and answers as they travel.

use std::io::{Read, Write};
use std::net::SocketAddr;

use component_base::metrics::Metrics;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::*;

/// A server for the records of the tests, and what it measures.
struct Running {
    address: SocketAddr,
    metrics: Metrics,
    _stop: tokio_util::sync::DropGuard,
}

async fn start() -> Running {
    start_with(&[]).await
}

async fn start_with(upstreams: &[SocketAddr]) -> Running {
    let domain = zone::Domain::parse("cluster.local").unwrap();
    let forward = forward::Forwarder::new(upstreams, &[]).unwrap();
    let metrics = Metrics::new();
    let measured = metrics.register(|registry| metrics::DnsMetrics::register(registry, "cluster.local."));
    let handler = handler::Handler::new(domain, records::tests::records(), forward, measured);
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(answer(handler, vec![(udp, tcp)], stop.clone()));
    Running { address, metrics, _stop: stop.drop_guard() }
}

fn question(name: &str, kind: RecordType, edns: Option<u8>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.edns = edns.map(|version| {
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_version(version);
        edns
    });
    message
}

impl Running {
    async fn over_udp(&self, question: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question.to_vec().unwrap(), self.address).await.unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn over_tcp(&self, question: &Message) -> Message {
        let (address, question) = (self.address, question.to_vec().unwrap());
        let answer = tokio::task::spawn_blocking(move || {
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            let length = u16::try_from(question.len()).unwrap().to_be_bytes();
            socket.write_all(&[&length[..], &question].concat()).unwrap();
            let mut length = [0; 2];
            socket.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            socket.read_exact(&mut answer).unwrap();
            answer
        });
        Message::from_vec(&answer.await.unwrap()).unwrap()
    }

    /// The code and the answers of a question without EDNS.
    async fn ask(&self, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let said = self.over_udp(&question(name, kind, None)).await;
        assert!(
            said.answers.len() + said.authorities.len() > 0 || said.metadata.response_code == ResponseCode::Refused
        );
        (said.metadata.response_code, said.answers.iter().map(|record| record.data.to_string()).collect())
    }
}

#[tokio::test]
async fn what_does_not_fit_is_asked_for_again_over_tcp() {
    let server = start().await;
    let many = |edns| question("many.prod.svc.cluster.local.", RecordType::A, edns);
    let cut = server.over_udp(&many(None)).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 100);
    let wider = server.over_udp(&many(Some(0))).await;
    assert!(wider.metadata.truncation && wider.answers.len() > cut.answers.len());
    let whole = server.over_tcp(&many(None)).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[tokio::test]
async fn extensions_are_answered_to_those_who_use_them() {
    let server = start().await;
    let asked = |edns| question("web.prod.svc.cluster.local.", RecordType::A, edns);
    assert!(server.over_udp(&asked(None)).await.edns.is_none());
    let said = server.over_udp(&asked(Some(0))).await;
    assert_eq!(said.edns.map(|edns| edns.max_payload()), Some(1232));
    let too_new = server.over_udp(&asked(Some(1))).await;
    assert_eq!(too_new.edns.map(|edns| edns.version()), Some(0));
    assert!(too_new.answers.is_empty());
}

#[tokio::test]
async fn every_kind_of_record_is_answered() {
    let server = start().await;
    let all = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    for (name, kind, want) in [
        ("web.prod.svc.cluster.local.", RecordType::A, all(&["10.96.0.20"])),
        ("WEB.prod.svc.Cluster.local.", RecordType::AAAA, all(&["fd00::20"])),
        ("db-0.db.prod.svc.cluster.local.", RecordType::A, all(&["10.244.0.5"])),
        ("_http._tcp.web.prod.svc.cluster.local.", RecordType::SRV, all(&["0 100 80 web.prod.svc.cluster.local."])),
        ("10-244-0-7.prod.pod.cluster.local.", RecordType::A, all(&["10.244.0.7"])),
        ("20.0.96.10.in-addr.arpa.", RecordType::PTR, all(&["web.prod.svc.cluster.local."])),
        ("dns-version.cluster.local.", RecordType::TXT, all(&["1.1.0"])),
        ("out.prod.svc.cluster.local.", RecordType::CNAME, all(&["db.example.com."])),
        ("cluster.local.", RecordType::NS, all(&["ns.dns.cluster.local."])),
        ("ns.dns.cluster.local.", RecordType::A, all(&["10.96.0.10"])),
        ("out.prod.svc.cluster.local.", RecordType::A, all(&["db.example.com."])),
    ] {
        assert_eq!(server.ask(name, kind).await, (ResponseCode::NoError, want), "{name}");
    }
    let soa = server.over_udp(&question("cluster.local.", RecordType::SOA, None)).await;
    assert!(matches!(soa.answers[0].data, RData::SOA(_)) && soa.metadata.authoritative);
    let servers = server.over_udp(&question("cluster.local.", RecordType::NS, None)).await;
    assert_eq!(servers.additionals[0].data.to_string(), "10.96.0.10", "where the server is");
    // There is no such name; there is, but without such a record.
    for (name, code) in [
        ("no.prod.svc.cluster.local.", ResponseCode::NXDomain),
        ("db.prod.svc.cluster.local.", ResponseCode::NoError),
        ("ns.dns.cluster.local.", ResponseCode::NoError),
        ("dns.cluster.local.", ResponseCode::NoError),
    ] {
        let said = server.over_udp(&question(name, RecordType::AAAA, None)).await;
        assert_eq!((said.metadata.response_code, said.answers.len()), (code, 0), "{name}");
        assert!(matches!(said.authorities[0].data, RData::SOA(_)), "how long that holds");
    }
    assert_eq!(server.ask("example.com.", RecordType::A).await, (ResponseCode::Refused, Vec::new()));
    let text = server.metrics.text();
    for line in [
        "coredns_dns_requests_total{zone=\"cluster.local.\",proto=\"udp\",family=\"1\",type=\"SRV\"} 1",
        "coredns_dns_responses_total{zone=\"cluster.local.\",rcode=\"NXDOMAIN\"} 1",
        "coredns_dns_responses_total{zone=\".\",rcode=\"REFUSED\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn an_alias_is_as_good_as_the_name_that_it_leads_to() {
    let (outside, _guard) = forward::tests::upstream([192, 0, 2, 1].into());
    let server = start_with(&[outside]).await;
    for (name, kind, code, want) in [
        ("out", RecordType::A, ResponseCode::NoError, &["db.example.com.", "192.0.2.1"][..]),
        ("gone", RecordType::A, ResponseCode::NXDomain, &["no.example.com."]),
        ("broken", RecordType::A, ResponseCode::ServFail, &["broken.example.com."]),
        ("lost", RecordType::A, ResponseCode::NXDomain, &["none.prod.svc.cluster.local."]),
        ("lost", RecordType::CNAME, ResponseCode::NoError, &["none.prod.svc.cluster.local."]),
        ("four", RecordType::AAAA, ResponseCode::NoError, &["db.prod.svc.cluster.local."]),
    ] {
        let (said, answers) = server.ask(&format!("{name}.prod.svc.cluster.local."), kind).await;
        assert_eq!((said, answers), (code, want.iter().map(|text| (*text).to_owned()).collect()), "{name} {kind}");
    }
    for name in ["lost.prod.svc.cluster.local.", "four.prod.svc.cluster.local."] {
        let said = server.over_udp(&question(name, RecordType::AAAA, None)).await;
        assert!(matches!(said.authorities[0].data, RData::SOA(_)), "{name}: how long that holds");
    }
}
