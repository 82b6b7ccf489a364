//! Volumes that are directories on this node: made when a claim's first pod has been given this node, removed with their
//! data when nobody claims them any more.
//!
//! It knows claims, volumes and StorageClasses, and must not know pods (the scheduler chooses the node, the kubelet
//! mounts). One runs on each node. Entry points: [`Config`], [`PROVISIONER`], [`run`].
//!
//! Invariants:
//! - A volume's directory is there before its PersistentVolume is, and goes before it.
//! - Nothing but directories that carry a volume's name, directly below [`Config::dir`], is ever removed.

#![forbid(unsafe_code)]

mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::controller::{self, Action, Controller, ReconcileError, Watches};
use client::error::{ApiError, ignore_not_found};
use client::events::{Dialect, Recorder, reference};
use client::informer::{SharedInformer, SharedInformerFactory};
use client::{ObjectKey, informer::Lister};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use plan::{ClaimPlan, Place, VolumePlan};

/// What StorageClasses call this provisioner.
pub const PROVISIONER: &str = "kelson.local/local-path";

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// Where the volumes of this node are.
    pub dir: PathBuf,
}

/// Serves the claims of this node until `stop`.
pub fn run(config: Config, client: Client, stop: CancellationToken) -> BoxFuture<'static, ()> {
    // Boxed, so that it is compiled here: the body of an `async fn` is compiled by the crate that awaits it.
    Box::pin(serve(config, client, stop))
}

async fn serve(config: Config, client: Client, stop: CancellationToken) {
    let factory = SharedInformerFactory::new(client.clone(), stop.clone());
    let events = Recorder::start(client.clone(), Dialect::Core, PROVISIONER, &config.node_name, stop.clone());
    let provisioner = Provisioner {
        claims: factory.informer(),
        volumes: factory.informer(),
        classes: factory.informer(),
        client,
        config,
        events,
    };
    controller::run(Arc::new(provisioner), controller::Options { workers: 2, ..controller::Options::default() }, stop)
        .await;
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("cannot make {}", path.display())]
    Make { path: PathBuf, source: std::io::Error },
    #[error("cannot remove {}", path.display())]
    Remove { path: PathBuf, source: std::io::Error },
}

impl ReconcileError for Error {
    fn is_routine(&self) -> bool {
        matches!(self, Error::Api(error) if ReconcileError::is_routine(error))
    }
}

struct Provisioner {
    config: Config,
    client: Client,
    events: Recorder,
    claims: SharedInformer<PersistentVolumeClaim>,
    volumes: SharedInformer<PersistentVolume>,
    classes: SharedInformer<StorageClass>,
}

impl Provisioner {
    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn sync_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let classes: Lister<StorageClass> = self.classes.lister();
        let name = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        let class = classes.get(&ObjectKey::cluster(name));
        let place = Place { node_name: &self.config.node_name, dir: &self.config.dir };
        let volume = match plan::plan_claim(claim, class.as_deref(), &place) {
            ClaimPlan::Leave => return Ok(()),
            ClaimPlan::Refuse(why) => {
                let text = format!("failed to provision volume with StorageClass {name:?}: {why}");
                self.events.warning(&reference(claim), "ProvisioningFailed", text);
                return Ok(());
            }
            ClaimPlan::Make(volume) => volume,
        };
        let about = reference(claim);
        let (namespace, claim_name) = (about.namespace.as_deref().unwrap_or_default(), about.name.as_deref());
        let text = format!(
            "External provisioner is provisioning volume for claim \"{namespace}/{}\"",
            claim_name.unwrap_or_default()
        );
        self.events.normal(&about, "Provisioning", text);
        let volume_name = volume.metadata.name.clone().unwrap_or_default();
        make(&self.config.dir.join(&volume_name)).await?;
        match self.volumes_api().create(&PostParams::default(), &volume).await {
            Err(error) if !error.is_already_exists() => return Err(error.into()),
            _ => self.events.normal(
                &about,
                "ProvisioningSucceeded",
                format!("Successfully provisioned volume {volume_name}"),
            ),
        }
        Ok(())
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let place = Place { node_name: &self.config.node_name, dir: &self.config.dir };
        if plan::plan_volume(volume, &place) == VolumePlan::Leave {
            return Ok(());
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        remove(&self.config.dir.join(name)).await?;
        let api = self.volumes_api();
        let finalizers: Vec<&String> =
            volume.metadata.finalizers.iter().flatten().filter(|f| *f != plan::FINALIZER).collect();
        let patch = serde_json::json!({ "metadata": {
            "resourceVersion": volume.metadata.resource_version, "finalizers": finalizers } });
        ignore_not_found(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        let only = Preconditions { uid: volume.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        ignore_not_found(api.delete(name, &params).await)?;
        tracing::info!(volume = name, "removed a volume that nobody claims");
        Ok(())
    }
}

impl Controller for Provisioner {
    const NAME: &'static str = "local_path_provisioner";
    type Error = Error;

    /// Keys are claims, which have a namespace, and volumes, which have none.
    fn watches(&self, watches: &mut Watches) {
        watches.own(&self.claims);
        watches.own(&self.volumes);
        let claims = self.claims.lister();
        watches.map(&self.classes, move |event| {
            let name = event.key().name().to_owned();
            let of_class =
                claims.filter(|c| c.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()) == Some(&name));
            of_class.iter().map(|claim| ObjectKey::of(&**claim)).collect::<Vec<_>>()
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Error> {
        if !key.namespace().is_empty() {
            if let Some(claim) = self.claims.lister().get(key) {
                self.sync_claim(&claim).await?;
            }
        } else if let Some(volume) = self.volumes.lister().get(key) {
            self.sync_volume(&volume).await?;
        }
        Ok(Action::await_change())
    }
}

/// Whatever user a pod runs as may write to its volume.
async fn make(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let for_everybody = std::fs::Permissions::from_mode(0o777);
    let made = async {
        tokio::fs::create_dir_all(path).await?;
        tokio::fs::set_permissions(path, for_everybody).await
    };
    made.await.map_err(|source| Error::Make { path: path.to_owned(), source })
}

/// However much is in it: others go on meanwhile.
async fn remove(path: &Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(path).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_made_for_everybody_and_may_be_gone_when_it_is_removed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes/pvc-1");
        make(&path).await.unwrap();
        make(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        remove(&path).await.unwrap();
        remove(&path).await.unwrap();
        assert!(!path.exists());
    }
}
