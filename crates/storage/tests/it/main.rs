//! The contract suite on every engine, and what each engine promises beyond it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod durability;

use std::sync::Arc;

use storage::Storage;
use storage::embedded::{Embedded, EmbeddedOptions};

fn embedded() -> (Arc<dyn Storage>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default()).unwrap()), dir)
}

storage::storage_suite!(embedded_engine, embedded());
