//! Watches: a stream of framed events.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use apimachinery::status::Status;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use rand::RngExt;
use storage::Revision;
use tokio::time::{Instant, Sleep};

use super::read::selection;
use super::watch_frame::{Event, Framer, shown};
use super::{Call, Target, negotiation, respond, table};
use crate::body::{Body, BoxError};
use crate::cache::feed::Feed;
use crate::cache::{EventType, Object, Start, WatchError, Watcher};
use crate::registry::{ListOptions, parse_version, status};

/// How long a watch lasts that names no end: between this and twice this, so that not all end together.
const MIN_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often a client that wants bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Frames that wait together are sent together, up to about this many bytes.
const BATCH: usize = 64 << 10;

pub(super) async fn watch(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiation::negotiate_stream(call.accepts())?;
    let options = ListOptions::parse(&call.query, true)?;
    let selection = Arc::new(selection(call, target, &options)?);
    let framer = Framer::new(&target.resource, accepted, table::Options::parse(&call.query)?);
    let media_type = framer.media_type();
    let feed = Arc::clone(&call.server.registry().feed);
    let start = start(call, &options).await;
    if matches!(start, Ok(Start::WithInitial { .. })) {
        call.server.registry().demand_readable(&target.resource, &selection).await?;
    }
    let stream = match start {
        Ok(start) => match target.resource.stored().watch(selection, start) {
            // Asked for only now: a watch that began before this is ended with the others.
            Ok(_) if call.server.inner().closing.is_cancelled() => {
                return Err(Status::service_unavailable("the server is shutting down"));
            }
            Ok(watcher) => Watching::new(watcher, framer, feed, &options),
            Err(error @ WatchError::TooOld { .. }) => {
                // Upstream tells this in the stream: the request itself was good.
                Watching::broken(&framer, &Status::expired(error.to_string()))
            }
        },
        Err(status) => return Err(status),
    };
    let body = match stream {
        Ok(watching) => Body::stream(watching),
        Err(frame) => Body::from(frame),
    };
    Ok(respond::with_type(body, StatusCode::OK, media_type))
}

/// Where the watch begins, once the caches are as far as that demands.
async fn start(call: &Call, options: &ListOptions) -> Result<Start, Status> {
    let feed = &call.server.registry().feed;
    let version = options.resource_version.as_str();
    let initial = match (version, options.send_initial_events) {
        (_, Some(wanted)) => wanted,
        ("" | "0", None) => true,
        (_, None) => false,
    };
    let asked = if version.is_empty() { None } else { Some(parse_version(version).map_err(status::plain)?) };
    if !initial {
        // Without a version and without initial events the watch begins now.
        return match asked {
            Some(revision) => Ok(Start::After(revision)),
            None => feed.catch_up().await.map(Start::After).map_err(|e| Status::internal(e.to_string())),
        };
    }
    let fed = match asked {
        None => feed.catch_up().await.map_err(|e| Status::internal(e.to_string()))?,
        Some(revision) => feed.reach(revision).await.map_err(|e| status::too_large(&e))?,
    };
    Ok(Start::WithInitial { fed })
}

/// The body of a watch.
struct Watching {
    watcher: Watcher,
    framer: Arc<Framer>,
    /// A frame that waits for a webhook.
    asked: Option<BoxFuture<'static, Bytes>>,
    feed: Arc<Feed>,
    /// Whether the client wants to know when the initial events are over.
    marks_initial_end: bool,
    end: Instant,
    /// Fires at the next bookmark or at the end.
    timer: Pin<Box<Sleep>>,
    /// The revision of the last bookmark: the same twice would tell nothing.
    told: Revision,
    closed: bool,
}

impl Watching {
    fn new(watcher: Watcher, framer: Framer, feed: Arc<Feed>, options: &ListOptions) -> Result<Self, Bytes> {
        let now = Instant::now();
        let timeout = match options.timeout_seconds {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => MIN_TIMEOUT + MIN_TIMEOUT.mul_f64(rand::rng().random_range(0.0..1.0)),
        };
        let end = now + timeout;
        let first = if options.allow_bookmarks { end.min(now + BOOKMARK_EVERY) } else { end };
        Ok(Watching {
            watcher,
            framer: Arc::new(framer),
            asked: None,
            feed,
            marks_initial_end: options.send_initial_events == Some(true) && options.allow_bookmarks,
            end,
            timer: Box::pin(tokio::time::sleep_until(first)),
            told: Revision(0),
            closed: false,
        })
    }

    fn broken(framer: &Framer, status: &Status) -> Result<Self, Bytes> {
        Err(framer.error(status))
    }

    /// The timer fired: the watch is over, or a bookmark is due.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.end {
                self.closed = true;
                return Poll::Ready(None);
            }
            self.timer.as_mut().reset(self.end.min(now + BOOKMARK_EVERY));
            // Read before asking whether all is told: what comes later is later than this.
            let revision = self.feed.revision();
            if self.watcher.is_drained() && self.asked.is_none() && revision > self.told {
                self.told = revision;
                return Poll::Ready(Some(self.framer.bookmark(revision, false)));
            }
        }
    }

    /// Begins to have an object converted; nothing else is told before it.
    fn ask(&mut self, kind: EventType, object: Arc<Object>, revision: Revision) {
        let framer = Arc::clone(&self.framer);
        self.asked = Some(Box::pin(async move { framer.asked(kind, object, revision).await }));
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut single: Option<Bytes> = None;
        let mut many = BytesMut::new();
        loop {
            if let Some(asked) = &mut self.asked {
                let Poll::Ready(frame) = asked.as_mut().poll(cx) else { break };
                self.asked = None;
                return Poll::Ready(Some(joined(many, single, frame)));
            }
            let frame = match self.watcher.poll_next(cx) {
                Poll::Ready(None) => {
                    self.closed = true;
                    break;
                }
                Poll::Pending => break,
                Poll::Ready(Some(item)) => match Event::of(&self.watcher, item) {
                    Event::InitialEnd(revision) if self.marks_initial_end => self.framer.bookmark(revision, true),
                    Event::InitialEnd(_) | Event::Nothing => continue,
                    Event::Object { kind, object, revision } if self.framer.must_ask(&object) => {
                        self.ask(kind, object, revision);
                        continue;
                    }
                    Event::Shared { kind, delivery } if self.framer.must_ask(shown(kind, &delivery)) => {
                        let revision = delivery.change.revision;
                        self.ask(kind, Arc::clone(shown(kind, &delivery)), revision);
                        continue;
                    }
                    Event::Object { kind, object, revision } => self.framer.event(kind, &object, revision),
                    Event::Shared { kind, delivery } => self.framer.shared(kind, &delivery),
                },
            };
            match single.take() {
                None if many.is_empty() => single = Some(frame),
                None => many.extend_from_slice(&frame),
                Some(first) => {
                    many.reserve(BATCH);
                    many.extend_from_slice(&first);
                    many.extend_from_slice(&frame);
                }
            }
            if many.len() >= BATCH {
                break;
            }
        }
        match single {
            Some(frame) => Poll::Ready(Some(frame)),
            None if !many.is_empty() => Poll::Ready(Some(many.freeze())),
            None if self.closed => Poll::Ready(None),
            None => self.on_timer(cx),
        }
    }
}

fn joined(mut many: BytesMut, single: Option<Bytes>, last: Bytes) -> Bytes {
    if let Some(single) = single {
        many.extend_from_slice(&single);
    }
    if many.is_empty() {
        return last;
    }
    many.extend_from_slice(&last);
    many.freeze()
}

impl HttpBody for Watching {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.closed {
            return Poll::Ready(None);
        }
        let bytes = ready!(self.poll_bytes(cx));
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
