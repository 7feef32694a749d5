//! Config maps as files, changed all at once: `key` is a link to `..data/key`, and `..data` a link
//! to the folder with the present content, as in Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath};

use super::{VolumeError, inside};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_new";
const MODE_DEFAULT: i32 = 0o644;

/// A file to be written: content and mode.
type File = (Vec<u8>, u32);

/// What the volume is to hold, by path in it.
pub(super) fn files(
    volume: &str,
    source: &ConfigMapVolumeSource,
    map: Option<&ConfigMap>,
) -> Result<BTreeMap<String, File>, VolumeError> {
    let name = &source.name;
    let optional = source.optional == Some(true);
    let Some(map) = map else {
        if optional {
            return Ok(BTreeMap::new());
        }
        return Err(VolumeError::NoConfigMap { volume: volume.to_owned(), name: name.clone() });
    };
    let content = |key: &str| {
        let text = map.data.as_ref().and_then(|data| data.get(key)).map(|t| t.clone().into_bytes());
        text.or_else(|| Some(map.binary_data.as_ref()?.get(key)?.0.clone()))
    };
    let keys = || {
        let text = map.data.iter().flat_map(|data| data.keys());
        text.chain(map.binary_data.iter().flat_map(|data| data.keys()))
    };
    let items: Vec<KeyToPath> = match &source.items {
        Some(items) => items.clone(),
        None => keys()
            .map(|key| KeyToPath { key: key.clone(), path: key.clone(), mode: None })
            .collect(),
    };
    let mut files = BTreeMap::new();
    for item in items {
        let path = inside(volume, &item.path)?;
        // Such names are the volume's own.
        if path.to_string_lossy().starts_with("..") {
            return Err(VolumeError::Outside { volume: volume.to_owned(), path: item.path });
        }
        let mode = item.mode.or(source.default_mode).unwrap_or(MODE_DEFAULT);
        match content(&item.key) {
            Some(content) => {
                files.insert(item.path, (content, mode.unsigned_abs() & 0o777));
            }
            None if optional => {}
            None => {
                let (volume, name) = (volume.to_owned(), name.clone());
                return Err(VolumeError::NoKey { volume, name, key: item.key });
            }
        }
    }
    Ok(files)
}

/// Makes the folder hold just these files; readers see all old ones or all new ones.
pub(super) fn write(
    volume: &str,
    dir: &Path,
    files: &BTreeMap<String, File>,
) -> Result<(), VolumeError> {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    let version = format!("..{:016x}", hasher.finish());
    let present = fs::read_link(dir.join(DATA)).ok();
    if present.as_deref() == Some(Path::new(&version)) {
        return Ok(());
    }
    replace(dir, &version, files).map_err(VolumeError::file(volume, "write", dir))
}

fn replace(dir: &Path, version: &str, files: &BTreeMap<String, File>) -> io::Result<()> {
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
        fs::write(&file, content)?;
        fs::set_permissions(&file, Permissions::from_mode(*mode))?;
    }
    let link = dir.join(DATA_NEW);
    remove_if_there(&link)?;
    symlink(version, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    tidy(dir, version, files)
}

/// Links for what is there, none for what is not, and no older content.
fn tidy(dir: &Path, version: &str, files: &BTreeMap<String, File>) -> io::Result<()> {
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
