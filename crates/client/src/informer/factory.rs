//! One place per client that makes each informer once.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};

use kube::{
    Api, Client, Resource,
    core::{ApiResource, NamespaceResourceScope},
    runtime::watcher,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Kind, SharedInformer,
    reflector::{Reflector, Undecoded},
    store::Shared,
};

/// Which objects of a kind an informer watches; the default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// A field selector such as `spec.nodeName=node1`; empty means all.
    pub fields: String,
    /// A label selector; empty means all.
    pub labels: String,
}

impl Selection {
    #[must_use]
    pub fn fields(selector: &str) -> Self {
        Self { fields: selector.to_owned(), ..Self::default() }
    }

    #[must_use]
    pub fn labels(selector: &str) -> Self {
        Self { labels: selector.to_owned(), ..Self::default() }
    }
}

/// Makes informers, each kind and selection once, and stops them all with one token. An informer's watch starts when it
/// is first asked for.
#[derive(Clone)]
pub struct SharedInformerFactory(Arc<Inner>);

struct Inner {
    client: Client,
    stop: CancellationToken,
    tasks: TaskTracker,
    informers: Mutex<Informers>,
}

#[derive(Default)]
struct Informers {
    by_kind: HashMap<(TypeId, String, Selection), Box<dyn Any + Send + Sync>>,
    /// A `fn(&mut K)` by the type of `K`.
    trims: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    synced: Vec<(String, watch::Receiver<bool>)>,
}

impl SharedInformerFactory {
    #[must_use]
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { client, stop, tasks: TaskTracker::new(), informers: Mutex::default() }))
    }

    /// Has `trim` take away from every object of a kind what none of this factory's consumers reads, for informers that are
    /// made from now on.
    pub fn trim<K: Kind>(&self, trim: fn(&mut K)) {
        self.0.informers.lock().trims.insert(TypeId::of::<K>(), Box::new(trim));
    }

    /// The informer over all objects of the kind. Needs a tokio runtime, as does [`Self::selected`].
    #[must_use]
    pub fn informer<K: Kind>(&self) -> SharedInformer<K> {
        self.selected(Selection::default())
    }

    /// The informer over the objects that `selection` describes.
    #[must_use]
    pub fn selected<K: Kind>(&self, selection: Selection) -> SharedInformer<K> {
        let resource = ApiResource::erase::<K>(&());
        self.shared("", selection, Api::all_with(self.0.client.clone(), &resource))
    }

    /// The informer over one namespace, asked for with the namespace in the URL, as narrow rights demand it.
    #[must_use]
    pub fn namespaced<K>(&self, namespace: &str, selection: Selection) -> SharedInformer<K>
    where
        K: Kind + Resource<Scope = NamespaceResourceScope>,
    {
        let resource = ApiResource::erase::<K>(&());
        self.shared(namespace, selection, Api::namespaced_with(self.0.client.clone(), namespace, &resource))
    }

    fn shared<K: Kind>(&self, namespace: &str, selection: Selection, api: Api<Undecoded>) -> SharedInformer<K> {
        let mut informers = self.0.informers.lock();
        let id = (TypeId::of::<K>(), namespace.to_owned(), selection);
        let known = informers.by_kind.get(&id).and_then(|informer| informer.downcast_ref::<SharedInformer<K>>());
        if let Some(known) = known {
            return known.clone();
        }
        let trim = informers.trims.get(&id.0).and_then(|trim| trim.downcast_ref::<fn(&mut K)>());
        let informer = self.start(api, &id.2, trim.copied().unwrap_or(|_| ()));
        let name = [&*K::kind(&()), namespace, &id.2.fields, &id.2.labels].join(" ");
        informers.synced.push((name.trim_end().to_owned(), informer.synced.clone()));
        informers.by_kind.insert(id, Box::new(informer.clone()));
        informer
    }

    fn start<K: Kind>(&self, api: Api<Undecoded>, selection: &Selection, trim: fn(&mut K)) -> SharedInformer<K> {
        let mut config = watcher::Config::default().streaming_lists();
        config.field_selector = Some(selection.fields.clone()).filter(|text| !text.is_empty());
        config.label_selector = Some(selection.labels.clone()).filter(|text| !text.is_empty());
        let shared = Arc::new(Shared::default());
        let (sender, synced) = watch::channel(false);
        let reflector = Reflector { api, config, shared: shared.clone(), synced: sender, trim };
        self.0.tasks.spawn(reflector.run(self.0.stop.clone()));
        SharedInformer { shared, synced }
    }

    /// Waits until every informer made so far is synced; `false` if they were stopped first.
    pub async fn synced(&self) -> bool {
        let waiting: Vec<_> = self.0.informers.lock().synced.clone();
        for (_, mut synced) in waiting {
            if synced.wait_for(|synced| *synced).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The informers that have not synced yet, for health endpoints.
    #[must_use]
    pub fn unsynced(&self) -> Vec<String> {
        let informers = self.0.informers.lock();
        informers.synced.iter().filter(|(_, synced)| !*synced.borrow()).map(|(name, _)| name.clone()).collect()
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}
