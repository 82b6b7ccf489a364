//! The socket at which device plugins register, and the stream of each that tells which devices there are.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Devices, Resource};
use crate::numa::Mask;
use crate::plugins::connect;
use crate::plugins::device_plugin::device_plugin_client::DevicePluginClient;
use crate::plugins::device_plugin::registration_server::{Registration, RegistrationServer};
use crate::plugins::device_plugin::{Device, DevicePluginOptions, Empty, ListAndWatchResponse, RegisterRequest};
use crate::resources::is_extended;

const VERSION: &str = "v1beta1";

impl Devices {
    /// Takes registrations on `device-plugins/kubelet.sock` until `stop`. Plugins that are there already register again
    /// when they see that the socket is a new one.
    pub(crate) async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let socket = self.dir.join("kubelet.sock");
        let listener = std::fs::create_dir_all(&self.dir).and_then(|()| {
            for entry in std::fs::read_dir(&self.dir)?.filter_map(Result::ok) {
                use std::os::unix::fs::FileTypeExt;
                if entry.file_type().is_ok_and(|t| t.is_socket()) {
                    std::fs::remove_file(entry.path())?; // of an earlier kubelet and its plugins, as upstream does
                }
            }
            UnixListener::bind(&socket)
        });
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, socket = %socket.display(), "device plugins cannot register");
                return;
            }
        };
        let desk = Desk { devices: Arc::clone(&self), stop: stop.clone() };
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(desk));
        let served = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled()).await;
        if let Err(error) = served {
            tracing::error!(%error, "device plugins can register no more");
        }
    }

    /// Follows a plugin's devices until its stream ends.
    pub(crate) async fn follow(self: Arc<Self>, resource: String, socket: &Path, options: Option<DevicePluginOptions>) {
        let mut client = DevicePluginClient::new(connect(socket));
        let options = match options {
            Some(options) => options,
            None => client.get_device_plugin_options(Empty {}).await.map(Response::into_inner).unwrap_or_default(),
        };
        let registration = {
            let mut state = self.state.lock();
            state.registrations += 1;
            let registration = state.registrations;
            let known = Resource { options, client: Some(client.clone()), registration, ..Resource::default() };
            state.by_resource.insert(resource.clone(), known);
            if state.kept.resources.insert(resource.clone()) {
                self.write(&state.kept);
            }
            registration
        };
        match client.list_and_watch(Empty {}).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while let Ok(Some(list)) = stream.message().await {
                    if !self.learn(&resource, registration, list) {
                        return; // another registration has taken its place
                    }
                }
            }
            Err(error) => tracing::warn!(resource, error = error.message(), "the devices could not be listed"),
        }
        self.lose(&resource, registration);
    }

    fn learn(&self, resource: &str, registration: u64, list: ListAndWatchResponse) -> bool {
        let mut state = self.state.lock();
        let Some(known) = state.by_resource.get_mut(resource).filter(|r| r.registration == registration) else {
            return false;
        };
        let near = |device: &Device| {
            let nodes = device.topology.iter().flat_map(|t| &t.nodes);
            Mask::of(nodes.filter_map(|node| usize::try_from(node.id).ok()))
        };
        known.nodes = list.devices.iter().map(|d| (d.id.clone(), near(d))).filter(|(_, m)| !m.is_empty()).collect();
        let (healthy, unhealthy): (Vec<_>, Vec<_>) = list.devices.into_iter().partition(|d| d.health == "Healthy");
        known.healthy = healthy.into_iter().map(|d| d.id).collect();
        known.unhealthy = unhealthy.into_iter().map(|d| d.id).collect();
        tracing::info!(resource, healthy = known.healthy.len(), unhealthy = known.unhealthy.len(), "devices");
        self.changed.notify_one();
        true
    }

    /// Without its plugin no device can be given.
    fn lose(&self, resource: &str, registration: u64) {
        let mut state = self.state.lock();
        if let Some(known) = state.by_resource.get_mut(resource).filter(|r| r.registration == registration) {
            tracing::info!(resource, "the device plugin has gone");
            let sick = std::mem::take(&mut known.healthy);
            known.unhealthy.extend(sick);
            known.client = None;
            known.gone_since = Some(Instant::now());
            self.changed.notify_one();
        }
    }
}

struct Desk {
    devices: Arc<Devices>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let asked = request.into_inner();
        check_request(&asked).map_err(Status::unknown)?;
        let (devices, stop) = (Arc::clone(&self.devices), self.stop.clone());
        let socket = devices.dir.join(&asked.endpoint);
        tokio::spawn(async move {
            let following = devices.follow(asked.resource_name, &socket, asked.options);
            stop.run_until_cancelled(following).await
        });
        Ok(Response::new(Empty {}))
    }
}

/// Whether a plugin speaks our version, and its resource is one that pods can ask for.
pub(crate) fn check(versions: &[String], resource: &str) -> Result<(), String> {
    if !versions.iter().any(|v| v == VERSION) {
        let asked = versions.join(", ");
        return Err(format!(
            "requested API version {asked:?} is not supported by kubelet. Supported version is {VERSION:?}"
        ));
    }
    if !is_extended(resource) {
        return Err(format!("the ResourceName {resource:?} is invalid"));
    }
    Ok(())
}

/// One that registers by itself has its socket in the directory of ours.
fn check_request(asked: &RegisterRequest) -> Result<(), String> {
    check(std::slice::from_ref(&asked.version), &asked.resource_name)?;
    if asked.endpoint.is_empty() || asked.endpoint.contains('/') {
        return Err(format!("the endpoint {:?} is no name of a socket", asked.endpoint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_register_extended_resources_beside_our_socket() {
        let check = |version: &str, resource: &str, endpoint: &str, want: bool| {
            let asked = RegisterRequest {
                version: version.into(),
                endpoint: endpoint.into(),
                resource_name: resource.into(),
                options: None,
            };
            assert_eq!(check_request(&asked).is_ok(), want, "{asked:?}");
        };
        check("v1beta1", "example.com/gpu", "gpu.sock", true);
        check("v1alpha", "example.com/gpu", "gpu.sock", false);
        check("v1beta1", "cpu", "gpu.sock", false);
        check("v1beta1", "/gpu", "gpu.sock", false);
        check("v1beta1", "example.com/", "gpu.sock", false);
        check("v1beta1", "kubernetes.io/gpu", "gpu.sock", false);
        check("v1beta1", "example.com/gpu", "../gpu.sock", false);
    }
}
