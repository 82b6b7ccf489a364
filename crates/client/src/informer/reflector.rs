//! Follows one kind: a streaming list and watch where the server knows them, else pages and a watch; after an error
//! again, with growing pauses.

use std::{borrow::Cow, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture};
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject, DynamicResourceScope, ObjectMeta},
    runtime::watcher::{self, Error as WatchError, Event as WatchEvent, InitialListStrategy, watcher},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Kind, store::Shared};
use crate::error::ApiError;

/// Pauses after errors, as upstream's reflectors make them: doubling from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Keeps one cache equal to what the server has.
pub(super) struct Reflector<K> {
    pub(super) api: Api<Undecoded>,
    pub(super) config: watcher::Config,
    pub(super) shared: Arc<Shared<K>>,
    pub(super) synced: watch::Sender<bool>,
    /// Takes away what nobody who reads the cache looks at.
    pub(super) trim: fn(&mut K),
}

impl<K: Kind> Reflector<K> {
    pub(super) fn run(self, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let Self { api, config, shared, synced, trim } = self;
        let mut listed: Vec<Arc<K>> = Vec::new();
        let take = move |event| match event {
            WatchEvent::Init => listed.clear(),
            WatchEvent::InitApply(object) => listed.extend(decode(&object, trim).map(Arc::new)),
            WatchEvent::InitDone => {
                shared.replace(std::mem::take(&mut listed));
                synced.send_replace(true);
            }
            WatchEvent::Apply(object) => decode(&object, trim).into_iter().for_each(|object| shared.apply(object)),
            WatchEvent::Delete(object) => decode(&object, trim).into_iter().for_each(|object| shared.delete(object)),
        };
        follow(K::kind(&()), api, config, stop, Box::new(take))
    }
}

/// An object in the server's own words, but for its `managedFields`: they are often the larger half of it, nobody reads
/// them, and a server takes an update without them as one that leaves them alone.
///
/// All kinds are watched as this one type, so that the machinery of watches is compiled once and not for each kind.
#[derive(Debug, Clone)]
pub(super) struct Undecoded {
    /// Only the name, the namespace and the resourceVersion.
    meta: ObjectMeta,
    text: String,
}

impl<'de> Deserialize<'de> for Undecoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::from(Box::<str>::from(Box::<RawValue>::deserialize(deserializer)?));
        Self::new(text).map_err(D::Error::custom)
    }
}

impl Undecoded {
    fn new(mut text: String) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            metadata: HeadMeta<'a>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct HeadMeta<'a> {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
            #[serde(borrow)]
            managed_fields: Option<&'a RawValue>,
        }
        let Head { metadata: HeadMeta { name, namespace, resource_version, managed_fields } } =
            serde_json::from_str(&text)?;
        // Where the borrowed part lies in the text that it was borrowed from.
        let place = managed_fields.map(|fields| {
            let start = fields.get().as_ptr().addr() - text.as_ptr().addr();
            start..start + fields.get().len()
        });
        if let Some(place) = place {
            text.replace_range(place, "null");
        }
        Ok(Self { meta: ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }, text })
    }
}

impl Resource for Undecoded {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// The object as its type; none, with a word in the log, where it is not what its kind says.
fn decode<K: Kind>(object: &Undecoded, trim: fn(&mut K)) -> Option<K> {
    match serde_json::from_str::<K>(&object.text) {
        Ok(mut decoded) => {
            trim(&mut decoded);
            Some(decoded)
        }
        Err(error) => {
            tell_unreadable(&K::kind(&()), &object.meta, &error);
            None
        }
    }
}

fn tell_unreadable(kind: &str, meta: &ObjectMeta, error: &serde_json::Error) {
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    tracing::error!(%kind, namespace, name, %error, "an object cannot be read and is left out");
}

/// Follows the metadata of all objects of a resource that is only known at run time, without keeping any of it: `take`
/// hears of each list (`Init`, `InitApply`, `InitDone`) and of each change.
pub async fn follow_metadata(
    client: Client,
    resource: ApiResource,
    stop: CancellationToken,
    mut take: impl FnMut(WatchEvent<ObjectMeta>) + Send + 'static,
) {
    let api = Api::all_with(client, &resource);
    let kind = resource.kind.clone();
    let take = move |event| {
        let event = match event {
            WatchEvent::Init => Some(WatchEvent::Init),
            WatchEvent::InitApply(object) => metadata_of(&kind, &object).map(WatchEvent::InitApply),
            WatchEvent::InitDone => Some(WatchEvent::InitDone),
            WatchEvent::Apply(object) => metadata_of(&kind, &object).map(WatchEvent::Apply),
            WatchEvent::Delete(object) => metadata_of(&kind, &object).map(WatchEvent::Delete),
        };
        event.into_iter().for_each(&mut take);
    };
    follow(resource.kind.into(), api, watcher::Config::default().streaming_lists(), stop, Box::new(take)).await;
}

fn metadata_of(kind: &str, object: &Undecoded) -> Option<ObjectMeta> {
    #[derive(Deserialize)]
    struct Described {
        metadata: ObjectMeta,
    }
    let decoded = serde_json::from_str::<Described>(&object.text);
    decoded.inspect_err(|error| tell_unreadable(kind, &object.meta, error)).ok().map(|decoded| decoded.metadata)
}

type Take = Box<dyn FnMut(WatchEvent<Undecoded>) + Send>;

/// Boxed, so that it is compiled here and not where it is awaited.
fn follow(
    kind: Cow<'static, str>,
    api: Api<Undecoded>,
    config: watcher::Config,
    stop: CancellationToken,
    take: Take,
) -> BoxFuture<'static, ()> {
    Box::pin(follow_until(kind, api, config, stop, take))
}

async fn follow_until(
    kind: Cow<'static, str>,
    api: Api<Undecoded>,
    mut config: watcher::Config,
    stop: CancellationToken,
    mut take: Take,
) {
    let mut pause = FIRST_PAUSE;
    let mut events = watcher(api.clone(), config.clone()).boxed();
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Ok(event) => {
                pause = FIRST_PAUSE;
                take(event);
            }
            Err(err)
                if config.initial_list_strategy == InitialListStrategy::StreamingList
                    && refuses_streaming_lists(&err) =>
            {
                tracing::debug!(%kind, "the server has no streaming lists, listing in pages");
                config.initial_list_strategy = InitialListStrategy::ListWatch;
                events = watcher(api.clone(), config.clone()).boxed();
            }
            Err(err) => {
                if is_routine(&err) {
                    tracing::debug!(%kind, %err, "watch ended");
                } else {
                    tracing::warn!(%kind, %err, "watch failed");
                }
                let wait = pause.mul_f64(rand::random_range(0.8..1.2));
                pause = (pause * 2).min(LAST_PAUSE);
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Servers before v1.34, or with the feature switched off, refuse `sendInitialEvents` as an invalid option.
fn refuses_streaming_lists(err: &WatchError) -> bool {
    match err {
        WatchError::WatchStartFailed(err) => err.is_invalid() || err.is_reason(400, "BadRequest"),
        _ => false,
    }
}

/// Ends that belong to a watch's life: the server's clock or compaction.
fn is_routine(err: &WatchError) -> bool {
    match err {
        WatchError::WatchError(status) => status.code == 410,
        WatchError::WatchStartFailed(err) => err.is_reason(410, "Expired"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;

    use super::*;

    #[track_caller]
    fn undecoded(object: &str) -> Undecoded {
        let line = format!(r#"{{"type":"ADDED","object":{object}}}"#);
        match serde_json::from_str(&line).unwrap() {
            WatchEvent::Added(object) => object,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_object_is_kept_as_it_was_written_but_for_managed_fields() {
        let object = undecoded(
            r#"{"metadata":{"managedFields":[{"manager":"a \"]","fieldsV1":{}}],"name":"a","resourceVersion":"7"},"data":{"k":"v"}}"#,
        );
        assert_eq!(
            object.text,
            r#"{"metadata":{"managedFields":null,"name":"a","resourceVersion":"7"},"data":{"k":"v"}}"#
        );
        assert_eq!((object.meta.name.as_deref(), object.meta.resource_version.as_deref()), (Some("a"), Some("7")));
        let plain = r#"{"metadata":{"name":"a"}}"#;
        assert_eq!(undecoded(plain).text, plain);
    }

    #[test]
    fn an_object_that_is_not_what_its_kind_says_is_left_out() {
        use k8s_openapi::api::core::v1::ConfigMap;
        let good = undecoded(r#"{"metadata":{"name":"a"},"data":{"k":"v"}}"#);
        let bad = undecoded(r#"{"metadata":{"name":"a"},"data":7}"#);
        assert_eq!(decode::<ConfigMap>(&good, |_| ()).and_then(|map| map.metadata.name), Some("a".to_owned()));
        assert_eq!(decode::<ConfigMap>(&bad, |_| ()), None);
        assert_eq!(metadata_of("ConfigMap", &bad).and_then(|meta| meta.name), Some("a".to_owned()));
        assert_eq!(metadata_of("ConfigMap", &undecoded(r#"{"metadata":{"name":"a","labels":7}}"#)), None);
    }
}
