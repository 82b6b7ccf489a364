//! Bodies that nobody read to their end.
//!
//! A request that is refused before its body is read leaves the body on an HTTP/1 connection, in front of the next request.
//! hyper closes the connection then, which a client that was just sending sees as a broken one instead of the answer. As
//! Go's server does, what little is left is read and thrown away first.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use crate::body::{BoxError, RequestBody};

/// More than this is not worth the wait: the connection is closed.
const MOST: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// Lends a body; what is not read of it comes back when it is dropped.
pub(super) fn lend(body: RequestBody) -> (RequestBody, Unread) {
    if body.is_end_stream() {
        return (body, Unread(None));
    }
    let (home, unread) = oneshot::channel();
    (Lent { body: Some(body), home: Some(home) }.boxed_unsync(), Unread(Some(unread)))
}

/// What may come back.
pub(super) struct Unread(Option<oneshot::Receiver<RequestBody>>);

impl Unread {
    /// Reads to its end what has come back by now, if that is little.
    pub(super) async fn drain(self) {
        let Some(mut body) = self.0.and_then(|mut unread| unread.try_recv().ok()) else { return };
        let drained = tokio::time::timeout(PATIENCE, async {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > MOST {
                    return;
                }
            }
        });
        if drained.await.is_err() {
            tracing::debug!("a client did not send the rest of a body that is not wanted");
        }
    }
}

struct Lent {
    body: Option<RequestBody>,
    home: Option<oneshot::Sender<RequestBody>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(home)) = (self.body.take().filter(|b| !b.is_end_stream()), self.home.take()) {
            // Nobody waits for it when the connection is gone.
            let _ = home.send(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::body::request_body;

    #[tokio::test]
    async fn what_is_not_read_comes_back() {
        let (body, mut unread) = lend(request_body(Full::new(Bytes::from("rest"))));
        drop(body);
        let rest = unread.0.as_mut().and_then(|u| u.try_recv().ok()).unwrap();
        assert_eq!(rest.collect().await.unwrap().to_bytes(), "rest");
    }

    #[tokio::test]
    async fn nothing_comes_back_of_a_body_that_was_read() {
        let (mut body, mut unread) = lend(request_body(Full::new(Bytes::from("all"))));
        assert!(body.frame().await.is_some());
        drop(body);
        assert!(unread.0.as_mut().is_none_or(|u| u.try_recv().is_err()));
    }
}
