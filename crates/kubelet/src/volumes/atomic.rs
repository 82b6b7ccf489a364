//! Files that change together: a new directory is filled and a link is turned to it, as upstream's atomic writer does, so
//! that a reader sees either all old files or all new ones.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use super::File;

const DATA: &str = "..data";

/// Makes `dir` show exactly `files`. Nothing is written when it does already.
pub(super) fn write(dir: &Path, files: &[File], group: Option<u32>) -> io::Result<()> {
    for file in files {
        check_path(&file.path)?;
    }
    if shows(dir, files) {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    let fresh_dir = dir.join(&fresh);
    std::fs::create_dir(&fresh_dir)?;
    std::fs::set_permissions(&fresh_dir, std::fs::Permissions::from_mode(0o755))?;
    for file in files {
        let path = fresh_dir.join(&file.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, &file.data)?;
        let mode = if group.is_some() { file.mode | ((file.mode & 0o400) >> 3) } else { file.mode };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        if file.user.is_some() || group.is_some() {
            std::os::unix::fs::chown(&path, file.user, group)?;
        }
    }
    let old = std::fs::read_link(dir.join(DATA)).ok();
    let link = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&link); // left by a run that was killed
    std::os::unix::fs::symlink(&fresh, &link)?;
    std::fs::rename(&link, dir.join(DATA))?;

    let wanted: BTreeSet<String> = files.iter().filter_map(|f| first_part(&f.path)).collect();
    for name in &wanted {
        let visible = dir.join(name);
        if std::fs::symlink_metadata(&visible).is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(name), visible)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            std::fs::remove_file(dir.join(&name))?;
        }
    }
    if let Some(old) = old.filter(|o| o.as_os_str() != fresh.as_str()) {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

/// Relative, and nowhere `..`: a path from the API must not lead out of its volume.
fn check_path(path: &str) -> io::Result<()> {
    let good = !path.is_empty()
        && Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(n) if !n.to_string_lossy().starts_with("..")));
    if good {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no path within a volume")))
    }
}

fn first_part(path: &str) -> Option<String> {
    Path::new(path).components().next().map(|c| c.as_os_str().to_string_lossy().into_owned())
}

fn shows(dir: &Path, files: &[File]) -> bool {
    let data = dir.join(DATA);
    let same = |f: &File| std::fs::read(data.join(&f.path)).is_ok_and(|now| now == f.data);
    let Ok(count) = count_files(&data) else { return false };
    count == files.len() && files.iter().all(same)
}

fn count_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, data: &str) -> File {
        File { path: path.into(), data: data.into(), mode: 0o640, user: None }
    }

    #[test]
    fn all_files_change_together() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
        write(dir.path(), &[file("a", "1"), file("deep/b", "1")], None).unwrap();
        assert_eq!((read("a").unwrap().as_str(), read("deep/b").unwrap().as_str()), ("1", "1"));
        let first = std::fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &[file("a", "1"), file("deep/b", "1")], None).unwrap();
        assert_eq!(std::fs::read_link(dir.path().join(DATA)).unwrap(), first);
        write(dir.path(), &[file("a", "2")], None).unwrap();
        assert_eq!(read("a").unwrap(), "2");
        assert!(read("deep/b").is_err());
        assert!(!dir.path().join(first).exists());
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o640);
    }

    #[test]
    fn no_path_leads_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "..data", ""] {
            assert!(write(dir.path(), &[file(path, "x")], None).is_err(), "{path}");
        }
    }
}
