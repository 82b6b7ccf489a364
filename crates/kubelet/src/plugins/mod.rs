//! Programs beside the kubelet that serve a node: found by their sockets, spoken to over gRPC.

pub(crate) mod registry;
pub(crate) mod taker;

use std::path::Path;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

pub mod registration {
    tonic::include_proto!("pluginregistration");
}

pub mod device_plugin {
    tonic::include_proto!("v1beta1");
}

pub mod csi {
    tonic::include_proto!("csi.v1");
}

pub mod dra {
    pub mod v1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
    }

    pub mod v1beta1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
    }
}

pub mod dra_health {
    tonic::include_proto!("v1alpha1");
}

/// A connection to the socket of a plugin, made with the first call and again when it broke.
pub fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    }))
}
