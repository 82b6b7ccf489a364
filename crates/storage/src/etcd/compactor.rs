//! Compaction of old revisions, by the protocol that upstream's API servers follow: whoever moves `compact_rev_key` from
//! the version that he last saw compacts, so that of several servers, ours and upstream's, one does it in each interval,
//! to the revision that was current an interval ago.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};
use tokio_util::sync::CancellationToken;

use super::members::Resend;
use super::{Etcd, revision_of};
use crate::{Revision, Storage, StorageError};

/// Outside every prefix: all servers of one etcd share it.
const COMPACT_KEY: &str = "compact_rev_key";

/// What a server remembers between two rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactorState {
    /// The version of the key at the last round, a logical clock.
    time: i64,
    /// The store's revision at the last round. 0: there was none.
    revision: Revision,
}

impl Etcd {
    /// Compacts every interval until `stop`. History of one to two intervals is kept.
    pub async fn run_compactor(&self, every: Duration, stop: CancellationToken) {
        let mut state = CompactorState::default();
        loop {
            if stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
                return;
            }
            match stop.run_until_cancelled(self.compact_round(state)).await {
                None => return,
                Some(Ok((next, compacted))) => {
                    state = next;
                    if let Some(revision) = compacted {
                        tracing::info!(%revision, "compacted etcd");
                    }
                }
                Some(Err(error)) => tracing::warn!(%error, "etcd was not compacted"),
            }
        }
    }

    /// One round: what to remember for the next one, and the revision that was compacted, if it was this server's turn.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn compact_round(
        &self,
        state: CompactorState,
    ) -> Result<(CompactorState, Option<Revision>), StorageError> {
        let txn = Txn::new()
            .when([Compare::version(COMPACT_KEY, CompareOp::Equal, state.time)])
            .and_then([TxnOp::put(COMPACT_KEY, state.revision.to_string(), None)])
            .or_else([TxnOp::get(COMPACT_KEY, None)]);
        let answer = self.members.call(Resend::IfUnsent, |member| {
            let (mut kv, txn) = (member.kv.clone(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let response = answer.await.map_err(super::Failure::into_error)?.value;
        let now = revision_of(response.header());
        if !response.succeeded() {
            // Somebody else was first in this interval.
            let time = response.op_responses().iter().find_map(|op| match op {
                TxnOpResponse::Get(read) => read.kvs().first().map(etcd_client::KeyValue::version),
                _ => None,
            });
            return Ok((CompactorState { time: time.unwrap_or(0), revision: now }, None));
        }
        let next = CompactorState { time: state.time + 1, revision: now };
        if state.revision == Revision(0) {
            return Ok((next, None));
        }
        match self.compact(state.revision).await {
            // Etcd's own compaction was faster.
            Ok(()) | Err(StorageError::Compacted { .. }) => Ok((next, Some(state.revision))),
            Err(error) => Err(error),
        }
    }
}
