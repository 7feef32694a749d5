//! Memory as a folder (`emptyDir` with `medium: Memory`): mounted on the host, so that all
//! containers of the pod share it and it survives their restarts.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount as mount_at, unmount as unmount_at};

/// `size` in bytes; none is half of the host's memory, the kernel's default.
pub(super) fn mount(dir: &Path, size: Option<i64>) -> io::Result<()> {
    if is_mounted(dir)? {
        return Ok(());
    }
    let options = size.filter(|size| *size > 0).map(|size| format!("size={size}"));
    let options = CString::new(options.unwrap_or_default())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", dir, "tmpfs", flags, options.as_c_str())?;
    Ok(())
}

pub(super) fn is_mounted(dir: &Path) -> io::Result<bool> {
    let (Some(parent), own) = (dir.parent(), fs::symlink_metadata(dir)?) else {
        return Ok(false);
    };
    Ok(own.is_dir() && own.dev() != fs::metadata(parent)?.dev())
}

pub(super) fn unmount(dir: &Path) -> io::Result<()> {
    Ok(unmount_at(dir, UnmountFlags::DETACH)?)
}
