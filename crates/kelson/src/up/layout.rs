//! Where everything is in the data directory. Nothing is written outside of it unless a flag says so, besides the host's network.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    pub(crate) fn new(data_dir: PathBuf) -> Self {
        Layout(data_dir)
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.0
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// The kubeconfig of a component or user.
    pub(crate) fn kubeconfig(&self, name: &str) -> PathBuf {
        self.0.join("kubeconfig").join(format!("{name}.conf"))
    }

    /// The embedded store.
    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub(crate) fn kubelet(&self) -> PathBuf {
        self.0.join("kubelet")
    }

    /// Manifests of static pods.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.0.join("manifests")
    }

    /// Container logs, in CRI format.
    pub(crate) fn pod_logs(&self) -> PathBuf {
        self.0.join("logs/pods")
    }

    pub(crate) fn container_log_links(&self) -> PathBuf {
        self.0.join("logs/containers")
    }

    pub(crate) fn containerd(&self) -> PathBuf {
        self.0.join("containerd")
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        containerd_socket(&self.0)
    }

    pub(crate) fn cni_conf(&self) -> PathBuf {
        self.0.join("cni/net.d")
    }

    /// Which pod holds which address.
    pub(crate) fn ipam(&self) -> PathBuf {
        self.0.join("cni/networks")
    }

    /// Volumes that are directories of this node.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// Image archives that are imported at every start.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Which parts wrote to the host's network: a file for each, with the network namespace that it wrote to.
    pub(crate) fn network(&self) -> PathBuf {
        self.0.join("network")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
}

/// The socket of the containerd that runs below a data directory.
pub(crate) fn containerd_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("containerd/containerd.sock")
}
