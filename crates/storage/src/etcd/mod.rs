//! The engine for several machines: a client of a real etcd cluster (3.4 or later), through its v3 API.
//!
//! Every write is one transaction that compares the key's revision and then puts or deletes, so that sending it again can
//! never do it twice. A request that one member does not take goes to the next; when the answer to a write was lost, the
//! key itself tells what became of it, and where it cannot tell, the caller gets an error and nothing is claimed.

mod compactor;
mod failure;
mod keys;
mod lease;
mod members;
mod options;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use futures::StreamExt;

pub use options::{ConfigError, EtcdOptions};

use crate::{Entry, Key, KeyRange, Page, Revision, Storage, StorageError, Ttl, WatchStream};
use failure::Failure;
use keys::KeyMap;
use lease::Leases;
use members::{Answer, Members, Resend};

/// What etcd takes in one request unless it is told otherwise (`--max-request-bytes`).
const DEFAULT_REQUEST_LIMIT: usize = 3 << 19;
/// How many entries are read at once: etcd answers a range in one message and holds it in memory twice.
const PAGE: usize = 1000;
/// How long etcd may take for a page of a range; other requests have less.
const RANGE_PATIENCE: Duration = Duration::from_secs(30);

/// A client of an etcd cluster. Connections are made when they are needed, and again when they break.
pub struct Etcd {
    members: Arc<Members>,
    keys: KeyMap,
    leases: Leases,
    /// Counts the requests for progress; every open watch follows it.
    progress: tokio::sync::watch::Sender<u64>,
}

/// What a transaction came to.
enum Outcome {
    /// It was applied, at this revision.
    Applied(Revision),
    /// The comparison failed at this revision; what the key holds instead.
    Refused(Option<Entry>, Revision),
}

impl Etcd {
    /// A client of the members that the options name. Nothing is sent yet: a cluster that is away is no error here.
    ///
    /// # Errors
    /// [`ConfigError`] when an address or a file is not usable.
    pub async fn new(options: &EtcdOptions) -> Result<Self, ConfigError> {
        Ok(Etcd {
            members: Arc::new(Members::new(options).await?),
            keys: KeyMap::new(&options.prefix),
            leases: Leases::default(),
            progress: tokio::sync::watch::Sender::new(0),
        })
    }

    /// Runs `action` if the key's last change was at `expect` (0: if there is no such key), else reads the key.
    async fn compare_and(
        &self,
        key: &Key,
        expect: Revision,
        action: TxnOp,
        resend: Resend,
    ) -> Result<Answer<Outcome>, Failure> {
        let name = self.keys.outward(key.as_str());
        let txn = Txn::new()
            .when([Compare::mod_revision(name.clone(), CompareOp::Equal, signed(expect))])
            .and_then([action])
            .or_else([TxnOp::get(name, None)]);
        let answer = self.members.call(resend, |member| {
            let (mut kv, txn) = (member.kv.clone(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let Answer { value: response, repeated } = answer.await?;
        let revision = revision_of(response.header());
        if response.succeeded() {
            return Ok(Answer { value: Outcome::Applied(revision), repeated });
        }
        let found = response.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut read) => read.take_kvs().pop(),
            _ => None,
        });
        let entry = found.and_then(|kv| self.entry(kv));
        Ok(Answer { value: Outcome::Refused(entry, revision), repeated })
    }

    /// Puts a value, under a lease if it is to go away by itself.
    async fn put_if(
        &self,
        key: &Key,
        expect: Revision,
        value: &Bytes,
        ttl: Option<Ttl>,
        resend: Resend,
    ) -> Result<Answer<Outcome>, Failure> {
        let put = |lease: Option<i64>| {
            let options = lease.map(|id| PutOptions::new().with_lease(id));
            TxnOp::put(self.keys.outward(key.as_str()), value.to_vec(), options)
        };
        let Some(ttl) = ttl else { return self.compare_and(key, expect, put(None), resend).await };
        let lease = self.leases.lease_for(ttl, &self.members).await?;
        match self.compare_and(key, expect, put(Some(lease)), resend).await {
            Err(Failure::LeaseNotFound) => {
                // It ran out on the way (a clock jumped, the cluster was restored): nothing was written.
                self.leases.forget(lease).await;
                let lease = self.leases.lease_for(ttl, &self.members).await?;
                self.compare_and(key, expect, put(Some(lease)), resend).await
            }
            done => done,
        }
    }

    /// After the answer to a create was lost: the key tells whether it was made. If it is not there, that proves nothing,
    /// since the request may still be on its way; making it again could then bring back what was deleted meanwhile.
    async fn resolve_create(&self, key: &Key, value: &Bytes, lost: Failure) -> Result<Revision, StorageError> {
        match self.get(key).await? {
            (Some(entry), _) if entry.value == *value && entry.create_revision == entry.mod_revision => {
                Ok(entry.mod_revision)
            }
            (Some(_), _) => Err(StorageError::Exists { key: key.clone() }),
            (None, _) => Err(lost.into_error()),
        }
    }

    async fn get_with(
        &self,
        start: &str,
        patience: Option<Duration>,
        options: GetOptions,
    ) -> Result<etcd_client::GetResponse, Failure> {
        let start = self.keys.outward(start);
        let read = |member: Arc<members::Member>| {
            let (mut kv, start, options) = (member.kv.clone(), start.clone(), options.clone());
            async move { kv.get(start, Some(options)).await }
        };
        let answer = match patience {
            Some(patience) => self.members.call_patiently(Resend::Always, patience, read).await,
            None => self.members.call(Resend::Always, read).await,
        };
        Ok(answer?.value)
    }

    /// One request's worth of a range.
    async fn page(
        &self,
        start: &str,
        end: &Key,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<(Page, bool), StorageError> {
        let options = GetOptions::new()
            .with_range(self.keys.outward(end.as_str()))
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(at.map_or(0, signed));
        let mut response = match self.get_with(start, Some(RANGE_PATIENCE), options).await {
            Ok(response) => response,
            Err(failure) => return Err(self.explain(failure, at.unwrap_or_default()).await),
        };
        let (more, count) = (response.more(), response.count());
        let kvs = response.take_kvs();
        let remaining = u64::try_from(count).unwrap_or(0).saturating_sub(kvs.len() as u64);
        let entries = kvs.into_iter().filter_map(|kv| self.entry(kv)).collect();
        let revision = at.unwrap_or_else(|| revision_of(response.header()));
        Ok((Page { entries, revision, remaining }, more))
    }

    /// Says what etcd leaves out of its errors about a revision.
    async fn explain(&self, failure: Failure, asked: Revision) -> StorageError {
        match failure {
            Failure::Compacted => {
                let oldest = watch::oldest_kept(&self.members, asked).await.unwrap_or_default();
                StorageError::Compacted { asked, oldest }
            }
            Failure::Future => match self.revision().await {
                Ok(current) => StorageError::Future { asked, current },
                Err(error) => error,
            },
            other => other.into_error(),
        }
    }

    fn entry(&self, kv: KeyValue) -> Option<Entry> {
        let (create_revision, mod_revision) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
        let (key, value) = kv.into_key_value();
        let key = self.keys.inward(&key)?;
        Some(Entry { key, value: value.into(), create_revision, mod_revision })
    }
}

#[async_trait]
impl Storage for Etcd {
    async fn create(&self, key: &Key, value: Bytes, ttl: Option<Ttl>) -> Result<Revision, StorageError> {
        match self.put_if(key, Revision(0), &value, ttl, Resend::IfUnsent).await {
            Ok(Answer { value: Outcome::Applied(revision), .. }) => Ok(revision),
            Ok(Answer { value: Outcome::Refused(..), .. }) => Err(StorageError::Exists { key: key.clone() }),
            Err(lost @ Failure::Lost { .. }) => self.resolve_create(key, &value, lost).await,
            Err(failure) => Err(failure.into_write_error(&value)),
        }
    }

    async fn update(
        &self,
        key: &Key,
        value: Bytes,
        expect: Revision,
        ttl: Option<Ttl>,
    ) -> Result<Revision, StorageError> {
        let answer = self.put_if(key, expect, &value, ttl, Resend::Always).await;
        let Answer { value: outcome, repeated } = answer.map_err(|f| f.into_write_error(&value))?;
        match outcome {
            Outcome::Applied(revision) => Ok(revision),
            // An earlier attempt was applied after all.
            Outcome::Refused(Some(current), _) if repeated && current.value == value => Ok(current.mod_revision),
            // It may have been, and then somebody else wrote: a conflict would claim that it was not.
            Outcome::Refused(..) if repeated => Err(Failure::unknown_outcome().into_error()),
            Outcome::Refused(Some(current), _) => {
                Err(StorageError::Conflict { key: key.clone(), current: Box::new(current) })
            }
            Outcome::Refused(None, _) => Err(StorageError::NotFound { key: key.clone() }),
        }
    }

    async fn delete(&self, key: &Key, expect: Revision) -> Result<Revision, StorageError> {
        let action = TxnOp::delete(self.keys.outward(key.as_str()), None);
        let answer = self.compare_and(key, expect, action, Resend::Always).await;
        let Answer { value: outcome, repeated } = answer.map_err(Failure::into_error)?;
        match outcome {
            Outcome::Applied(revision) => Ok(revision),
            // What was to go is gone: by an earlier attempt, or by somebody else's.
            Outcome::Refused(None, revision) if repeated => Ok(revision),
            Outcome::Refused(Some(current), _) => {
                Err(StorageError::Conflict { key: key.clone(), current: Box::new(current) })
            }
            Outcome::Refused(None, _) => Err(StorageError::NotFound { key: key.clone() }),
        }
    }

    async fn get(&self, key: &Key) -> Result<(Option<Entry>, Revision), StorageError> {
        let mut response = self.get_with(key.as_str(), None, GetOptions::new()).await.map_err(Failure::into_error)?;
        let entry = response.take_kvs().pop().and_then(|kv| self.entry(kv));
        Ok((entry, revision_of(response.header())))
    }

    async fn range(&self, range: &KeyRange, limit: usize, at: Option<Revision>) -> Result<Page, StorageError> {
        let first = if limit == 0 { PAGE } else { limit };
        let (mut page, mut more) = self.page(range.start.as_str(), &range.end, first, at).await?;
        while limit == 0 && more {
            let Some(last) = page.entries.last() else { break };
            let after = format!("{}\0", last.key.as_str());
            let next;
            (next, more) = self.page(&after, &range.end, PAGE, Some(page.revision)).await?;
            page.entries.extend(next.entries);
            page.remaining = next.remaining;
        }
        Ok(page)
    }

    async fn watch(&self, range: &KeyRange, after: Revision) -> Result<WatchStream, StorageError> {
        let members = Arc::clone(&self.members);
        let watcher =
            watch::Watcher::open(members, self.keys.clone(), range.clone(), after, self.progress.subscribe()).await?;
        Ok(watcher.into_stream().boxed())
    }

    async fn revision(&self) -> Result<Revision, StorageError> {
        // Any linearizable read tells the revision; one that finds nothing is the cheapest.
        let options = GetOptions::new().with_count_only();
        let response = self.get_with("/registry/health", None, options).await.map_err(Failure::into_error)?;
        Ok(revision_of(response.header()))
    }

    async fn request_progress(&self) -> Result<(), StorageError> {
        self.progress.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn compact(&self, at: Revision) -> Result<(), StorageError> {
        let answer = self.members.call(Resend::Always, |member| {
            let mut kv = member.kv.clone();
            async move { kv.compact(signed(at), None).await }
        });
        let Err(failure) = answer.await else { return Ok(()) };
        match self.explain(failure, at).await {
            // It was done before, perhaps by an attempt whose answer was lost.
            StorageError::Compacted { oldest, .. } if oldest == at => Ok(()),
            error => Err(error),
        }
    }

    async fn size(&self) -> Result<u64, StorageError> {
        let status = self.members.call(Resend::Always, |member| {
            let mut maintenance = member.maintenance.clone();
            async move { maintenance.status().await }
        });
        let status = status.await.map_err(Failure::into_error)?.value;
        Ok(u64::try_from(status.db_size()).unwrap_or(0))
    }
}

/// Revisions are signed on the wire; none is ever negative.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(Revision(0), |header| unsigned(header.revision()))
}
