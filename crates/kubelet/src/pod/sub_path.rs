//! subPath: a path within a volume, opened beneath the volume's directory so that no link inside leads out of it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Opens `sub_path` beneath `volume`, making directories that are missing, and gives a path to exactly what was opened.
/// The path is good as long as the descriptor is open: the runtime must have mounted it by then.
pub(super) fn open(volume: &Path, sub_path: &str) -> io::Result<(OwnedFd, PathBuf)> {
    let parts: Vec<&std::ffi::OsStr> = Path::new(sub_path)
        .components()
        .map(|c| match c {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{sub_path:?} is no path within a volume"))),
        })
        .collect::<io::Result<_>>()?;
    if volume.is_file() && parts.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file has no subPath"));
    }
    let root: OwnedFd = std::fs::File::open(volume)?.into();
    if let Ok(fd) = open_beneath(&root, Path::new(sub_path)) {
        return Ok(named(fd));
    }
    // Make what is missing, one directory at a time, each beneath the one before.
    let mut at = root;
    for part in parts {
        if open_beneath(&at, Path::new(part)).is_err() {
            nix::sys::stat::mkdirat(&at, part, nix::sys::stat::Mode::from_bits_truncate(0o750))?;
        }
        at = open_beneath(&at, Path::new(part))?;
    }
    Ok(named(at))
}

fn named(fd: OwnedFd) -> (OwnedFd, PathBuf) {
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    (fd, path)
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
        let (_fd, path) = open(&volume, "link/made").unwrap();
        assert!(std::fs::metadata(path).unwrap().is_dir());
        assert!(volume.join("inside/made").is_dir());
    }
}
