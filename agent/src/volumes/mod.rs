//! The volumes of a pod as folders of the host: emptyDir, hostPath, and what shows objects as files
//! (configMap, secret, downwardAPI, projected).
//!
//! Everything of a pod lies in one folder, which goes with it. Nothing is mounted into containers
//! here; [`mounts`] only says what is to be. Blocking file work throughout: call it off the
//! runtime's threads.

mod files;
mod host_path;
mod sources;
mod tmpfs;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Volume};
use thiserror::Error;
use timonier_proto::compiled::CompiledPod;
use timonier_proto::quantity;

use self::sources::Source;
use crate::pods::NodeFacts;
use crate::runtime::Mount;

const FOLDER: &str = "volumes";
const EMPTY_DIR_MODE: u32 = 0o777;
const SET_GID: u32 = 0o2000;

/// Why a volume cannot be had.
#[derive(Debug, Error)]
pub enum VolumeError {
    #[error("volume \"{volume}\": {what} \"{name}\" not found")]
    NotFound { volume: String, what: &'static str, name: String },
    #[error("volume \"{volume}\": {what} \"{name}\" has no key \"{key}\"")]
    NoKey { volume: String, what: &'static str, name: String, key: String },
    #[error(
        "volume \"{volume}\": the masters give no token; hint: see whether the pod's service account exists"
    )]
    NoToken { volume: String },
    #[error("volume \"{volume}\": file {path}: {why}")]
    Downward { volume: String, path: String, why: String },
    #[error("volume \"{volume}\": path \"{path}\" must be relative and must not contain \"..\"")]
    Outside { volume: String, path: String },
    #[error("volume \"{volume}\": hostPath type check failed: {path} is not a {wanted}")]
    HostPath { volume: String, path: String, wanted: &'static str },
    #[error(
        "volume \"{volume}\": its kind is not supported by this version; hint: use emptyDir, hostPath, configMap, secret, downwardAPI or projected"
    )]
    Unsupported { volume: String },
    #[error("container \"{container}\" mounts volume \"{volume}\", which the pod does not have")]
    NoVolume { container: String, volume: String },
    #[error("volume \"{volume}\": cannot {what} {path}: {source}")]
    File { volume: String, what: &'static str, path: String, source: io::Error },
}

impl VolumeError {
    fn file<'a>(
        volume: &'a str,
        what: &'static str,
        path: &'a Path,
    ) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::File {
            volume: volume.to_owned(),
            what,
            path: path.display().to_string(),
            source,
        }
    }
}

/// Where each volume of a pod lies on the host, by name.
pub type VolumePaths = BTreeMap<String, PathBuf>;

/// Makes the pod's volumes below `pod_dir`, or finds them made; those that show objects are brought
/// up to date, each atomically.
pub(crate) fn prepare(
    pod_dir: &Path,
    compiled: &CompiledPod,
    facts: &NodeFacts,
) -> Result<VolumePaths, VolumeError> {
    let spec = compiled.pod.spec.as_ref();
    let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
    let mut paths = VolumePaths::new();
    for volume in spec.and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
        let path =
            prepare_one(pod_dir, volume, group, &Source { volume: &volume.name, compiled, facts })?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

fn prepare_one(
    pod_dir: &Path,
    volume: &Volume,
    group: Option<i64>,
    shown: &Source<'_>,
) -> Result<PathBuf, VolumeError> {
    let name = &volume.name;
    let dir = pod_dir.join(FOLDER).join(inside(name, name)?);
    if let Some(source) = &volume.host_path {
        return host_path::check(name, source);
    }
    if let Some(source) = &volume.empty_dir {
        empty_dir(name, &dir, source, group)?;
        return Ok(dir);
    }
    let group = group.and_then(|group| u32::try_from(group).ok());
    if let Some(source) = &volume.config_map {
        files::write(name, &dir, &shown.config_map(source)?, None)?;
        return Ok(dir);
    }
    let files = if let Some(source) = &volume.secret {
        shown.secret(source)?
    } else if let Some(source) = &volume.projected {
        shown.projected(source)?
    } else if let Some(source) = &volume.downward_api {
        shown.downward(source.items.as_deref().unwrap_or_default(), source.default_mode)?
    } else {
        return Err(VolumeError::Unsupported { volume: name.clone() });
    };
    // In memory: what a secret keeps is on no disk of the node.
    fs::create_dir_all(&dir).map_err(VolumeError::file(name, "make", &dir))?;
    tmpfs::mount(&dir, None).map_err(VolumeError::file(name, "mount memory at", &dir))?;
    files::write(name, &dir, &files, group)?;
    Ok(dir)
}

fn empty_dir(
    name: &str,
    dir: &Path,
    source: &EmptyDirVolumeSource,
    group: Option<i64>,
) -> Result<(), VolumeError> {
    fs::create_dir_all(dir).map_err(VolumeError::file(name, "make", dir))?;
    if source.medium.as_deref() == Some("Memory") {
        let size = source.size_limit.as_ref().map(|limit| quantity::units(Some(limit)));
        tmpfs::mount(dir, size).map_err(VolumeError::file(name, "mount memory at", dir))?;
    }
    let mut mode = EMPTY_DIR_MODE;
    if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
        chown(dir, None, Some(group)).map_err(VolumeError::file(name, "chown", dir))?;
        mode |= SET_GID;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .map_err(VolumeError::file(name, "chmod", dir))
}

/// What is to be mounted into `container`. `expand` puts variables into `subPathExpr`.
pub fn mounts(
    container: &Container,
    volumes: &VolumePaths,
    expand: impl Fn(&str) -> String,
) -> Result<Vec<Mount>, VolumeError> {
    let list = container.volume_mounts.as_deref().unwrap_or_default();
    let one = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let volume = &mount.name;
        let root = volumes.get(volume).ok_or_else(|| VolumeError::NoVolume {
            container: container.name.clone(),
            volume: volume.clone(),
        })?;
        let sub = mount.sub_path_expr.as_deref().map(&expand).or(mount.sub_path.clone());
        let source = match sub.filter(|sub| !sub.is_empty()) {
            Some(sub) => sub_path(volume, root, &sub)?,
            None => root.clone(),
        };
        let target = Path::new("/").join(&mount.mount_path);
        Ok(Mount {
            source: source.to_string_lossy().into_owned(),
            target: target.to_string_lossy().into_owned(),
            read_only: mount.read_only.unwrap_or(false),
            propagation: mount.mount_propagation.clone(),
        })
    };
    list.iter().map(one).collect()
}

/// Part of a volume, made as a folder if it is missing. Links are followed now and must stay in
/// the volume, so what the container does later cannot lead the mount elsewhere.
fn sub_path(volume: &str, root: &Path, sub: &str) -> Result<PathBuf, VolumeError> {
    let path = root.join(inside(volume, sub)?);
    let outside = || VolumeError::Outside { volume: volume.to_owned(), path: sub.to_owned() };
    let root = root.canonicalize().map_err(VolumeError::file(volume, "open", root))?;
    if !path.exists() {
        // Only below what is really in the volume.
        let mut parent = path.as_path();
        while let Some(up) = parent.parent().filter(|_| !parent.exists()) {
            parent = up;
        }
        let real = parent.canonicalize().map_err(VolumeError::file(volume, "open", parent))?;
        if !real.starts_with(&root) {
            return Err(outside());
        }
        fs::create_dir_all(&path).map_err(VolumeError::file(volume, "make", &path))?;
    }
    let real = path.canonicalize().map_err(VolumeError::file(volume, "open", &path))?;
    if real.starts_with(&root) { Ok(real) } else { Err(outside()) }
}

/// A path that stays below where it is put.
fn inside<'a>(volume: &str, path: &'a str) -> Result<&'a Path, VolumeError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !path.is_empty() {
        Ok(Path::new(path))
    } else {
        Err(VolumeError::Outside { volume: volume.to_owned(), path: path.to_owned() })
    }
}

/// Removes all of a pod's folder, what is mounted in it first; Ok if there is none.
pub fn remove(pod_dir: &Path) -> io::Result<()> {
    let volumes = match fs::read_dir(pod_dir.join(FOLDER)) {
        Ok(volumes) => Some(volumes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    for volume in volumes.into_iter().flatten() {
        let path = volume?.path();
        if tmpfs::is_mounted(&path)? {
            tmpfs::unmount(&path)?;
        }
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
