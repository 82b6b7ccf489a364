//! Durable creates of 4 KB a second, by the number of writers in flight. `bench/README.md` has the command.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::sync::Arc;
use std::time::Instant;

use storage::embedded::{Embedded, EmbeddedOptions};
use storage::{Key, Storage};

const WRITES: usize = 20_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for writers in [1, 16, 64] {
        let dir = tempfile::tempdir_in(".")?;
        let store = Arc::new(Embedded::open(dir.path(), EmbeddedOptions::default())?);
        let writes = if writers == 1 { WRITES / 10 } else { WRITES };
        let started = Instant::now();
        let tasks = (0..writers).map(|w| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0..writes / writers {
                    store.create(&Key::new(&format!("/w{w}/{i}")), vec![b'x'; 4096].into(), None).await?;
                }
                Ok::<_, storage::StorageError>(())
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await??;
        }
        let took = started.elapsed().as_secs_f64();
        println!("embedded, {writers:3} in flight: {:8.0} creates/s", writes as f64 / took);
    }
    Ok(())
}
