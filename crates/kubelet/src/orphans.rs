//! What pods have left here that nobody knows any more: they went while no kubelet was here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::context::Context;
use crate::volumes;

const PERIOD: Duration = Duration::from_secs(60);

/// Looks now and then; what could not be cleaned up is tried again.
#[derive(Default)]
pub(crate) struct Orphans {
    next: Option<Instant>,
    working: Option<JoinHandle<()>>,
}

impl Orphans {
    /// `is_known` tells whose directory is looked after by a worker.
    pub(crate) fn look(&mut self, context: &Arc<Context>, is_known: impl Fn(&str) -> bool) {
        let is_working = self.working.as_ref().is_some_and(|task| !task.is_finished());
        if is_working || self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        self.next = Some(Instant::now() + PERIOD);
        let all = uids(context).into_iter().chain(context.claims.pods());
        let found: BTreeSet<String> = all.filter(|uid| !is_known(uid)).collect();
        if !found.is_empty() {
            let context = Arc::clone(context);
            self.working = Some(tokio::spawn(async move { clean(&context, found).await }));
        }
    }
}

fn uids(context: &Context) -> Vec<String> {
    let dirs = std::fs::read_dir(context.root.join("pods")).into_iter().flatten().filter_map(Result::ok);
    let dirs = dirs.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Volumes first, and the directory only when nothing is mounted below it any more: what is in a volume is not the pod's to
/// lose.
async fn clean(context: &Context, uids: BTreeSet<String>) {
    for uid in uids {
        let pod = Pod { metadata: ObjectMeta { uid: Some(uid.clone()), ..ObjectMeta::default() }, ..Pod::default() };
        if let Err(error) = context.claims.unprepare(&uid).await {
            tracing::warn!(uid, error, "orphaned pod found, but its claims are still prepared");
        }
        let cleaned = match volumes::tear_down(context, &pod).await {
            Ok(()) => volumes::forget(&context.root, &uid),
            failed => failed,
        };
        match cleaned {
            Ok(()) => tracing::info!(uid, "removed what a pod has left"),
            Err(error) => tracing::warn!(uid, %error, "orphaned pod found, but its volumes are still there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_unknown_pod_has_left_goes_unless_a_driver_is_needed_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let context = Arc::new(Context::alone(dir.path()));
        let put = |path: &str, text: &str| {
            let path = dir.path().join("pods").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("gone/volumes/kubernetes.io~empty-dir/v/file", "x");
        put("known/etc-hosts", "x");
        let data = r#"{"driverName": "disks.example.com", "volumeHandle": "disk-1"}"#;
        put("driven/volumes/kubernetes.io~csi/v/vol_data.json", data);
        put("driven/volumes/kubernetes.io~csi/v/mount/file", "precious");
        let mut orphans = Orphans::default();
        orphans.look(&context, |uid| uid == "known");
        orphans.working.take().unwrap().await.unwrap();
        let mut left = uids(&context);
        left.sort();
        assert_eq!(left, ["driven", "known"]);
        assert!(dir.path().join("pods/driven/volumes/kubernetes.io~csi/v/mount/file").exists());
    }
}
