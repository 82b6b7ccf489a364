//! Deletecollection: delete, for each object of a selection.

use std::sync::Arc;

use apimachinery::status::Status;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};

use super::list::ListResult;
use super::{DeleteOptions, Registry, Write};
use crate::cache::Object;
use crate::cache::selection::Selection;

/// How many deletions run at once: enough to share the store's commits, too few to fill its queue.
const AT_ONCE: usize = 16;

impl Registry {
    /// Deletes all objects of a selection that are there now; returns them as they were.
    ///
    /// # Errors
    /// The first failure other than an object that went by itself.
    pub async fn delete_collection(
        &self,
        write: &mut Write,
        selection: &Selection,
        options: &DeleteOptions,
    ) -> Result<ListResult, Status> {
        let listed = self.list_now(&write.resource, selection).await?;
        let one_by_one = |object: &Arc<Object>| {
            let (namespace, name) = write.resource.stored().shape.names(&object.key);
            let mut one = Write {
                resource: write.resource.clone(),
                namespace: namespace.into(),
                name: name.into(),
                subresource: String::new(),
                user: Arc::clone(&write.user),
                options: write.options.clone(),
                applies: false,
                warnings: Vec::new(),
            };
            async move {
                let done = self.delete(&mut one, options).await;
                (one.warnings, done)
            }
            .boxed()
        };
        let deletions: Vec<BoxFuture<'_, _>> = listed.objects.iter().map(one_by_one).collect();
        let mut running = futures::stream::iter(deletions).buffered(AT_ONCE);
        while let Some((mut warnings, done)) = running.next().await {
            write.warnings.append(&mut warnings);
            match done {
                Ok(_) => {}
                Err(gone) if gone.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        drop(running);
        Ok(listed)
    }
}
