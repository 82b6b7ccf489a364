//! Events in a file, a line each; a file that has grown is put aside.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use super::Backend;
use super::queue::Queue;
use crate::config::{AuditLogConfig, AuditMode};

/// How many events may wait to be written in the mode `batch`.
const WAITING: usize = 10_000;

pub(super) enum Log {
    /// Written before the request goes on.
    Direct(Mutex<Target>),
    Queued(Queue),
}

pub(super) enum Target {
    Out(std::io::Stdout),
    File(Rotated),
}

/// A file with the limits of it and of those that are put aside.
pub(super) struct Rotated {
    path: PathBuf,
    file: File,
    size: u64,
    /// In bytes.
    max_size: u64,
    /// Zero: no limit.
    max_backups: usize,
    max_age: Duration,
}

impl Log {
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn open(config: &AuditLogConfig) -> Result<Self, String> {
        let mut target = if config.path == Path::new("-") {
            Target::Out(std::io::stdout())
        } else {
            Target::File(Rotated::open(config).map_err(|e| format!("cannot open {}: {e}", config.path.display()))?)
        };
        if config.mode != AuditMode::Batch {
            return Ok(Log::Direct(Mutex::new(target)));
        }
        let (queue, mut waiting) = Queue::new(WAITING);
        // A thread of its own: disks may take their time.
        std::thread::spawn(move || {
            while let Some(event) = waiting.events.blocking_recv() {
                target.write(&event);
            }
        });
        Ok(Log::Queued(queue))
    }
}

#[async_trait]
impl Backend for Log {
    async fn take(&self, event: &Bytes) -> bool {
        match self {
            Log::Direct(target) => target.lock().write(event),
            Log::Queued(queue) => queue.push(event),
        }
    }

    async fn close(&self) {
        match self {
            Log::Direct(_) => {}
            Log::Queued(queue) => queue.close().await,
        }
    }
}

impl Target {
    fn write(&mut self, event: &[u8]) -> bool {
        let line = [event, b"\n"].concat();
        let written = match self {
            Target::Out(out) => out.write_all(&line).and_then(|()| out.flush()),
            Target::File(file) => file.write(&line),
        };
        if let Err(error) = &written {
            tracing::error!(%error, "an audit event cannot be written");
        }
        written.is_ok()
    }
}

impl Rotated {
    fn open(config: &AuditLogConfig) -> std::io::Result<Self> {
        if let Some(dir) = config.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = open(&config.path)?;
        Ok(Rotated {
            path: config.path.clone(),
            size: file.metadata()?.len(),
            file,
            max_size: config.max_size << 20,
            max_backups: config.max_backups,
            max_age: config.max_age,
        })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.size > 0
            && self.size + line.len() as u64 > self.max_size
            && let Err(error) = self.rotate()
        {
            tracing::error!(%error, "the audit log cannot be put aside");
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        match std::fs::rename(&self.path, backup_of(&self.path, Timestamp::now())) {
            // Somebody else has put it aside.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = open(&self.path)?;
        self.size = 0;
        self.forget_old()
    }

    /// Deletes what was put aside too long ago, or before too many others.
    fn forget_old(&self) -> std::io::Result<()> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut backups: Vec<(Timestamp, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if let Some(time) = put_aside_at(&self.path, &path) {
                backups.push((time, path));
            }
        }
        backups.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let now = Timestamp::now();
        for (i, (time, path)) in backups.iter().enumerate() {
            let many = self.max_backups > 0 && i >= self.max_backups;
            let age = Duration::try_from(now.duration_since(*time)).unwrap_or_default();
            let old = !self.max_age.is_zero() && age > self.max_age;
            if many || old {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `audit`, `.log` of `audit.log`.
fn parts_of(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

/// `audit-2026-11-27T18-45-48.123.log`
fn backup_of(path: &Path, now: Timestamp) -> PathBuf {
    let (stem, extension) = parts_of(path);
    let time = now.strftime("%Y-%m-%dT%H-%M-%S.%3f");
    path.with_file_name(format!("{stem}-{time}{extension}"))
}

/// When a file was put aside; `None`: it is none of the log's.
fn put_aside_at(path: &Path, file: &Path) -> Option<Timestamp> {
    let (stem, extension) = parts_of(path);
    let name = file.file_name()?.to_str()?;
    let time = name.strip_prefix(&stem)?.strip_prefix('-')?.strip_suffix(&extension)?;
    let time = DateTime::strptime("%Y-%m-%dT%H-%M-%S.%f", time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (backup_of(path, time).file_name()? == name).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(dir: &Path) -> Rotated {
        let config = AuditLogConfig {
            path: dir.join("audit.log"),
            mode: AuditMode::Blocking,
            max_age: Duration::ZERO,
            max_backups: 2,
            max_size: 1,
        };
        Rotated::open(&config).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_has_grown_is_put_aside_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let others = ["audit-2026.log", "audit-of-others.log", "audit-2026-11-27T18-45-48.123.log.gz"];
        for name in others {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let mut file = rotated(dir.path());
        let line = vec![b'x'; 600 << 10];
        for _ in 0..6 {
            file.write(&line).unwrap();
            // Backups are told apart by their milliseconds.
            let before = Timestamp::now().as_millisecond();
            while Timestamp::now().as_millisecond() == before {}
        }
        let names = names(dir.path());
        assert_eq!(names.len(), others.len() + 3, "{names:?}");
        assert!(others.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
        assert!(names.iter().any(|name| name == "audit.log"), "{names:?}");
        let time = "2026-11-27T18:45:48.123456Z".parse().unwrap();
        let backup = backup_of(&file.path, time);
        assert_eq!(backup.file_name().unwrap(), "audit-2026-11-27T18-45-48.123.log");
        assert_eq!(put_aside_at(&file.path, &backup), Some("2026-11-27T18:45:48.123Z".parse().unwrap()));
    }

    #[test]
    fn an_event_is_not_lost_with_what_was_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = rotated(dir.path());
        file.write(&vec![b'x'; 1 << 20]).unwrap();
        std::fs::remove_file(&file.path).unwrap();
        // A backup that cannot be deleted: it is a directory.
        for day in 1..=3 {
            std::fs::create_dir(dir.path().join(format!("audit-2026-11-0{day}T00-00-00.000.log"))).unwrap();
        }
        file.write(b"event").unwrap();
        assert_eq!(std::fs::read(&file.path).unwrap(), b"event");
    }
}
