//! The scheduler without an API server: it is told of objects, and says where pods go. For tests, benchmarks, and questions
//! of the kind "what if".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::framework::{PluginContext, WaitingPods};
use crate::gangs::Gangs;
use crate::listers::Listers;
use crate::metrics::Metrics;
use crate::pod::Uid;
use crate::queue::Queue;
use crate::scheduler::{Bound, Nomination, Scheduler, Step};

/// A scheduler whose decisions come true at once. What plugins would do on the way to a binding (Permit's waiting, PreBind,
/// Bind) is left out; so are leader election, events and status.
pub struct Simulation {
    scheduler: Scheduler,
    now: Instant,
    nodes: HashMap<String, Arc<Node>>,
    namespaces: HashMap<String, Arc<Namespace>>,
    pods: HashMap<Uid, Arc<Pod>>,
}

/// What became of a pod that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bound {
        pod: Uid,
        node: Arc<str>,
    },
    /// Not now.
    Unschedulable {
        pod: Uid,
        /// As users read it.
        message: String,
        /// The node on which these pods are to make room. They are not removed here.
        room: Option<(String, Vec<Uid>)>,
    },
}

impl Simulation {
    /// A scheduler over an empty cluster. Plugins read what `listers` has.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration of plugins.
    pub fn new(config: &Config, listers: Listers) -> Result<Self, Vec<String>> {
        let now = Instant::now();
        let context = PluginContext {
            client: None,
            listers,
            waiting_pods: WaitingPods::default(),
            gangs: Gangs::default(),
            feature_gates: config.feature_gates.clone(),
        };
        let scheduler = Scheduler::new(config, context, Arc::new(Metrics::default()), now)?;
        let (nodes, namespaces, pods) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(Self { scheduler, now, nodes, namespaces, pods })
    }

    /// Adds or replaces a node.
    pub fn set_node(&mut self, node: Node) {
        let node = Arc::new(node);
        let old = self.nodes.insert(node.metadata.name.clone().unwrap_or_default(), node.clone());
        self.scheduler.node_changed((old, Some(node)), self.now);
    }

    pub fn remove_node(&mut self, name: &str) {
        let old = self.nodes.remove(name);
        self.scheduler.node_changed((old, None), self.now);
    }

    /// Adds or replaces a namespace.
    pub fn set_namespace(&mut self, namespace: Namespace) {
        let namespace = Arc::new(namespace);
        let old = self.namespaces.insert(namespace.metadata.name.clone().unwrap_or_default(), namespace.clone());
        self.scheduler.namespace_changed((old, Some(namespace)));
    }

    /// Adds or replaces a pod; it is known by its uid.
    pub fn set_pod(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        let old = self.pods.insert(uid_of(&pod), pod.clone());
        self.scheduler.pod_changed((old, Some(pod)), self.now);
    }

    pub fn remove_pod(&mut self, uid: &Uid) {
        let old = self.pods.remove(uid);
        self.scheduler.pod_changed((old, None), self.now);
    }

    /// Lets time go by.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.scheduler.flush(self.now);
    }

    /// Tries the next pod of the queue; `None` if there is none to be tried now.
    pub fn schedule_one(&mut self) -> Option<Decision> {
        loop {
            let report = match self.scheduler.step(self.now) {
                Step::Idle => return None,
                Step::Done | Step::Group(_) => continue,
                Step::Failed(report) => report,
                Step::Bind(job) => {
                    let (pod, node) = (job.pod().uid.clone(), job.node.clone());
                    // What is bound is not reported.
                    drop(self.scheduler.finish(Bound { job, result: Ok(()) }, self.now));
                    self.bind(&pod, &node);
                    return Some(Decision::Bound { pod, node });
                }
            };
            let room = match report.nomination {
                Nomination::Node { node, victims } => {
                    Some((node, victims.iter().map(|victim| victim.uid.clone()).collect()))
                }
                Nomination::Keep | Nomination::Clear => None,
            };
            return Some(Decision::Unschedulable { pod: report.pod.uid.clone(), message: report.message, room });
        }
    }

    /// Tries pods until none is left to be tried now.
    pub fn schedule_all(&mut self) -> Vec<Decision> {
        std::iter::from_fn(|| self.schedule_one()).collect()
    }

    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.scheduler.cluster()
    }

    #[must_use]
    pub fn queue(&self) -> &Queue {
        self.scheduler.queue()
    }

    /// What the API server would tell of a binding.
    fn bind(&mut self, uid: &Uid, node: &str) {
        let Some(mut pod) = self.pods.get(uid).map(|pod| Pod::clone(pod)) else { return };
        pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
        self.set_pod(pod);
    }
}

fn uid_of(pod: &Pod) -> Uid {
    pod.metadata.uid.as_deref().unwrap_or_default().into()
}
