//! What is served: `/api`, `/apis`, and below. Made of the table of resources when somebody asks and that has changed.

mod aggregated;
mod documents;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Status;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;

use crate::aggregation::Aggregator;
use crate::body::Body;
use crate::handlers::{Call, plain_value};
use crate::nonresource::document_encoding;
use crate::resources::Resources;

/// The documents, in their JSON form as trees, and the aggregated ones as bytes.
pub(crate) struct Discovery {
    resources: Arc<Resources>,
    aggregator: Arc<Aggregator>,
    /// `None`: what is served has changed since they were made.
    documents: Mutex<Option<Arc<Documents>>>,
}

struct Documents {
    groups: Vec<documents::Group>,
    /// Of `/api` and of `/apis`.
    aggregated: [Aggregated; 2],
}

struct Aggregated {
    body: Bytes,
    etag: String,
}

impl Discovery {
    #[must_use]
    pub(crate) fn new(resources: Arc<Resources>, aggregator: Arc<Aggregator>) -> Self {
        Discovery { resources, aggregator, documents: Mutex::default() }
    }

    /// What is served has changed. A thousand changes in a row cost no more than one.
    pub(crate) fn renew(&self) {
        *self.documents.lock() = None;
    }

    fn documents(&self) -> Arc<Documents> {
        let mut documents = self.documents.lock();
        Arc::clone(documents.get_or_insert_with(|| Arc::new(Documents::new(&self.resources, &self.aggregator))))
    }

    /// Answers a path of discovery, split at its slashes; `None` for one that there is not.
    ///
    /// # Errors
    /// 406 for an encoding that there is not.
    pub(crate) fn answer(&self, call: &Call, segments: &[&str]) -> Result<Option<Response<Body>>, Status> {
        self.documents().answer(call, segments)
    }

    /// All paths that the root lists.
    #[must_use]
    pub(crate) fn root_paths(&self) -> Value {
        self.documents().root_paths()
    }
}

impl Documents {
    fn new(resources: &Resources, aggregator: &Aggregator) -> Self {
        let custom = resources.custom().into_iter().map(|r| r.def);
        let groups = documents::groups(resources.builtin().iter().copied().chain(custom), aggregator.backends());
        let (core, named): (Vec<_>, Vec<_>) = groups.iter().partition(|g| g.name.is_empty());
        let aggregated = [aggregated::document(&core), aggregated::document(&named)];
        let aggregated = aggregated.map(|body| Aggregated { etag: aggregated::etag(&body), body });
        Documents { groups, aggregated }
    }

    fn answer(&self, call: &Call, segments: &[&str]) -> Result<Option<Response<Body>>, Status> {
        let document = match segments {
            ["api" | "apis"] => {
                let aggregated = &self.aggregated[usize::from(segments[0] == "apis")];
                if let Some(media_type) = aggregated::wanted(call.accept())? {
                    return Ok(Some(aggregated.respond(call, media_type)));
                }
                if segments[0] == "api" { documents::versions(call) } else { documents::group_list(&self.groups) }
            }
            ["api", version] => match self.resources("", version) {
                Some(list) => list,
                None => return Ok(None),
            },
            ["apis", group] => match self.groups.iter().find(|g| !g.name.is_empty() && g.name == *group) {
                Some(group) => documents::group(group, true),
                None => return Ok(None),
            },
            ["apis", group, version] => match self.resources(group, version) {
                Some(list) => list,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let encoding = document_encoding(call.accept())?;
        Ok(Some(plain_value(&document, StatusCode::OK, encoding)))
    }

    fn resources(&self, group: &str, version: &str) -> Option<Value> {
        let group = self.groups.iter().find(|g| g.name == group)?;
        group.versions.iter().find(|v| v.name == version).map(documents::resource_list)
    }

    fn root_paths(&self) -> Value {
        let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned(), "/apis/".to_owned()];
        for group in self.groups.iter().filter(|g| !g.name.is_empty()) {
            paths.push(format!("/apis/{}", group.name));
            paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{}", group.name, v.name)));
        }
        paths.extend(
            ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
        );
        paths.sort();
        Value::from([("paths", paths.into_iter().map(Value::from).collect::<Vec<_>>().into())])
    }
}

impl Aggregated {
    fn respond(&self, call: &Call, media_type: &'static str) -> Response<Body> {
        let matches =
            call.header(header::IF_NONE_MATCH).is_some_and(|wanted| wanted.split(',').any(|e| e.trim() == self.etag));
        let mut response = Response::new(if matches { Body::Empty } else { Body::from(self.body.clone()) });
        *response.status_mut() = if matches { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            headers.insert(header::ETAG, etag);
        }
        response
    }
}
