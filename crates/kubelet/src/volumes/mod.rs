//! The volumes of a pod as directories on the host.
//!
//! Below `<root-dir>/pods/<uid>/volumes/`, under upstream's plugin names, so that another kubelet finds them.

mod atomic;
mod claims;
mod files;
mod pem;
mod pod_certificates;
mod trust_bundles;

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use nix::mount::{MntFlags, MsFlags};

use crate::context::Context;
use crate::env::Sources;
use crate::materials::Materials;
pub(crate) use files::File;
pub(crate) use pod_certificates::PodCertificates;

/// What stands behind a volume, as the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file or directory on the host.
    Path(PathBuf),
    /// A block device, or a link to one.
    Device(PathBuf),
    /// An image, by the id that a pull has found; the runtime mounts it itself.
    Image(String),
}

/// By the volume's name.
pub(crate) type Volumes = BTreeMap<String, Source>;

/// A volume that cannot be set up; the text is that of the FailedMount event.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {why}")]
pub(crate) struct MountError {
    pub volume: String,
    pub why: String,
}

/// What the setting up of volumes needs to know.
pub(crate) struct Setup<'a> {
    pub context: &'a Context,
    pub pod: &'a Pod,
    pub materials: &'a Materials,
    pub sources: &'a Sources<'a>,
}

pub(crate) fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

impl Setup<'_> {
    /// Sets up every volume that is on the host, or brings those that change up to date.
    pub(crate) async fn all(&self) -> Result<Volumes, MountError> {
        let mut volumes = Volumes::new();
        let all = self.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        for volume in all.filter(|v| v.image.is_none()) {
            let source = self.one(volume).await.map_err(|why| MountError { volume: volume.name.clone(), why })?;
            volumes.insert(volume.name.clone(), source);
        }
        Ok(volumes)
    }

    fn dir(&self, plugin: &str, volume: &Volume) -> PathBuf {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        pod_dir(&self.context.root, uid).join("volumes").join(plugin).join(&volume.name)
    }

    async fn one(&self, volume: &Volume) -> Result<Source, String> {
        if let Some(claim) = &volume.persistent_volume_claim {
            let read_only = claim.read_only == Some(true);
            return claims::set_up(self, &claim.claim_name, volume.name.as_str(), read_only).await;
        }
        if volume.ephemeral.is_some() {
            let pod = self.pod.metadata.name.as_deref().unwrap_or_default();
            return claims::set_up(self, &format!("{pod}-{}", volume.name), volume.name.as_str(), false).await;
        }
        self.plain(volume).await.map(Source::Path)
    }

    /// A volume that the pod itself describes: always files.
    async fn plain(&self, volume: &Volume) -> Result<PathBuf, String> {
        if let Some(csi) = &volume.csi {
            let done = crate::csi::set_up_inline(self.context, self.pod, &volume.name, csi).await;
            return done.map_err(|e| e.to_string());
        }
        if let Some(host) = &volume.host_path {
            return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
        }
        if let Some(nfs) = &volume.nfs {
            let read_only = nfs.read_only == Some(true);
            return claims::mount_nfs(self, &nfs.server, &nfs.path, read_only, &None, &volume.name).await;
        }
        if let Some(empty) = &volume.empty_dir {
            let dir = self.dir("kubernetes.io~empty-dir", volume);
            if let Some(page) = huge_pages(self.pod, empty.medium.as_deref().unwrap_or_default())? {
                make_dir(&dir, 0o777).map_err(|e| e.to_string())?;
                mount_huge_pages(&dir, &page, self.fs_group()).map_err(|e| e.to_string())?;
                return Ok(dir);
            }
            let in_memory = empty.medium.as_deref() == Some("Memory");
            let size = empty.size_limit.as_ref().and_then(crate::cgroups::whole).filter(|s| *s > 0);
            let size = size.or_else(|| in_memory.then(|| self.memory_of_pod()));
            return self.empty_dir(dir, in_memory, size).map_err(|e| e.to_string());
        }
        let (plugin, files) = if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(0o644);
            let optional = source.optional == Some(true);
            ("kubernetes.io~configmap", files::config_map(self, &source.name, source.items.as_deref(), optional, mode)?)
        } else if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(0o644);
            let optional = source.optional == Some(true);
            let name = source.secret_name.as_deref().unwrap_or_default();
            ("kubernetes.io~secret", files::secret(self, name, source.items.as_deref(), optional, mode)?)
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(0o644);
            ("kubernetes.io~downward-api", files::downward(self, source.items.as_deref().unwrap_or_default(), mode)?)
        } else if let Some(source) = &volume.projected {
            ("kubernetes.io~projected", files::projected(self, &volume.name, source).await?)
        } else {
            return Err("this kind of volume is not supported on this node".to_owned());
        };
        let dir = self.dir(plugin, volume);
        let in_memory = matches!(plugin, "kubernetes.io~secret" | "kubernetes.io~projected");
        make_dir(&dir, 0o755).map_err(|e| e.to_string())?;
        if in_memory {
            mount_tmpfs(&dir, None, 0o755).map_err(|e| e.to_string())?;
        }
        atomic::write(&dir, &files, self.fs_group()).map_err(|e| e.to_string())?;
        Ok(dir)
    }

    /// A volume in memory without a limit of its own may take what the pod may take.
    fn memory_of_pod(&self) -> i64 {
        let limits = crate::resources::limits(self.pod);
        limits.get("memory").map_or(self.sources.node_memory, |milli| (milli / 1000).min(self.sources.node_memory))
    }

    fn fs_group(&self) -> Option<u32> {
        fs_group_of(self.pod)
    }

    fn empty_dir(&self, dir: PathBuf, in_memory: bool, size: Option<i64>) -> std::io::Result<PathBuf> {
        let fresh = !dir.exists();
        make_dir(&dir, 0o777)?;
        if in_memory {
            mount_tmpfs(&dir, size, 0o777)?;
        }
        if fresh || in_memory {
            let mode = if self.fs_group().is_some() { 0o2777 } else { 0o777 };
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))?;
            if let Some(group) = self.fs_group() {
                std::os::unix::fs::chown(&dir, None, Some(group))?;
            }
        }
        Ok(dir)
    }
}

pub(crate) fn fs_group_of(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Gives a volume to the pod's group, all of it, unless its root says that this was done before.
pub(crate) async fn own(pod: &Pod, dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Some(group) = fs_group_of(pod) else { return Ok(()) };
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let on_mismatch = context.and_then(|c| c.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
    let root = std::fs::symlink_metadata(dir)?;
    if on_mismatch && root.gid() == group && root.mode() & 0o2060 == 0o2060 {
        return Ok(());
    }
    // However much is in it: others go on meanwhile.
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || give_to(&dir, group)).await?
}

fn give_to(path: &Path, group: u32) -> std::io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    let more = if found.is_dir() { 0o2070 } else { 0o060 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(found.permissions().mode() | more))?;
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_to(&entry?.path(), group)?;
        }
    }
    Ok(())
}

fn make_dir(dir: &Path, mode: u32) -> std::io::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn mount_tmpfs(dir: &Path, size: Option<i64>, mode: u32) -> std::io::Result<()> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let size = size.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = format!("mode={mode:o}{size}");
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// The size of the pages that a medium is made of, as a mount option names it; none: it is of no huge pages.
fn huge_pages(pod: &Pod, medium: &str) -> Result<Option<String>, String> {
    let Some(size) = medium.strip_prefix("HugePages") else { return Ok(None) };
    let asked = crate::resources::requests(pod);
    let asked: Vec<&str> = asked.keys().filter_map(|name| name.strip_prefix("hugepages-")).collect();
    let size = match (size.strip_prefix('-'), asked.as_slice()) {
        (_, []) => {
            return Err("hugePages storage requested, but there is no resource request for huge pages".to_owned());
        }
        (Some(size), sizes) if sizes.contains(&size) => size,
        (Some(size), _) => return Err(format!("medium {medium} is of no size that the pod asks for: {size}")),
        (None, [size]) => size,
        (None, _) => {
            return Err("medium HugePages can't be used if container requests multiple huge page sizes".to_owned());
        }
    };
    Ok(Some(size.trim_end_matches('i').to_owned()))
}

fn mount_huge_pages(dir: &Path, page: &str, group: Option<u32>) -> std::io::Result<()> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let mode = group.map_or("mode=0777".to_owned(), |group| format!("mode=2777,gid={group}"));
    let options = format!("pagesize={page},{mode}");
    nix::mount::mount(Some("nodev"), dir, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// Whether something is mounted exactly there; a bind mount may be of the same device.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
}

/// A directory on another device than its parent is a mount point; we mount nothing but file systems of their own here.
fn is_mount_point(dir: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = dir.parent().unwrap_or(dir);
    Ok(std::fs::symlink_metadata(dir)?.dev() != std::fs::symlink_metadata(parent)?.dev())
}

/// hostPath with its type check, in upstream's words.
fn host_path(path: &str, kind: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt;
    let path_buf = PathBuf::from(path);
    let found = std::fs::metadata(&path_buf).ok();
    let make = |done: std::io::Result<()>| done.map_err(|e| format!("cannot make {path}: {e}"));
    let check = |holds: bool, words: &str| {
        if holds { Ok(()) } else { Err(format!("hostPath type check failed: {path} is not {words}")) }
    };
    let is = |test: fn(&std::fs::Metadata) -> bool| found.as_ref().is_some_and(test);
    match kind {
        "" => {}
        "DirectoryOrCreate" if found.is_none() => make(std::fs::create_dir_all(&path_buf))?,
        "Directory" | "DirectoryOrCreate" => check(is(std::fs::Metadata::is_dir), "a directory")?,
        "FileOrCreate" if found.is_none() => make(std::fs::File::create(&path_buf).map(drop))?,
        "File" | "FileOrCreate" => check(is(std::fs::Metadata::is_file), "a file")?,
        "Socket" => check(is(|m| m.file_type().is_socket()), "a socket")?,
        "CharDevice" => check(is(|m| m.file_type().is_char_device()), "a character device")?,
        "BlockDevice" => check(is(|m| m.file_type().is_block_device()), "a block device")?,
        other => return Err(format!("unknown hostPath type {other:?}")),
    }
    Ok(path_buf)
}

/// Unmounts and removes the volumes of a pod. What cannot be unmounted stays, and nothing below it is touched.
pub(crate) async fn tear_down(context: &Context, pod: &Pod) -> std::io::Result<()> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = pod_dir(&context.root, uid);
    if uid.is_empty() || !dir.exists() {
        return Ok(());
    }
    unmount_below(&dir.join("volume-subpaths"))?;
    crate::csi::tear_down(context, &dir).await.map_err(std::io::Error::other)?;
    unmount_below(&dir)?;
    match std::fs::remove_dir_all(dir.join("volumes")) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn unmount_below(dir: &Path) -> std::io::Result<()> {
    let prefix = format!("{}/", dir.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut below: Vec<&str> =
        mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|m| m.starts_with(&prefix)).collect();
    below.sort_unstable();
    for mount in below.iter().rev() {
        nix::mount::umount2(*mount, MntFlags::UMOUNT_NOFOLLOW)?;
    }
    Ok(())
}

/// Removes what is left of a pod that is gone, after its volumes.
pub(crate) fn forget(root: &Path, uid: &str) -> std::io::Result<()> {
    let dir = pod_dir(root, uid);
    if uid.is_empty() || !dir.exists() {
        return Ok(());
    }
    unmount_below(&dir)?;
    std::fs::remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked_against_their_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        assert!(host_path(&at("new"), "DirectoryOrCreate").unwrap().is_dir());
        assert!(host_path(&at("file"), "FileOrCreate").unwrap().is_file());
        assert!(host_path(&at("file"), "Directory").unwrap_err().contains("is not a directory"));
        assert!(host_path(&at("none"), "File").is_err());
        assert!(host_path(&at("none"), "").is_ok());
    }

    #[test]
    fn a_medium_of_huge_pages_is_of_a_size_that_the_pod_asks_for() {
        let check = |medium: &str, asked: serde_json::Value, want: Result<Option<&str>, &str>| {
            let pod = serde_json::json!({"spec": {"containers": [{"name": "c", "resources": {"limits": asked}}]}});
            let got = huge_pages(&serde_json::from_value(pod).unwrap(), medium);
            match (got, want) {
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => assert_eq!(got, want.map(|size| size.map(str::to_owned)).map_err(str::to_owned)),
            }
        };
        let (one, both) = (
            || serde_json::json!({"hugepages-2Mi": "4Mi"}),
            || serde_json::json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}),
        );
        check("", one(), Ok(None));
        check("Memory", one(), Ok(None));
        check("HugePages", one(), Ok(Some("2M")));
        check("HugePages-1Gi", both(), Ok(Some("1G")));
        check("HugePages", both(), Err("multiple huge page sizes"));
        check("HugePages-1Gi", one(), Err("of no size"));
        check("HugePages", serde_json::json!({}), Err("no resource request"));
    }
}
