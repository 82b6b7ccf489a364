//! The pipeline without sockets.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;

use super::ApiServer;
use crate::attributes::UserInfo;
use crate::body::{Body, BoxError, request_body};
use crate::pipeline::{self, Origin};

/// Serves requests of one user inside the process. Give it to `kube::Client::new`.
#[derive(Clone)]
pub struct LocalService {
    server: ApiServer,
    user: Arc<UserInfo>,
}

impl LocalService {
    pub(super) fn new(server: ApiServer, user: Arc<UserInfo>) -> Self {
        LocalService { server, user }
    }
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.server.clone();
        let origin = Origin::Local(Arc::clone(&self.user));
        Box::pin(async move { Ok(pipeline::serve(server, request.map(request_body), origin).await) })
    }
}
