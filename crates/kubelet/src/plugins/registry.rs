//! The directory in which plugins put a socket to be found: who comes is asked what it is, who goes is forgotten.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::connect;
use super::registration::registration_client::RegistrationClient;
use super::registration::{InfoRequest, PluginInfo, RegistrationStatus};

/// What the kubelet does with plugins of a type.
pub(crate) trait Takes: Send + Sync + 'static {
    /// Takes a plugin that has come, or says why it does not.
    fn came(&self, plugin: Plugin) -> impl Future<Output = Result<(), String>> + Send;
    fn gone(&self, plugin: Plugin) -> impl Future<Output = ()> + Send;
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Plugin {
    /// `CSIPlugin`, `DRAPlugin` or `DevicePlugin`.
    pub kind: String,
    pub name: String,
    pub versions: Vec<String>,
    /// The socket on which it serves its own interface.
    pub endpoint: PathBuf,
    /// The socket by which it was found.
    pub found_at: PathBuf,
}

const CALL: Duration = Duration::from_secs(10);
/// A plugin that did not answer, or was not taken, is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// Watches `dir` until `stop`.
pub(crate) async fn watch<T: Takes>(dir: PathBuf, taker: Arc<T>, stop: CancellationToken) {
    let watching = std::fs::create_dir_all(&dir).and_then(|()| changes_of(&dir));
    let changes = match watching {
        Ok(changes) => changes,
        Err(error) => {
            tracing::error!(%error, dir = %dir.display(), "plugins cannot be looked for");
            return;
        }
    };
    let mut known: Vec<Plugin> = Vec::new();
    loop {
        let present = sockets_below(&dir);
        for plugin in known.extract_if(.., |p| !present.contains(&p.found_at)) {
            tracing::info!(plugin = plugin.name, kind = plugin.kind, "a plugin has gone");
            taker.gone(plugin).await;
        }
        let mut all_taken = true;
        for socket in present {
            if known.iter().any(|p| p.found_at == socket) {
                continue;
            }
            match introduce(&socket, &*taker).await {
                Ok(plugin) => {
                    tracing::info!(plugin = plugin.name, kind = plugin.kind, "a plugin has come");
                    known.push(plugin);
                }
                Err(error) => {
                    tracing::warn!(error, socket = %socket.display(), "a plugin could not be registered");
                    all_taken = false;
                }
            }
        }
        let changed = async {
            let Ok(mut ready) = changes.ready.readable().await else { return };
            // What happened is seen in the directory itself.
            let _ = changes.inotify.read_events();
            ready.clear_ready();
        };
        let again = async {
            if all_taken {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! { () = changed => {}, () = again => {}, () = stop.cancelled() => return }
    }
}

/// A watch on a directory.
struct Changes {
    inotify: Inotify,
    /// The same watch, for whoever waits.
    ready: AsyncFd<OwnedFd>,
}

fn changes_of(dir: &Path) -> std::io::Result<Changes> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(dir, kinds | AddWatchFlags::IN_MOVED_FROM)?;
    let own = inotify.as_fd().try_clone_to_owned()?;
    #[expect(unsafe_code, reason = "the runtime has no safe way to wait for a descriptor that is no socket")]
    // SAFETY: an OwnedFd always names the same descriptor, which stays open as long as it lives.
    let ready = unsafe { AsyncFd::register(own) }?;
    Ok(Changes { inotify, ready })
}

fn sockets_below(dir: &Path) -> BTreeSet<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let hidden = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with('.');
    entries.filter(|e| !hidden(e) && e.file_type().is_ok_and(|t| t.is_socket())).map(|e| e.path()).collect()
}

/// Asks the plugin what it is and tells it whether it was taken.
async fn introduce<T: Takes>(socket: &Path, taker: &T) -> Result<Plugin, String> {
    let mut client = RegistrationClient::new(connect(socket));
    let info = tokio::time::timeout(CALL, client.get_info(InfoRequest {})).await;
    let info = info.map_err(|_| "it does not say what it is".to_owned())?.map_err(|e| e.message().to_owned())?;
    let plugin = plugin_of(info.into_inner(), socket);
    let taken = taker.came(plugin.clone()).await;
    let status =
        RegistrationStatus { plugin_registered: taken.is_ok(), error: taken.clone().err().unwrap_or_default() };
    let told = tokio::time::timeout(CALL, client.notify_registration_status(status)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::debug!(plugin = plugin.name, "the plugin was not told what became of it");
    }
    taken.map(|()| plugin)
}

fn plugin_of(info: PluginInfo, socket: &Path) -> Plugin {
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(info.endpoint) };
    Plugin {
        kind: info.r#type,
        name: info.name,
        versions: info.supported_versions,
        endpoint,
        found_at: socket.to_owned(),
    }
}
