//! Puts the cluster's CA into every namespace, as the ConfigMap that pods mount next to their token.

use client::{
    ObjectKey,
    controller::{Action, Controller, Watches},
    error::ApiError,
    informer::{Lister, Selection, SharedInformer},
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};

use crate::{context::Context, error::SyncError, serviceaccount::is_ending};

const NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub(crate) struct RootCaCertificatePublisher {
    client: Client,
    bundle: String,
    namespaces: SharedInformer<Namespace>,
    namespace_lister: Lister<Namespace>,
    maps: SharedInformer<ConfigMap>,
    map_lister: Lister<ConfigMap>,
}

impl RootCaCertificatePublisher {
    /// `bundle` is PEM.
    pub(crate) fn new(context: &Context, bundle: String) -> Self {
        let namespaces = context.informers.informer::<Namespace>();
        let maps = context.informers.selected::<ConfigMap>(Selection::fields("metadata.name=kube-root-ca.crt"));
        Self {
            client: context.client.clone(),
            bundle,
            namespace_lister: namespaces.lister(),
            namespaces,
            map_lister: maps.lister(),
            maps,
        }
    }

    fn is_right(&self, map: &ConfigMap) -> bool {
        let described = map.metadata.annotations.as_ref().and_then(|all| all.get(DESCRIPTION));
        let data = map.data.as_ref();
        data.is_some_and(|data| data.len() == 1 && data.get(FILE) == Some(&self.bundle))
            && described.is_some_and(|text| text == DESCRIPTION_TEXT)
    }
}

impl Controller for RootCaCertificatePublisher {
    const NAME: &'static str = "root_ca_cert_publisher";
    type Error = SyncError;

    /// Keys are namespaces.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.namespaces);
        watches.map(&self.maps, |event| Some(ObjectKey::cluster(event.key().namespace())));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, SyncError> {
        let Some(namespace) = self.namespace_lister.get(key) else { return Ok(Action::await_change()) };
        if is_ending(&namespace) {
            return Ok(Action::await_change());
        }
        let known = self.map_lister.get(&ObjectKey::new(key.name(), NAME));
        if known.as_ref().is_some_and(|map| self.is_right(map)) {
            return Ok(Action::await_change());
        }
        let mut map = known.as_deref().cloned().unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name().to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        });
        map.data = Some([(FILE.to_owned(), self.bundle.clone())].into());
        map.metadata.annotations.get_or_insert_default().insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), key.name());
        let params = PostParams::default();
        let written = match known {
            None => api.create(&params, &map).await,
            Some(_) => api.replace(NAME, &params, &map).await,
        };
        match written {
            Ok(_) => Ok(Action::await_change()),
            Err(err) if err.is_already_exists() || err.is_namespace_terminating() => Ok(Action::await_change()),
            Err(err) => Err(err.into()),
        }
    }
}
