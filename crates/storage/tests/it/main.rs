//! The contract suite on every engine, and what each engine promises beyond it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod durability;
mod etcd;

use std::sync::Arc;

use storage::Storage;
use storage::embedded::{Embedded, EmbeddedOptions};
use storage::etcd::Etcd;
use storage::testing::etcd_server::{ClusterOptions, EtcdCluster};

fn embedded() -> (Arc<dyn Storage>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default()).unwrap()), dir)
}

async fn etcd(options: ClusterOptions, prefix: &str) -> (Arc<dyn Storage>, EtcdCluster) {
    let cluster = EtcdCluster::start(1, options);
    let mut client = cluster.options();
    client.prefix = prefix.to_owned();
    (Arc::new(Etcd::new(&client).await.unwrap()), cluster)
}

storage::storage_suite!(embedded_engine, embedded());
storage::storage_suite!(etcd_engine, etcd(ClusterOptions::default(), "/registry").await);
storage::storage_suite!(
    etcd_engine_with_tls,
    etcd(ClusterOptions { tls: true, ..ClusterOptions::default() }, "/elsewhere").await
);
