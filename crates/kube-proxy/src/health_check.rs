//! healthCheckNodePort: tells load balancers whether this node has endpoints of a Service of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use component_base::serving::{self, Answer, Respond};
use http::StatusCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// One Service's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub namespace: String,
    pub name: String,
    pub local_endpoints: usize,
}

pub(crate) struct HealthChecks {
    stop: CancellationToken,
    health: Health,
    running: BTreeMap<SocketAddr, (watch::Sender<Check>, CancellationToken)>,
}

impl HealthChecks {
    pub(crate) fn new(health: Health, stop: CancellationToken) -> Self {
        HealthChecks { stop, health, running: BTreeMap::new() }
    }

    /// Serves exactly these ports from now on, at these addresses or, with `None`, at all.
    pub(crate) async fn update(&mut self, checks: &BTreeMap<u16, Check>, addresses: Option<&[IpAddr]>) {
        let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let wanted: BTreeMap<SocketAddr, &Check> = checks
            .iter()
            .flat_map(|(port, check)| {
                addresses.unwrap_or(&all).iter().map(move |ip| (SocketAddr::new(*ip, *port), check))
            })
            .collect();
        self.running.retain(|address, (_, stop)| {
            let stays = wanted.contains_key(address);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (address, check) in wanted {
            match self.running.get(&address) {
                Some((sender, _)) => {
                    sender.send_if_modified(|now| {
                        let differs = now != check;
                        now.clone_from(check);
                        differs
                    });
                }
                None => self.start(address, check).await,
            }
        }
    }

    async fn start(&mut self, address: SocketAddr, check: &Check) {
        let stop = self.stop.child_token();
        let (sender, receiver) = watch::channel(check.clone());
        let health = self.health.clone();
        let respond: Respond = Arc::new(move |_| Some(answer_of(&receiver.borrow(), health.is_healthy())));
        match serving::answer(address, respond, stop.clone()).await {
            Ok(_) => {
                self.running.insert(address, (sender, stop));
            }
            // It is tried again with the next change.
            Err(error) => tracing::error!(%address, %error, "a health-check port cannot be served"),
        }
    }
}

fn answer_of(check: &Check, healthy: bool) -> Answer {
    let Check { namespace, name, local_endpoints } = check;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        serde_json::Value::from(namespace.as_str()),
        serde_json::Value::from(name.as_str()),
    );
    let code = if *local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer { code, headers: vec![("x-load-balancing-endpoint-weight", local_endpoints.to_string())], body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balancers_are_told_of_local_endpoints_of_a_proxy_that_works() {
        let check = |local_endpoints| Check { namespace: "prod".into(), name: "web".into(), local_endpoints };
        for (local, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            assert_eq!(answer_of(&check(local), healthy).code, code);
        }
        let told = answer_of(&check(2), true);
        assert_eq!(told.headers, [("x-load-balancing-endpoint-weight", "2".to_owned())]);
        let body: serde_json::Value = serde_json::from_str(&told.body).unwrap();
        let want = serde_json::json!({"service": {"namespace": "prod", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, want);
    }
}
