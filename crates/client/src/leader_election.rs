//! Leader election on a `Lease`: one of several instances acts, another takes over when it falls silent.
//!
//! The clocks of instances are never compared. Each instance times by its own clock how long the lease has not changed,
//! and a leader stops acting [`LeaseConfig::renew_deadline`] after the last renewal that it knows of, which is before
//! anybody else may take over. Writes of a leader go through a client that refuses them from then on, so that a process
//! that was paused and wakes late does nothing, even before its own timers have noticed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    error::ApiError,
    events::Recorder,
    fence::{Fence, Mark},
};

/// Which lease, whose name on it, and upstream's three times.
#[derive(Debug, Clone)]
pub struct LeaseConfig {
    pub namespace: String,
    pub name: String,
    /// This instance, unique among all: `host_uuid`.
    pub identity: String,
    /// How long others leave a silent leader alone.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// The pause between tries.
    pub retry_period: Duration,
}

impl LeaseConfig {
    /// Upstream's defaults: 15 s, 10 s, 2 s, in `kube-system`.
    #[must_use]
    pub fn new(name: &str, identity: &str) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// What is wrong with the three times, in upstream's words.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.lease_duration <= self.renew_deadline {
            return Err("leaseDuration must be greater than renewDeadline");
        }
        if self.renew_deadline <= self.retry_period.mul_f64(1.2) {
            return Err("renewDeadline must be greater than retryPeriod*JitterFactor");
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabels {
    name: String,
}

/// Whether this process leads, by lease.
#[derive(Debug, Clone)]
pub struct LeaderMetrics(Family<LeaseLabels, Gauge>);

impl LeaderMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self(Family::default());
        registry.register("leader_election_master_status", "Whether this process leads", metrics.0.clone());
        metrics
    }

    pub fn set(&self, config: &LeaseConfig, leads: bool) {
        self.0.get_or_create(&LeaseLabels { name: config.name.clone() }).set(i64::from(leads));
    }
}

/// What a leader works with.
pub struct Leadership {
    /// Refuses writes once leadership is over.
    pub client: Client,
    /// Cancelled when leadership is over, for whatever reason.
    pub over: CancellationToken,
    fence: Fence,
}

impl Leadership {
    /// The same client, refusing writes once leadership is over: for clients with an identity of their own.
    pub fn guard(&self) -> impl Fn(&Client) -> Client + Clone + Send + Sync + use<> {
        let fence = self.fence.clone();
        move |client| fence.guard(client)
    }
}

/// How an election ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `stop` was cancelled; the lease was given back.
    Stopped,
    /// The lease could not be renewed. The caller should end the process, as upstream does.
    Lost,
    /// The leader's work ended by itself; the lease was given back.
    Finished,
}

/// Waits for the lease, then runs `lead` while it is held. `lead` must end soon after [`Leadership::over`].
pub async fn run<F, Fut>(
    client: &Client,
    config: &LeaseConfig,
    recorder: Option<&Recorder>,
    stop: CancellationToken,
    lead: F,
) -> Outcome
where
    F: FnOnce(Leadership) -> Fut,
    Fut: Future<Output = ()>,
{
    let fence = Fence::default();
    let mut elector = Elector {
        api: Api::namespaced(client.clone(), &config.namespace),
        config,
        recorder,
        fence: fence.clone(),
        seen: None,
    };
    if stop.run_until_cancelled(elector.acquire()).await.is_none() {
        return Outcome::Stopped;
    }
    tracing::info!(lease = config.name, identity = config.identity, "successfully acquired lease");
    elector.tell("became leader");
    let over = CancellationToken::new();
    let work = lead(Leadership { client: fence.guard(client), over: over.clone(), fence: fence.clone() });
    tokio::pin!(work);
    let outcome = tokio::select! {
        () = &mut work => Outcome::Finished,
        () = stop.cancelled() => Outcome::Stopped,
        () = elector.keep() => Outcome::Lost,
    };
    over.cancel();
    match outcome {
        Outcome::Lost => fence.close(),
        // What is in the middle of a write may finish it while the lease is still ours.
        Outcome::Stopped if timeout(config.renew_deadline, &mut work).await.is_err() => fence.close(),
        Outcome::Stopped | Outcome::Finished => {}
    }
    elector.tell("stopped leading");
    if outcome == Outcome::Lost {
        tracing::error!(lease = config.name, "leader election lost");
    } else {
        elector.release().await;
    }
    fence.close();
    outcome
}

/// What to do about the lease as it was read.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Create,
    Renew,
    TakeOver,
    Wait,
}

/// `silent` is for how long the lease did not change, by our clock.
fn plan(spec: Option<&LeaseSpec>, identity: &str, silent: Duration) -> Plan {
    let Some(spec) = spec else { return Plan::Create };
    match spec.holder_identity.as_deref().unwrap_or_default() {
        "" => Plan::TakeOver,
        holder if holder == identity => Plan::Renew,
        _ => {
            let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
            if silent > Duration::from_secs(seconds) { Plan::TakeOver } else { Plan::Wait }
        }
    }
}

/// The lease's new content for `plan`.
fn next_spec(old: Option<LeaseSpec>, plan: &Plan, config: &LeaseConfig, now: Timestamp) -> LeaseSpec {
    let old = old.unwrap_or_default();
    let now = MicroTime(now);
    let duration = i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let (acquired, transitions) = match plan {
        Plan::Renew | Plan::Wait => (old.acquire_time.clone(), old.lease_transitions.unwrap_or_default()),
        Plan::Create => (Some(now.clone()), 0),
        Plan::TakeOver => (Some(now.clone()), old.lease_transitions.unwrap_or_default().saturating_add(1)),
    };
    LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(duration),
        acquire_time: acquired,
        renew_time: Some(now),
        lease_transitions: Some(transitions),
        ..old
    }
}

struct Elector<'a> {
    api: Api<Lease>,
    config: &'a LeaseConfig,
    recorder: Option<&'a Recorder>,
    fence: Fence,
    /// The lease's content as last read, and when it was first read so.
    seen: Option<(Option<LeaseSpec>, Instant)>,
}

impl Elector<'_> {
    async fn acquire(&mut self) {
        tracing::info!(lease = self.config.name, "attempting to acquire leader lease");
        while !self.try_once().await {
            // Twice a period, so that a lease that was given back is taken within one.
            let pause = self.config.retry_period.mul_f64(rand::random_range(0.4..0.6));
            tokio::time::sleep(pause).await;
        }
    }

    /// Renews until that fails for the renew deadline.
    async fn keep(&mut self) {
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let config = self.config;
            let renew = async {
                while !self.try_once().await {
                    tokio::time::sleep(config.retry_period).await;
                }
            };
            if timeout(config.renew_deadline, renew).await.is_err() || !self.fence.is_open() {
                return;
            }
        }
    }

    /// Whether the lease is ours after this.
    async fn try_once(&mut self) -> bool {
        let mark = Mark::now();
        match self.try_write().await {
            Ok(true) => {
                self.fence.open(mark, self.config.renew_deadline);
                true
            }
            Ok(false) => false,
            Err(err) => {
                if err.is_conflict() || err.is_already_exists() {
                    tracing::debug!(lease = self.config.name, "somebody else wrote the lease");
                } else {
                    tracing::error!(lease = self.config.name, %err, "lease cannot be read or written");
                }
                false
            }
        }
    }

    async fn try_write(&mut self) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.config.name).await?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let silent = self.observe(spec.clone());
        let plan = plan(spec.as_ref(), &self.config.identity, silent);
        if plan == Plan::Wait {
            return Ok(false);
        }
        let spec = next_spec(spec, &plan, self.config, Timestamp::now());
        let params = PostParams::default();
        let written = match lease {
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.config.name.clone()),
                    namespace: Some(self.config.namespace.clone()),
                    ..ObjectMeta::default()
                };
                self.api.create(&params, &Lease { metadata, spec: Some(spec) }).await?
            }
            // The resourceVersion that was read goes along: two instances cannot both take it.
            Some(lease) => self.api.replace(&self.config.name, &params, &Lease { spec: Some(spec), ..lease }).await?,
        };
        self.observe(written.spec);
        Ok(true)
    }

    /// Notes what the lease says and returns for how long it has said so.
    fn observe(&mut self, spec: Option<LeaseSpec>) -> Duration {
        match &self.seen {
            Some((known, since)) if *known == spec => since.elapsed(),
            _ => {
                self.seen = Some((spec, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Gives the lease back, so that the next leader need not wait for its end.
    async fn release(&mut self) {
        let release = async {
            let Some(lease) = self.api.get_opt(&self.config.name).await? else { return Ok(()) };
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.config.identity) {
                return Ok(());
            }
            let now = MicroTime(Timestamp::now());
            let spec = LeaseSpec {
                holder_identity: Some(String::new()),
                lease_duration_seconds: Some(1),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..spec
            };
            let lease = Lease { spec: Some(spec), ..lease };
            self.api.replace(&self.config.name, &PostParams::default(), &lease).await.map(|_| ())
        };
        match timeout(self.config.renew_deadline, release).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(lease = self.config.name, %err, "lease cannot be released"),
            Err(_) => tracing::warn!(lease = self.config.name, "lease cannot be released in time"),
        }
    }

    fn tell(&self, what: &str) {
        if let Some(recorder) = self.recorder {
            let lease = ObjectReference {
                api_version: Some("coordination.k8s.io/v1".to_owned()),
                kind: Some("Lease".to_owned()),
                namespace: Some(self.config.namespace.clone()),
                name: Some(self.config.name.clone()),
                ..ObjectReference::default()
            };
            recorder.normal(&lease, "LeaderElection", format!("{} {what}", self.config.identity));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_left_alone_until_it_was_silent_for_its_duration() {
        let secs = Duration::from_secs;
        assert_eq!(plan(None, "me", secs(0)), Plan::Create);
        assert_eq!(plan(Some(&lease("me")), "me", secs(99)), Plan::Renew);
        assert_eq!(plan(Some(&lease("you")), "me", secs(15)), Plan::Wait);
        assert_eq!(plan(Some(&lease("you")), "me", secs(16)), Plan::TakeOver);
        assert_eq!(plan(Some(&lease("")), "me", secs(0)), Plan::TakeOver);
    }

    #[test]
    fn taking_over_counts_a_transition_and_renewing_does_not() {
        let config = LeaseConfig::new("kube-scheduler", "me");
        let now = Timestamp::from_second(100).unwrap();
        let renewed = next_spec(Some(lease("me")), &Plan::Renew, &config, now);
        assert_eq!(
            (renewed.lease_transitions, renewed.acquire_time),
            (Some(3), Some(MicroTime(Timestamp::UNIX_EPOCH)))
        );
        let taken = next_spec(Some(lease("you")), &Plan::TakeOver, &config, now);
        assert_eq!((taken.lease_transitions, taken.acquire_time), (Some(4), Some(MicroTime(now))));
        assert_eq!(taken.holder_identity.as_deref(), Some("me"));
    }

    /// A server of one lease, and of ConfigMaps whose creation it only notes.
    #[derive(Default)]
    struct Server {
        lease: Option<serde_json::Value>,
        version: u64,
        created: Vec<String>,
        /// Lease requests are not answered.
        is_cut_off: bool,
    }

    type Shared = std::sync::Arc<parking_lot::Mutex<Server>>;

    fn answer(server: &mut Server, method: &str, path: &str, body: &[u8]) -> (u16, serde_json::Value) {
        use serde_json::json;
        let refuse = |code: u16, reason: &str| {
            (code, json!({ "kind": "Status", "status": "Failure", "message": reason, "reason": reason, "code": code }))
        };
        let mut object: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if path.contains("/configmaps") {
            server.created.push(object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            return (201, object);
        }
        match (method, &server.lease) {
            ("GET", Some(lease)) => (200, lease.clone()),
            ("GET", None) => refuse(404, "NotFound"),
            ("POST", Some(_)) => refuse(409, "AlreadyExists"),
            ("PUT", Some(lease)) if lease["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                refuse(409, "Conflict")
            }
            _ => {
                server.version += 1;
                object["metadata"]["resourceVersion"] = json!(server.version.to_string());
                server.lease = Some(object.clone());
                (200, object)
            }
        }
    }

    fn client_of(server: &Shared, sees_cut: bool) -> Client {
        use http_body_util::BodyExt;
        let server = server.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                if sees_cut && server.lock().is_cut_off && parts.uri.path().contains("/leases") {
                    std::future::pending::<()>().await;
                }
                let (code, answer) = answer(&mut server.lock(), parts.method.as_str(), parts.uri.path(), &body);
                let body = kube::client::Body::from(answer.to_string().into_bytes());
                let response = http::Response::builder().status(code).body(body);
                response.map_err(tower::BoxError::from)
            }
        });
        Client::new(service, "default")
    }

    async fn create(client: &Client, name: &str) -> Result<(), kube::Error> {
        use k8s_openapi::api::core::v1::ConfigMap;
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, ..ConfigMap::default() };
        Api::<ConfigMap>::namespaced(client.clone(), "default").create(&PostParams::default(), &map).await.map(|_| ())
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_stop_hands_the_lease_over_at_once() {
        let server = Shared::default();
        let (first, second) = (client_of(&server, true), client_of(&server, true));
        let stop = CancellationToken::new();
        let token = stop.clone();
        let leading = tokio::spawn(async move {
            run(&first, &LeaseConfig::new("x", "first"), None, token, |l| async move { l.over.cancelled().await }).await
        });
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (ready, led) = tokio::sync::oneshot::channel();
        let follower = tokio::spawn(async move {
            let lead = |l: Leadership| async move {
                let _ = ready.send(Instant::now());
                l.over.cancelled().await;
            };
            run(&second, &LeaseConfig::new("x", "second"), None, CancellationToken::new(), lead).await
        });
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!follower.is_finished());
        let stopped = Instant::now();
        stop.cancel();
        assert_eq!(leading.await.unwrap(), Outcome::Stopped);
        // One pause between tries at most.
        assert!(led.await.unwrap() - stopped < Duration::from_secs(2));
        follower.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_cut_off_stops_writing_before_another_takes_over() {
        let server = Shared::default();
        let (first, second) = (client_of(&server, true), client_of(&server, false));
        let (ready, led) = tokio::sync::oneshot::channel();
        let leading = tokio::spawn(async move {
            let lead = |leadership: Leadership| async move {
                let _ = ready.send(leadership.client.clone());
                leadership.over.cancelled().await;
            };
            run(&first, &LeaseConfig::new("x", "first"), None, CancellationToken::new(), lead).await
        });
        let old = led.await.unwrap();
        create(&old, "while-leading").await.unwrap();
        server.lock().is_cut_off = true;
        let (ready, led) = tokio::sync::oneshot::channel();
        let follower = tokio::spawn(async move {
            let lead = |leadership: Leadership| async move {
                let _ = ready.send(leadership.client.clone());
                leadership.over.cancelled().await;
            };
            run(&second, &LeaseConfig::new("x", "second"), None, CancellationToken::new(), lead).await
        });
        let new = led.await.unwrap();
        create(&old, "too-late").await.unwrap_err();
        create(&new, "by-the-new-leader").await.unwrap();
        assert_eq!(leading.await.unwrap(), Outcome::Lost);
        assert_eq!(server.lock().created, ["while-leading", "by-the-new-leader"]);
        follower.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_paused_writes_nothing_when_it_wakes() {
        let server = Shared::default();
        let client = client_of(&server, true);
        let fence = Fence::default();
        let guarded = fence.guard(&client);
        create(&guarded, "before-any-term").await.unwrap_err();
        fence.open(Mark::now(), Duration::from_secs(10));
        create(&guarded, "in-term").await.unwrap();
        // No timer of ours runs while the process stands still: the write itself has to notice.
        tokio::time::advance(Duration::from_secs(10)).await;
        create(&guarded, "after-the-pause").await.unwrap_err();
        assert_eq!(server.lock().created, ["in-term"]);
    }

    /// Two instances whose clocks jump and whose connections break: whoever writes holds the lease, and both come to lead.
    #[tokio::test(start_paused = true)]
    async fn two_instances_never_write_at_once_whatever_their_clocks_say() {
        use rand::{RngExt, SeedableRng, rngs::StdRng};

        #[derive(Default)]
        struct World {
            server: Server,
            /// Whose requests are not answered.
            cut_off: Option<&'static str>,
            written: std::collections::BTreeMap<String, u32>,
            wrong: Vec<String>,
        }
        type Shared = std::sync::Arc<parking_lot::Mutex<World>>;
        let random = std::sync::Arc::new(parking_lot::Mutex::new(StdRng::seed_from_u64(20_261_128)));
        let world = Shared::default();
        let instance = |name: &'static str| {
            let (world, random) = (world.clone(), random.clone());
            let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
                use http_body_util::BodyExt;
                let (world, random) = (world.clone(), random.clone());
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                    if world.lock().cut_off == Some(name) {
                        std::future::pending::<()>().await;
                    }
                    let mut world = world.lock();
                    if parts.uri.path().contains("/configmaps") {
                        let holder = world.server.lease.as_ref().map(|lease| lease["spec"]["holderIdentity"].clone());
                        if holder != Some(name.into()) {
                            world.wrong.push(format!("{name} wrote while the lease was {holder:?}'s"));
                        }
                        *world.written.entry(name.to_owned()).or_default() += 1;
                    }
                    let (code, answer) = answer(&mut world.server, parts.method.as_str(), parts.uri.path(), &body);
                    if parts.method != "GET"
                        && let Some(lease) = &mut world.server.lease
                    {
                        let jump = random.lock().random_range(-100_000..100_000);
                        let now = Timestamp::from_second(1_800_000_000 + jump).unwrap();
                        lease["spec"]["renewTime"] = serde_json::json!(MicroTime(now));
                    }
                    let body = kube::client::Body::from(answer.to_string().into_bytes());
                    http::Response::builder().status(code).body(body).map_err(tower::BoxError::from)
                }
            });
            let client = Client::new(service, "default");
            tokio::spawn(async move {
                loop {
                    let lead = |leadership: Leadership| async move {
                        // Goes on writing after its term, as somebody who does not know that it is over.
                        let writer = leadership.client.clone();
                        tokio::spawn(async move {
                            for _ in 0..600 {
                                let _ = timeout(Duration::from_millis(100), create(&writer, name)).await;
                                tokio::time::sleep(Duration::from_millis(200)).await;
                            }
                        });
                        leadership.over.cancelled().await;
                    };
                    run(&client, &LeaseConfig::new("x", name), None, CancellationToken::new(), lead).await;
                }
            })
        };
        let instances = [instance("first"), instance("second")];
        for _ in 0..40 {
            let (who, seconds) = {
                let mut random = random.lock();
                ([None, Some("first"), Some("second")][random.random_range(0..3)], random.random_range(1..40))
            };
            world.lock().cut_off = who;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
        let world = world.lock();
        assert_eq!(world.wrong, Vec::<String>::new());
        assert!(world.written.len() == 2 && world.written.values().all(|count| *count > 10), "{:?}", world.written);
        instances.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[test]
    fn the_three_times_must_fit_together() {
        let mut config = LeaseConfig::new("x", "me");
        assert_eq!(config.validate(), Ok(()));
        config.renew_deadline = Duration::from_secs(15);
        assert!(config.validate().is_err());
        config.renew_deadline = Duration::from_secs(2);
        assert!(config.validate().is_err());
    }
}
