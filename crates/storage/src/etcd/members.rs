//! The members of the cluster, and which of them is asked.
//!
//! Requests go to one member until it fails; then to the next. Watches follow, so that a member that hangs without closing
//! its connections holds up nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etcd_client::{Client, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tokio::time::Instant;

use super::failure::Failure;
use super::options::{ConfigError, EtcdOptions};

/// A little more than etcd gives itself (7 s), so that what it has to say arrives.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a request is offered to members that do not take it: an election takes a second or two.
const GIVE_UP: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What the server may send in one message; etcd itself has no limit.
const MESSAGE_LIMIT: usize = i32::MAX as usize;

/// One member and the services that it offers.
pub(super) struct Member {
    pub(super) endpoint: String,
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
    pub(super) maintenance: MaintenanceClient,
}

pub(super) struct Members {
    list: Vec<Arc<Member>>,
    /// The index of the member that is asked.
    current: tokio::sync::watch::Sender<usize>,
    /// The last attempt failed. Kept so that an outage is logged when it begins and ends, not with every request.
    away: AtomicBool,
}

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resend {
    /// Also when an earlier attempt may have been done: doing it twice is doing it once.
    Always,
    /// Only when the earlier attempts certainly had no effect.
    IfUnsent,
}

/// An answer, and whether an earlier attempt may have had an effect too.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) repeated: bool,
}

impl Members {
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, ConfigError> {
        let mut list = Vec::with_capacity(options.servers.len());
        for server in &options.servers {
            list.push(Arc::new(Member::new(server, options).await?));
        }
        if list.is_empty() {
            return Err(ConfigError::NoServers);
        }
        // Clients that are told of the same members in the same order shall not all ask the same one.
        let first = std::process::id() as usize % list.len();
        Ok(Members { list, current: tokio::sync::watch::Sender::new(first), away: AtomicBool::new(false) })
    }

    /// The member that is asked now, and its index.
    pub(super) fn current(&self) -> (usize, Arc<Member>) {
        let index = *self.current.borrow();
        (index, Arc::clone(&self.list[index]))
    }

    /// Tells when another member is asked.
    pub(super) fn moves(&self) -> tokio::sync::watch::Receiver<usize> {
        self.current.subscribe()
    }

    fn answered(&self) {
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::Relaxed) {
            tracing::info!("etcd answers again");
        }
    }

    /// Asks another member than this from now on, unless that was decided already.
    pub(super) fn leave(&self, index: usize, failure: &Failure) {
        if !self.away.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason = failure.reason(), "etcd does not answer");
        }
        let next = (index + 1) % self.list.len();
        let moved = self.current.send_if_modified(|current| {
            let moves = *current == index && next != index;
            if moves {
                *current = next;
            }
            moves
        });
        if moved {
            let (from, to) = (&self.list[index].endpoint, &self.list[next].endpoint);
            tracing::info!(%from, %to, "asking another member of etcd");
        }
    }

    /// Sends a request until a member answers it.
    pub(super) async fn call<T, F, Fut>(&self, resend: Resend, send: F) -> Result<Answer<T>, Failure>
    where
        F: Fn(Arc<Member>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
        T: Send,
    {
        self.call_patiently(resend, PATIENCE, send).await
    }

    /// As [`Members::call`], for requests that may take a while.
    pub(super) async fn call_patiently<T, F, Fut>(
        &self,
        resend: Resend,
        patience: Duration,
        send: F,
    ) -> Result<Answer<T>, Failure>
    where
        F: Fn(Arc<Member>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
        T: Send,
    {
        let give_up = Instant::now() + GIVE_UP;
        let mut backoff = Backoff::new(self.list.len());
        let mut repeated = false;
        loop {
            let (index, member) = self.current();
            let failure = match tokio::time::timeout(patience, send(Arc::clone(&member))).await {
                Ok(Ok(value)) => {
                    self.answered();
                    return Ok(Answer { value, repeated });
                }
                Ok(Err(error)) => Failure::of(&error),
                Err(_) => Failure::no_answer(patience),
            };
            let failure = failure.at(&member.endpoint);
            match (&failure, resend) {
                (Failure::Unsent { .. }, _) => {}
                (Failure::Lost { .. }, Resend::Always) => repeated = true,
                (Failure::Lost { .. }, Resend::IfUnsent) => {
                    self.leave(index, &failure);
                    return Err(failure);
                }
                _ => return Err(failure),
            }
            self.leave(index, &failure);
            let pause = backoff.next();
            if Instant::now() + pause >= give_up {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl Member {
    async fn new(server: &str, options: &EtcdOptions) -> Result<Self, ConfigError> {
        let connect = options.connect_options(server)?;
        let client = Client::connect([server], Some(connect));
        let client = client.await.map_err(|source| ConfigError::Client { server: server.to_owned(), source })?;
        Ok(Member {
            endpoint: server.to_owned(),
            kv: client.kv_client().max_decoding_message_size(MESSAGE_LIMIT),
            watch: client.watch_client().max_decoding_message_size(MESSAGE_LIMIT),
            lease: client.lease_client(),
            maintenance: client.maintenance_client(),
        })
    }
}

/// How long to wait before the next attempt: not at all until every member was asked once.
pub(super) struct Backoff {
    members: usize,
    attempts: usize,
    pause: Duration,
}

impl Backoff {
    pub(super) fn new(members: usize) -> Self {
        Backoff { members, attempts: 0, pause: FIRST_PAUSE }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.attempts += 1;
        if !self.attempts.is_multiple_of(self.members) {
            return Duration::ZERO;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

impl Members {
    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.list.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_asked_before_a_pause() {
        let mut backoff = Backoff::new(3);
        let pauses: Vec<u128> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [0, 0, 50, 0, 0, 100, 0, 0, 200]);
        assert_eq!(Backoff::new(1).next(), FIRST_PAUSE);
    }
}
