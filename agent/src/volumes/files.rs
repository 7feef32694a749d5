//! What config maps, secrets and the like show as files, changed all at once: `key` is a link to
//! `..data/key`, and `..data` a link to the folder with the present content, as in Kubernetes.
//!
//! What the files are is [`super::sources`]'.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::VolumeError;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_new";
/// What a pod's own group may do with each file: read it.
const GROUP_MODE: u32 = 0o440;

/// A file to be written: content and mode.
pub(super) type File = (Vec<u8>, u32);
/// By path in the volume.
pub(super) type Files = BTreeMap<String, File>;

/// Makes the folder hold just these files; readers see all old ones or all new ones.
pub(super) fn write(
    volume: &str,
    dir: &Path,
    files: &Files,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    let version = format!("..{:016x}", hasher.finish());
    let present = fs::read_link(dir.join(DATA)).ok();
    if present.as_deref() == Some(Path::new(&version)) {
        return Ok(());
    }
    replace(dir, &version, files, group).map_err(VolumeError::file(volume, "write", dir))
}

fn replace(dir: &Path, version: &str, files: &Files, group: Option<u32>) -> io::Result<()> {
    let new = dir.join(version);
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir_all(&new)?;
    for (path, (content, mode)) in files {
        let file = new.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        // Nobody reads it before its mode is what it should be.
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        options?.write_all(content)?;
        let mode = mode | group.map_or(0, |_| GROUP_MODE);
        if group.is_some() {
            chown(&file, None, group)?;
        }
        fs::set_permissions(&file, Permissions::from_mode(mode))?;
    }
    let link = dir.join(DATA_NEW);
    remove_if_there(&link)?;
    symlink(version, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    tidy(dir, version, files)
}

/// Links for what is there, none for what is not, and no older content.
fn tidy(dir: &Path, version: &str, files: &Files) -> io::Result<()> {
    let first = |path: &String| Some(Path::new(path).iter().next()?.to_string_lossy().into_owned());
    let wanted: BTreeSet<String> = files.keys().filter_map(first).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(PathBuf::from(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || name == version || wanted.contains(&name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
