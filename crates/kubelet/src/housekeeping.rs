//! What would grow without end: container logs and images that nobody uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_cri::v1::Image;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pod::container_config::log_dir;
use crate::runtime::Phase;
use crate::settings::{ImageGc, Logs};

const IMAGE_PERIOD: Duration = Duration::from_secs(300);

pub(crate) async fn rotate_logs(context: Arc<Context>, settings: Logs, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(settings.interval)).await.is_some() {
        let Ok(running) = context.runtime.list().await else { continue };
        for pod in context.admitted.all() {
            let Some(state) = running.get(pod.metadata.uid.as_deref().unwrap_or_default()) else { continue };
            for container in state.containers.iter().filter(|c| c.phase == Phase::Running) {
                let dir = log_dir(&context.log_root, &pod).join(&container.name);
                let log = dir.join(format!("{}.log", container.restart_count));
                let size = std::fs::symlink_metadata(&log).map_or(0, |m| m.len());
                if size <= settings.max_size {
                    continue;
                }
                if let Err(error) = set_aside(&log, settings.max_files) {
                    tracing::warn!(%error, log = %log.display(), "the log could not be rotated");
                    continue;
                }
                if let Err(error) = context.runtime.reopen_log(&container.id).await {
                    tracing::warn!(%error, log = %log.display(), "the runtime did not open the log again");
                }
            }
        }
    }
}

/// Renames a log after the time, and removes the oldest of those that were set aside before.
fn set_aside(log: &Path, keep: usize) -> std::io::Result<()> {
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let mut aside = log.as_os_str().to_owned();
    aside.push(format!(".{stamp}"));
    std::fs::rename(log, &aside)?;
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut older: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect();
    older.sort();
    // The log itself counts.
    for path in older.iter().rev().skip(keep.saturating_sub(1)) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// What is known of an image: since when it is here, and when it was last in use.
#[derive(Clone, Copy)]
struct Known {
    first: Instant,
    used: Instant,
}

pub(crate) async fn collect_images(context: Arc<Context>, settings: ImageGc, stop: CancellationToken) {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(IMAGE_PERIOD)).await.is_some() {
        let (Ok(images), Ok(used)) = (context.runtime.images().await, context.runtime.images_in_use().await) else {
            continue;
        };
        let now = Instant::now();
        known.retain(|id, _| images.iter().any(|i| i.id == *id));
        for image in &images {
            let entry = known.entry(image.id.clone()).or_insert(Known { first: now, used: now });
            let names = || image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
            if names().any(|n| used.contains(n)) {
                entry.used = now;
            }
        }
        let full = context.runtime.image_file_systems().await.unwrap_or_default();
        let disk = full.into_iter().find_map(|f| f.fs_id).and_then(|f| {
            let found = nix::sys::statvfs::statvfs(Path::new(&f.mountpoint)).ok()?;
            Some((found.blocks() * found.fragment_size(), found.blocks_available() * found.fragment_size()))
        });
        let Some((capacity, available)) = disk else { continue };
        let age = |k: &Known| (now.duration_since(k.first), now.duration_since(k.used));
        let ages: BTreeMap<String, (Duration, Duration)> = known.iter().map(|(id, k)| (id.clone(), age(k))).collect();
        for id in surplus(&settings, capacity, available, &images, &ages) {
            match context.runtime.remove_image(&id).await {
                Ok(()) => tracing::info!(image = id, "removed an image that nobody uses"),
                Err(error) => tracing::warn!(image = id, %error, "an image could not be removed"),
            }
        }
    }
}

/// The images to remove: those unused too long, and of the others, while the disk is too full, those unused longest. An
/// image that is in use now was last used no time ago.
fn surplus(
    settings: &ImageGc,
    capacity: u64,
    available: u64,
    images: &[Image],
    ages: &BTreeMap<String, (Duration, Duration)>,
) -> Vec<String> {
    let mut free: Vec<(&Image, Duration)> = images
        .iter()
        .filter(|i| !i.pinned)
        .filter_map(|i| Some((i, *ages.get(&i.id)?)))
        .filter(|(_, (here, unused))| *here >= settings.min_age && !unused.is_zero())
        .map(|(i, (_, unused))| (i, unused))
        .collect();
    free.sort_by_key(|(_, unused)| std::cmp::Reverse(*unused));
    let used = capacity.saturating_sub(available);
    let too_full = capacity > 0 && used * 100 / capacity >= settings.high;
    let mut excess = if too_full { used.saturating_sub(capacity / 100 * settings.low) } else { 0 };
    let mut go = Vec::new();
    for (image, unused) in free {
        let too_old = !settings.max_age.is_zero() && unused > settings.max_age;
        if too_old || excess > 0 {
            excess = excess.saturating_sub(image.size);
            go.push(image.id.clone());
        }
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_when_the_disk_is_full_longest_unused_first() {
        let image = |id: &str, size: u64| Image { id: id.into(), size, ..Image::default() };
        let images = [image("a", 10), image("b", 10), image("c", 10)];
        let secs = Duration::from_secs;
        let ages = BTreeMap::from([
            ("a".to_owned(), (secs(900), secs(300))),
            ("b".to_owned(), (secs(900), secs(600))),
            ("c".to_owned(), (secs(900), secs(0))),
        ]);
        let check = |available: u64, max_age: u64, want: &[&str]| {
            let settings = ImageGc { max_age: secs(max_age), ..ImageGc::default() };
            assert_eq!(surplus(&settings, 100, available, &images, &ages), want);
        };
        check(50, 0, &[]);
        check(12, 0, &["b"]);
        check(5, 0, &["b", "a"]);
        check(50, 400, &["b"]);
    }

    #[test]
    fn only_so_many_old_logs_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for stamp in ["20260101-000000", "20260102-000000", "20260103-000000"] {
            std::fs::write(dir.path().join(format!("0.log.{stamp}")), "x").unwrap();
        }
        std::fs::write(&log, "now").unwrap();
        set_aside(&log, 3).unwrap();
        let mut left: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!((left.len(), left[0].as_str()), (2, "0.log.20260103-000000"));
    }
}
