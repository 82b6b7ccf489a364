//! An API server that says what it is told, for measurements of what watches one: lists that are given once, and events that
//! are told while it runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use client::config::{ClientOptions, from_service};
use futures::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Objects by the path of their list. Each needs a resourceVersion.
pub(crate) type Lists = HashMap<&'static str, Vec<Value>>;

/// A change: the path of the list, the kind of the event, and the object.
pub(crate) type Told = (&'static str, &'static str, Value);

/// The type comes first, as servers write it: who reads the object needs to know it.
fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}

/// A client of a server with these lists, which watchers get as a list that is streamed (KEP-3157), and how to tell changes.
pub(crate) fn client(lists: Lists) -> (kube::Client, broadcast::Sender<Told>) {
    let (sender, _) = broadcast::channel::<Told>(1024);
    let lists: Arc<HashMap<&'static str, Vec<Bytes>>> = Arc::new(
        lists.into_iter().map(|(path, objects)| (path, objects.iter().map(|o| line("ADDED", o)).collect())).collect(),
    );
    let changes = sender.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        let mut all = lists.get(path.as_str()).cloned().unwrap_or_default();
        let end = json!({"apiVersion": "v1", "kind": "Bookmark", "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}});
        all.push(line("BOOKMARK", &end));
        let later = stream::unfold(changes.subscribe(), |mut changes| async {
            changes.recv().await.ok().map(|change| (change, changes))
        });
        let later = later.filter_map(move |(of, kind, object)| {
            let told = (of == path).then(|| line(kind, &object));
            async { told }
        });
        let frames = stream::iter(all).chain(later).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        async { Ok::<_, Infallible>(http::Response::new(StreamBody::new(frames))) }
    });
    (from_service(service, &ClientOptions::unlimited("measurement")).expect("a client of a service"), sender)
}
