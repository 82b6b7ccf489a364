//! subPath: a path within a volume, opened beneath the volume's directory so that no link inside leads out of it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

/// Mounts `sub_path` of a volume at `target`, so that the runtime finds exactly what was opened here, whatever becomes of
/// the names in the volume meanwhile.
pub(super) fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let opened = open(volume, sub_path)?;
    let source = proc_path(&opened);
    release(target)?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::fs::metadata(&source)?.is_dir() {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    nix::mount::mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Opens a file beneath a volume for reading, once it is known to be one: a pipe would never end, a device might act.
pub(crate) fn open_file(volume: &Path, path: &str) -> io::Result<std::fs::File> {
    let root: OwnedFd = std::fs::File::open(volume)?.into();
    let found = open_beneath(&root, Path::new(path))?;
    let source = proc_path(&found);
    if !std::fs::metadata(&source)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no file")));
    }
    std::fs::File::open(source)
}

/// What is in a directory beneath another one: names, in order, and whether each is itself a directory. Links are none.
pub(crate) fn entries(dir: &Path, path: &Path) -> io::Result<Vec<(String, bool)>> {
    let found = open_beneath(&std::fs::File::open(dir)?.into(), path)?;
    // Through the descriptor: whatever the names lead to meanwhile, this is what was found beneath.
    let mut entries = std::fs::read_dir(proc_path(&found))?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()))
        })
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// Takes away what an earlier run of the container had mounted there; containers that run keep their own.
fn release(target: &Path) -> io::Result<()> {
    loop {
        match nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()), // no mount point (any more)
            Err(error) => return Err(error.into()),
        }
    }
}

/// Opens `sub_path` beneath `volume`. Directories that are missing are made with the rights of the volume's own.
fn open(volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let parts: Vec<&std::ffi::OsStr> = Path::new(sub_path)
        .components()
        .map(|c| match c {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{sub_path:?} is no path within a volume"))),
        })
        .collect::<io::Result<_>>()?;
    let root: OwnedFd = std::fs::File::open(volume)?.into();
    if let Ok(fd) = open_beneath(&root, Path::new(sub_path)) {
        return Ok(fd);
    }
    let mode = std::fs::metadata(volume)?.permissions().mode() & 0o777;
    // Make what is missing, one directory at a time, each beneath the one before.
    let mut at = root;
    for part in parts {
        let made = open_beneath(&at, Path::new(part)).is_err();
        if made {
            nix::sys::stat::mkdirat(&at, part, nix::sys::stat::Mode::from_bits_truncate(mode))?;
        }
        at = open_beneath(&at, Path::new(part))?;
        if made {
            std::fs::set_permissions(proc_path(&at), std::fs::Permissions::from_mode(mode))?; // whatever the umask is
        }
    }
    Ok(at)
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// `openat2` with `RESOLVE_BENEATH` and without following magic links: symbolic links work as long as they stay inside.
fn open_beneath(dir: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut how: libc::open_how = zeroed_how();
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    #[expect(unsafe_code, reason = "openat2 has no wrapper in the libraries that we use")]
    // SAFETY: `path` is a C string and `how` a whole open_how of the size that is passed; both live through the call. A
    // descriptor that the kernel returns is open and belongs to nobody else.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            std::ptr::from_ref(&how),
            size_of::<libc::open_how>(),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        #[expect(clippy::cast_possible_truncation, reason = "descriptors are ints")]
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

fn zeroed_how() -> libc::open_how {
    #[expect(unsafe_code, reason = "the struct has private padding and no constructor")]
    // SAFETY: all-zero is the documented empty value of open_how, whose fields are integers.
    unsafe {
        std::mem::zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("inside")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("absolute")).unwrap();
        std::os::unix::fs::symlink("inside", volume.join("link")).unwrap();
        assert!(open(&volume, "out").is_err());
        assert!(open(&volume, "absolute/passwd").is_err());
        assert!(open(&volume, "../secret").is_err());
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).unwrap();
        open(&volume, "link/made").unwrap();
        let made = std::fs::metadata(volume.join("inside/made")).unwrap();
        assert!(made.is_dir());
        assert_eq!(made.permissions().mode() & 0o777, 0o777);
    }

    #[test]
    fn a_directory_is_listed_without_a_look_at_what_its_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pods/web")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("pods/out")).unwrap();
        let listed = |path: &str| entries(dir.path(), Path::new(path)).ok();
        assert_eq!(listed("."), Some(vec![("pods".to_owned(), true)]));
        assert_eq!(listed("pods"), Some(vec![("out".to_owned(), false), ("web".to_owned(), true)]));
        assert_eq!(listed("pods/out"), None);
        assert_eq!(listed(".."), None);
    }
}
