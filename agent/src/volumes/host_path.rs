//! Paths of the host, checked as their `type` says.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

pub(super) fn check(volume: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = Path::new(&source.path);
    if !path.is_absolute() {
        let wanted = "absolute path";
        let (volume, path) = (volume.to_owned(), source.path.clone());
        return Err(VolumeError::HostPath { volume, path, wanted });
    }
    let make_dir = || {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    };
    let kind = fs::metadata(path).ok().map(|meta| meta.file_type());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    let made = VolumeError::file(volume, "make", path);
    let (holds, wanted) = match source.type_.as_deref().unwrap_or_default() {
        "" if kind.is_some() => (true, ""),
        "" | "DirectoryOrCreate" => {
            make_dir().map_err(made)?;
            (path.is_dir(), "directory")
        }
        "Directory" => (is(fs::FileType::is_dir), "directory"),
        "File" => (is(fs::FileType::is_file), "file"),
        "FileOrCreate" => {
            if kind.is_none() {
                OpenOptions::new().create(true).append(true).open(path).map_err(made)?;
            }
            (path.is_file(), "file")
        }
        "Socket" => (is(fs::FileType::is_socket), "socket"),
        "CharDevice" => (is(fs::FileType::is_char_device), "character device"),
        "BlockDevice" => (is(fs::FileType::is_block_device), "block device"),
        _ => (false, "known type"),
    };
    if holds {
        return Ok(path.to_owned());
    }
    Err(VolumeError::HostPath { volume: volume.to_owned(), path: source.path.clone(), wanted })
}
