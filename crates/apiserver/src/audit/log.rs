//! Events in a file, a line each; a file that has grown is put aside.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::Backend;
use crate::config::{AuditLogConfig, AuditMode};

/// How many events may wait to be written in the mode `batch`.
const WAITING: usize = 10_000;

pub(super) enum Log {
    /// Written before the request goes on.
    Direct(Mutex<Target>),
    Queued(mpsc::Sender<Bytes>),
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
        let (sender, mut events) = mpsc::channel::<Bytes>(WAITING);
        // A thread of its own: disks may take their time.
        std::thread::spawn(move || {
            while let Some(event) = events.blocking_recv() {
                target.write(&event);
            }
        });
        Ok(Log::Queued(sender))
    }
}

#[async_trait]
impl Backend for Log {
    async fn take(&self, event: &Bytes) {
        match self {
            Log::Direct(target) => target.lock().write(event),
            Log::Queued(sender) => {
                if sender.try_send(event.clone()).is_err() {
                    tracing::error!("an audit event was dropped: the log does not keep up");
                }
            }
        }
    }
}

impl Target {
    fn write(&mut self, event: &[u8]) {
        let line = [event, b"\n"].concat();
        let written = match self {
            Target::Out(out) => out.write_all(&line).and_then(|()| out.flush()),
            Target::File(file) => file.write(&line),
        };
        if let Err(error) = written {
            tracing::error!(%error, "an audit event cannot be written");
        }
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
        if self.size > 0 && self.size + line.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        std::fs::rename(&self.path, backup_of(&self.path, Timestamp::now()))?;
        self.file = open(&self.path)?;
        self.size = 0;
        self.forget_old()
    }

    /// Deletes what was put aside too long ago, or before too many others.
    fn forget_old(&self) -> std::io::Result<()> {
        let (stem, extension) = parts_of(&self.path);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut backups: Vec<(String, PathBuf, SystemTime)> = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{stem}-")) && name.ends_with(&extension) {
                backups.push((name, entry.path(), entry.metadata()?.modified()?));
            }
        }
        // The time is in the name: the newest come first.
        backups.sort_by(|a, b| b.0.cmp(&a.0));
        let now = SystemTime::now();
        for (i, (_, path, modified)) in backups.iter().enumerate() {
            let many = self.max_backups > 0 && i >= self.max_backups;
            let old = !self.max_age.is_zero() && now.duration_since(*modified).is_ok_and(|age| age > self.max_age);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_grown_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = AuditLogConfig {
            path: path.clone(),
            mode: AuditMode::Blocking,
            max_age: Duration::ZERO,
            max_backups: 2,
            max_size: 1,
        };
        let mut file = Rotated::open(&config).unwrap();
        let line = vec![b'x'; 600 << 10];
        for _ in 0..6 {
            file.write(&line).unwrap();
            // Backups are told apart by their milliseconds.
            let before = Timestamp::now().as_millisecond();
            while Timestamp::now().as_millisecond() == before {}
        }
        let mut names: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[2], "audit.log");
        let time = "2026-11-27T18:45:48.123456Z".parse().unwrap();
        assert_eq!(backup_of(&path, time).file_name().unwrap(), "audit-2026-11-27T18-45-48.123.log");
    }
}
