//! Priority and fairness: FlowSchemas sort requests into priority levels, each with seats of its own; who finds none waits in a
//! queue of its flow.
//!
//! [`classify`] says where a request belongs, [`queues`] who goes on, this module waits and measures.

mod classify;
mod queues;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use apimachinery::Value;
use component_base::metrics::prometheus_client;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::attributes::{RequestInfo, UserInfo};
use crate::lister::Lister;
use classify::Schema;
use queues::{Levels, Queuing, Refusal, Settings, Ticket, Told};

const SCHEMAS: &str = "flowschemas.flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabels {
    priority_level: String,
    flow_schema: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    priority_level: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectedLabels {
    priority_level: String,
    flow_schema: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WaitLabels {
    priority_level: String,
    flow_schema: String,
    execute: &'static str,
}

/// Upstream's buckets of waits, in seconds.
const WAITS: [f64; 10] = [0.0, 0.005, 0.02, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

struct FlowMetrics {
    dispatched: Family<FlowLabels, Counter>,
    rejected: Family<RejectedLabels, Counter>,
    executing: Family<FlowLabels, Gauge<i64, AtomicI64>>,
    waiting: Family<FlowLabels, Gauge<i64, AtomicI64>>,
    nominal: Family<LevelLabels, Gauge<i64, AtomicI64>>,
    waited: Family<WaitLabels, Histogram, fn() -> Histogram>,
}

/// Everything that decides about who goes on.
pub(crate) struct FlowControl(Arc<Shared>);

struct Shared {
    lister: Arc<dyn Lister>,
    /// The seats of all levels together.
    total: usize,
    /// How long a request may wait.
    wait: Duration,
    rules: Mutex<Rules>,
    levels: Mutex<Levels>,
    metrics: FlowMetrics,
}

/// The objects that the rules are made of, as they were when the caches last changed.
#[derive(Default)]
struct Rules {
    generations: Option<(u64, u64)>,
    /// In the order in which they are tried, each with where its requests belong.
    schemas: Arc<Vec<(Schema, Arc<Flow>)>>,
}

/// Where requests belong, with what is counted of them.
#[derive(Debug)]
pub(crate) struct Flow {
    pub schema_uid: String,
    pub level_uid: String,
    labels: FlowLabels,
    /// The level limits nothing.
    exempt: bool,
    dispatched: Counter,
    executing: Gauge<i64, AtomicI64>,
    waiting: Gauge<i64, AtomicI64>,
    /// How long those waited who went on, and those who did not.
    waited: Histogram,
    waited_in_vain: Histogram,
}

/// Held while a request is answered.
pub(crate) struct Seat {
    pub flow: Option<Arc<Flow>>,
    /// `None`: nobody counts it.
    held: Option<Arc<Shared>>,
}

/// There was no seat, and no place to wait for one, or it did not come in time.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub flow: Arc<Flow>,
}

impl FlowControl {
    pub(crate) fn new(lister: Arc<dyn Lister>, total: usize, wait: Duration) -> Self {
        let metrics = FlowMetrics {
            dispatched: Family::default(),
            rejected: Family::default(),
            executing: Family::default(),
            waiting: Family::default(),
            nominal: Family::default(),
            waited: Family::new_with_constructor(|| Histogram::new(WAITS)),
        };
        FlowControl(Arc::new(Shared {
            lister,
            total,
            wait,
            rules: Mutex::default(),
            levels: Mutex::default(),
            metrics,
        }))
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let metrics = &self.0.metrics;
        let named = |name: &str| format!("apiserver_flowcontrol_{name}");
        registry.register(named("dispatched_requests"), "Requests that went on", metrics.dispatched.clone());
        registry.register(named("rejected_requests"), "Requests that were turned away", metrics.rejected.clone());
        let executing = "Requests that are being answered";
        registry.register(named("current_executing_requests"), executing, metrics.executing.clone());
        registry.register(named("current_executing_seats"), "Seats that are taken", metrics.executing.clone());
        registry.register(named("current_inqueue_requests"), "Requests that wait", metrics.waiting.clone());
        registry.register(named("current_inqueue_seats"), "Seats that are waited for", metrics.waiting.clone());
        registry.register(named("nominal_limit_seats"), "Seats of a level's own", metrics.nominal.clone());
        let waited = "How long requests waited for a seat";
        registry.register(named("request_wait_duration_seconds"), waited, metrics.waited.clone());
    }

    /// Takes a seat for a request, when there is one.
    ///
    /// # Errors
    /// When the request is turned away.
    pub(crate) async fn take(&self, user: &UserInfo, info: &RequestInfo) -> Result<Seat, Rejected> {
        let shared = &self.0;
        let schemas = shared.current();
        // Before the first objects are made there are no rules.
        let found = schemas.iter().find(|(schema, _)| schema.matches(user, info));
        let Some((schema, flow)) = found else { return Ok(Seat { flow: None, held: None }) };
        let flow = Arc::clone(flow);
        if flow.exempt {
            flow.dispatched.inc();
            return Ok(Seat { flow: Some(flow), held: None });
        }
        let started = Instant::now();
        let told = shared.levels.lock().arrive(flow.level(), &(&schema.name, schema.flow(user, info)));
        let outcome = match told {
            Ok(Told::Go) => Ok(()),
            Ok(Told::Wait { ticket, turn }) => {
                let waiting = Waiting::new(shared, &flow, ticket);
                match tokio::time::timeout(shared.wait, turn).await {
                    Ok(Ok(())) => {
                        waiting.done();
                        Ok(())
                    }
                    Ok(Err(_)) | Err(_) => Err("time-out"),
                }
            }
            Err(Refusal::Limit) => Err("concurrency-limit"),
            Err(Refusal::QueueFull) => Err("queue-full"),
        };
        shared.note(&flow, started.elapsed(), outcome);
        match outcome {
            Ok(()) => Ok(Seat { flow: Some(flow), held: Some(Arc::clone(shared)) }),
            Err(_) => Err(Rejected { flow }),
        }
    }
}

impl Shared {
    /// The rules as the caches have them now.
    fn current(&self) -> Arc<Vec<(Schema, Arc<Flow>)>> {
        let now = (self.lister.generation(SCHEMAS), self.lister.generation(LEVELS));
        let mut rules = self.rules.lock();
        if rules.generations != Some(now) {
            rules.generations = Some(now);
            rules.schemas = Arc::new(self.read());
        }
        Arc::clone(&rules.schemas)
    }

    /// Reads the objects, and sets the levels up.
    fn read(&self) -> Vec<(Schema, Arc<Flow>)> {
        let mut schemas: Vec<Schema> =
            self.lister.list(SCHEMAS, "").iter().map(|object| Schema::parse(object)).collect();
        Schema::sort(&mut schemas);
        let levels = self.lister.list(LEVELS, "");
        let settings = settings_of(&levels, self.total);
        self.metrics.nominal.clear();
        for (level, settings) in &settings {
            let nominal = i64::try_from(settings.nominal).unwrap_or(i64::MAX);
            self.metrics.nominal.get_or_create(&LevelLabels { priority_level: level.clone() }).set(nominal);
        }
        self.levels.lock().set(settings);
        let levels: HashMap<&str, &Value> = levels.iter().map(|object| (object.name(), object.as_ref())).collect();
        // A schema that leads nowhere is as good as none.
        let lead = schemas.into_iter().filter_map(|schema| {
            let flow = Arc::new(self.flow(&schema, levels.get(schema.level.as_str())?));
            Some((schema, flow))
        });
        lead.collect()
    }

    fn flow(&self, schema: &Schema, level: &Value) -> Flow {
        let labels = FlowLabels { priority_level: schema.level.clone(), flow_schema: schema.name.clone() };
        let waited = |execute| {
            let FlowLabels { priority_level, flow_schema } = labels.clone();
            self.metrics.waited.get_or_create(&WaitLabels { priority_level, flow_schema, execute }).clone()
        };
        Flow {
            schema_uid: schema.uid.clone(),
            level_uid: level.uid().to_owned(),
            exempt: level.str_at(&["spec", "type"]) == "Exempt",
            dispatched: self.metrics.dispatched.get_or_create(&labels).clone(),
            executing: self.metrics.executing.get_or_create(&labels).clone(),
            waiting: self.metrics.waiting.get_or_create(&labels).clone(),
            waited: waited("true"),
            waited_in_vain: waited("false"),
            labels,
        }
    }

    fn note(&self, flow: &Flow, waited: Duration, outcome: Result<(), &'static str>) {
        match outcome {
            Ok(()) => {
                flow.waited.observe(waited.as_secs_f64());
                flow.dispatched.inc();
                flow.executing.inc();
            }
            Err(reason) => {
                flow.waited_in_vain.observe(waited.as_secs_f64());
                let FlowLabels { priority_level, flow_schema } = flow.labels.clone();
                let labels = RejectedLabels { priority_level, flow_schema, reason };
                self.metrics.rejected.get_or_create(&labels).inc();
            }
        }
    }
}

impl Flow {
    fn level(&self) -> &str {
        &self.labels.priority_level
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let (Some(shared), Some(flow)) = (&self.held, &self.flow) {
            shared.levels.lock().leave(flow.level());
            flow.executing.dec();
        }
    }
}

/// One who waits; gives up when it is dropped, so that a client that goes away makes room.
struct Waiting<'s> {
    shared: &'s Shared,
    flow: &'s Flow,
    ticket: Option<Ticket>,
}

impl<'s> Waiting<'s> {
    fn new(shared: &'s Shared, flow: &'s Flow, ticket: Ticket) -> Self {
        flow.waiting.inc();
        Waiting { shared, flow, ticket: Some(ticket) }
    }

    /// Its turn has come.
    fn done(mut self) {
        self.ticket = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.flow.waiting.dec();
        if let Some(ticket) = &self.ticket {
            self.shared.levels.lock().give_up(self.flow.level(), ticket);
        }
    }
}

/// The limited levels, each with its share of all seats.
fn settings_of(levels: &[Arc<Value>], total: usize) -> Vec<(String, Settings)> {
    let number = |v: &Value, usual: u64| v.as_i64().and_then(|n| u64::try_from(n).ok()).unwrap_or(usual);
    let limited: Vec<_> = levels.iter().filter(|level| level.str_at(&["spec", "type"]) == "Limited").collect();
    let shares = |level: &Value| number(level.at(&["spec", "limited", "nominalConcurrencyShares"]), 30);
    let exempt = levels.iter().filter(|level| level.str_at(&["spec", "type"]) == "Exempt");
    let of_exempt: u64 = exempt.map(|l| number(l.at(&["spec", "exempt", "nominalConcurrencyShares"]), 0)).sum();
    let sum = limited.iter().map(|level| shares(level)).sum::<u64>() + of_exempt;
    let part = |of: u64, shares: u64, whole: u64| (of * shares).div_ceil(whole.max(1));
    let settings = limited.into_iter().map(|level| {
        let spec = level.at(&["spec", "limited"]);
        let nominal = part(total as u64, shares(level), sum);
        // Percents are rounded, as upstream does.
        let percent = |percent: u64| (nominal * percent + 50) / 100;
        let most = match spec["borrowingLimitPercent"].as_i64() {
            None => u64::MAX,
            Some(limit) => nominal.saturating_add(percent(u64::try_from(limit).unwrap_or(0))),
        };
        let response = &spec["limitResponse"];
        let queuing = (response.str_at(&["type"]) == "Queue").then(|| {
            let at = |field: &str, usual: u64| usize::try_from(number(&response["queuing"][field], usual)).unwrap_or(1);
            Queuing {
                queues: at("queues", 64).max(1),
                hand: at("handSize", 8).max(1),
                length: at("queueLengthLimit", 50),
            }
        });
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let lendable = size(percent(number(&spec["lendablePercent"], 0).min(100)));
        (level.name().to_owned(), Settings { nominal: size(nominal), lendable, most: size(most), queuing })
    });
    settings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lister::fixture::MapLister;

    fn level(name: &str, shares: i64, more: &str) -> Arc<Value> {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}","uid":"u-{name}"}},"spec":{{"type":"Limited","limited":{{"nominalConcurrencyShares":{shares}{more}}}}}}}"#
        );
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn seats_are_shared_out() {
        let queue = r#","lendablePercent":50,"borrowingLimitPercent":100,"limitResponse":{"type":"Queue","queuing":{"queues":4,"handSize":2,"queueLengthLimit":9}}"#;
        let all = [level("a", 30, queue), level("b", 10, r#","limitResponse":{"type":"Reject"}"#)];
        let settings = settings_of(&all, 100);
        let queuing = Some(Queuing { queues: 4, hand: 2, length: 9 });
        assert_eq!(settings[0], ("a".to_owned(), Settings { nominal: 75, lendable: 38, most: 150, queuing }));
        let b = Settings { nominal: 25, lendable: 0, most: usize::MAX, queuing: None };
        assert_eq!(settings[1], ("b".to_owned(), b));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_turn_and_not_for_ever() {
        let lister = Arc::new(MapLister::default());
        let queue = r#","limitResponse":{"type":"Queue","queuing":{"queues":1,"handSize":1,"queueLengthLimit":1}}"#;
        lister.put(LEVELS, (*level("l", 1, queue)).clone());
        let schema = r#"{"metadata":{"name":"s","uid":"u-s"},"spec":{"matchingPrecedence":1,"priorityLevelConfiguration":{"name":"l"},"rules":[
            {"subjects":[{"kind":"User","user":{"name":"*"}}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["*"]}]}]}}"#;
        lister.put(SCHEMAS, serde_json::from_str(schema).unwrap());
        let control = FlowControl::new(lister, 1, Duration::from_secs(15));
        let (user, info) = (UserInfo::default(), RequestInfo::default());
        let first = control.take(&user, &info).await.unwrap();
        assert_eq!(first.flow.as_ref().map(|flow| flow.level_uid.as_str()), Some("u-l"));
        let started = tokio::time::Instant::now();
        let (waited, turned_away) = tokio::join!(control.take(&user, &info), control.take(&user, &info));
        assert!(waited.is_err() && turned_away.is_err());
        assert_eq!(started.elapsed().as_secs(), 15);
        let (second, ()) = tokio::join!(control.take(&user, &info), async { drop(first) });
        drop(second.unwrap());
        assert_eq!(control.0.levels.lock().counts("l"), (0, 0));
    }
}
