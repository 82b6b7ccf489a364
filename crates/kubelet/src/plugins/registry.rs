//! The directory in which plugins put a socket to be found: who comes is asked what it is, who goes is forgotten. A plugin
//! that has put another socket in the place of its first one has gone and come.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
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

/// What tells a socket from another one that had its name; a change of its rights does not count.
type Stamp = (u64, i64, i64);

struct Found {
    stamp: Stamp,
    state: State,
}

enum State {
    /// It has yet to say what it is, or the taker what becomes of it.
    Asked,
    Taken(Plugin),
    Refused,
}

/// Watches `dir` until `stop`.
pub(crate) async fn watch<T: Takes>(dir: PathBuf, taker: T, stop: CancellationToken) {
    let watching = std::fs::create_dir_all(&dir).and_then(|()| changes_of(&dir));
    match watching {
        Ok(changes) => drop(stop.run_until_cancelled(follow(&dir, changes, &taker)).await),
        Err(error) => tracing::error!(%error, dir = %dir.display(), "plugins cannot be looked for"),
    }
}

async fn follow<T: Takes>(dir: &Path, changes: Changes, taker: &T) {
    let mut known: BTreeMap<PathBuf, Found> = BTreeMap::new();
    // One at a time for each path, and side by side otherwise: a plugin that hangs holds up nobody else.
    let mut asked = FuturesUnordered::new();
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let present = sockets_below(dir);
        let has_ended = |path: &PathBuf, found: &mut Found| {
            !matches!(found.state, State::Asked) && present.get(path) != Some(&found.stamp)
        };
        let ended: Vec<(PathBuf, Found)> = known.extract_if(.., has_ended).collect();
        for (_, found) in ended {
            if let State::Taken(plugin) = found.state {
                tracing::info!(plugin = plugin.name, kind = plugin.kind, "a plugin has gone");
                taker.gone(plugin).await;
            }
        }
        for (path, stamp) in present {
            known.entry(path).or_insert_with_key(|path| {
                let path = path.clone();
                asked.push(async move { (introduce(&path, taker).await, path) });
                Found { stamp, state: State::Asked }
            });
        }
        let changed = async {
            let Ok(mut ready) = changes.ready.readable().await else { return };
            // What happened is seen in the directory itself.
            let _ = changes.inotify.read_events();
            ready.clear_ready();
        };
        tokio::select! {
            () = changed => {}
            _ = retry.tick() => known.retain(|_, found| !matches!(found.state, State::Refused)),
            Some((answer, path)) = asked.next() => {
                let state = match answer {
                    Ok(plugin) => {
                        tracing::info!(plugin = plugin.name, kind = plugin.kind, "a plugin has come");
                        State::Taken(plugin)
                    }
                    Err(error) => {
                        tracing::warn!(error, socket = %path.display(), "a plugin could not be registered");
                        State::Refused
                    }
                };
                if let Some(found) = known.get_mut(&path) {
                    found.state = state;
                }
            }
        }
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

fn sockets_below(dir: &Path) -> BTreeMap<PathBuf, Stamp> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let shown = entries.filter(|e| !e.file_name().to_string_lossy().starts_with('.'));
    let sockets = shown.filter_map(|e| Some((e.path(), e.metadata().ok().filter(|m| m.file_type().is_socket())?)));
    sockets.map(|(path, m)| (path, (m.ino(), m.mtime(), m.mtime_nsec()))).collect()
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::UnixListener;
    use tokio::sync::watch::Sender;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::super::registration::RegistrationStatusResponse;
    use super::super::registration::registration_server::{Registration, RegistrationServer};
    use super::*;

    /// A plugin that says its name and nothing else.
    struct Named(&'static str);

    #[tonic::async_trait]
    impl Registration for Named {
        async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
            Ok(Response::new(PluginInfo { name: self.0.to_owned(), ..PluginInfo::default() }))
        }

        async fn notify_registration_status(
            &self,
            _: Request<RegistrationStatus>,
        ) -> Result<Response<RegistrationStatusResponse>, Status> {
            Ok(Response::new(RegistrationStatusResponse {}))
        }
    }

    /// Puts a plugin's socket into the directory, in the place of any that has its name.
    fn offer(dir: &Path, name: &'static str) {
        let fresh = dir.join(".fresh");
        let listener = UnixListener::bind(&fresh).unwrap();
        std::fs::rename(fresh, dir.join(format!("{name}.sock"))).unwrap();
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Named(name)));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    /// Notes who came and who went; never done with a plugin whose name is `hangs`.
    #[derive(Default)]
    struct Notes(Sender<Vec<String>>);

    impl Takes for Arc<Notes> {
        async fn came(&self, plugin: Plugin) -> Result<(), String> {
            self.0.send_modify(|notes| notes.push(format!("{} came", plugin.name)));
            if plugin.name == "hangs" {
                std::future::pending::<()>().await;
            }
            Ok(())
        }

        async fn gone(&self, plugin: Plugin) {
            self.0.send_modify(|notes| notes.push(format!("{} gone", plugin.name)));
        }
    }

    async fn until(notes: &Notes, want: &[&str]) {
        notes.0.subscribe().wait_for(|notes| notes == want).await.unwrap();
    }

    #[tokio::test]
    async fn a_plugin_that_starts_again_has_gone_and_come() {
        let (dir, notes, stop) = (tempfile::tempdir().unwrap(), Arc::<Notes>::default(), CancellationToken::new());
        let watching = tokio::spawn(watch(dir.path().to_owned(), Arc::clone(&notes), stop.clone()));
        offer(dir.path(), "a");
        until(&notes, &["a came"]).await;
        offer(dir.path(), "a");
        until(&notes, &["a came", "a gone", "a came"]).await;
        std::fs::remove_file(dir.path().join("a.sock")).unwrap();
        until(&notes, &["a came", "a gone", "a came", "a gone"]).await;
        stop.cancel();
        watching.await.unwrap();
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_holds_up_neither_others_nor_the_end() {
        let (dir, notes, stop) = (tempfile::tempdir().unwrap(), Arc::<Notes>::default(), CancellationToken::new());
        let watching = tokio::spawn(watch(dir.path().to_owned(), Arc::clone(&notes), stop.clone()));
        offer(dir.path(), "hangs");
        until(&notes, &["hangs came"]).await;
        offer(dir.path(), "other");
        until(&notes, &["hangs came", "other came"]).await;
        stop.cancel();
        watching.await.unwrap();
    }
}
