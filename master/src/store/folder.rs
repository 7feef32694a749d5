//! The data folder: one process at a time, and the identity of the cluster it belongs to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::raft::{FIRST_NODE_ID, NodeId};

/// Of the files in the folder; a newer one is not read by this build.
const FORMAT: u32 = 1;
const IDENTITY_FILE: &str = "cluster.json";
/// There while the folder is being made of a backup or of its own state: what is in it then is not
/// whole. Says what to do.
const UNFINISHED_FILE: &str = "unfinished";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    format: u32,
    pub cluster_id: String,
    pub node_id: NodeId,
}

/// An opened folder; locked until it is dropped.
#[derive(Debug)]
pub struct Folder {
    pub path: PathBuf,
    pub identity: Identity,
    _lock: File,
}

impl Folder {
    /// Whether a store was made here before.
    pub fn is_made(path: &Path) -> bool {
        path.join(IDENTITY_FILE).exists()
    }

    /// Locks a folder in which a store was made before; makes nothing.
    pub fn open_made(path: &Path) -> Result<Self, StoreError> {
        if !Self::is_made(path) {
            return Err(StoreError::NoStore(path.to_owned()));
        }
        Self::open(path, None)
    }

    /// Makes the folder at the first start, and the cluster's identity unless one is joined.
    pub fn open(path: &Path, joining: Option<(&str, NodeId)>) -> Result<Self, StoreError> {
        for dir in [path.to_owned(), path.join("log"), path.join("snapshots")] {
            std::fs::create_dir_all(&dir).map_err(StoreError::io("create folder", &dir))?;
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StoreError::io("open", &lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked(path.to_owned()))?;
        if let Ok(hint) = std::fs::read_to_string(path.join(UNFINISHED_FILE)) {
            return Err(StoreError::Unfinished { path: path.to_owned(), hint });
        }
        let identity = identity(path, joining)?;
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub fn keys(&self) -> PathBuf {
        self.path.join(KEYS)
    }
}

fn identity(dir: &Path, joining: Option<(&str, NodeId)>) -> Result<Identity, StoreError> {
    let path = dir.join(IDENTITY_FILE);
    match std::fs::read(&path) {
        Ok(json) => {
            let refuse = |why: String| StoreError::Corrupt {
                what: "identity",
                path: path.clone(),
                offset: 0,
                index: None,
                why,
                hint: "restore the file from a backup of the data folder".to_owned(),
            };
            let identity: Identity =
                serde_json::from_slice(&json).map_err(|e| refuse(e.to_string()))?;
            if identity.format != FORMAT {
                let format = identity.format;
                return Err(refuse(format!("format {format}, but this build reads {FORMAT}")));
            }
            Ok(identity)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (cluster_id, node_id) = match joining {
                Some((cluster_id, id)) => (cluster_id.to_owned(), id),
                None => (uuid::Uuid::new_v4().to_string(), FIRST_NODE_ID),
            };
            write_identity(dir, cluster_id, node_id)
        }
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

/// Which cluster and which master the folder is of from now on.
pub fn write_identity(
    dir: &Path,
    cluster_id: String,
    node_id: NodeId,
) -> Result<Identity, StoreError> {
    let path = dir.join(IDENTITY_FILE);
    let identity = Identity { format: FORMAT, cluster_id, node_id };
    let write = || write_whole(&path, &serde_json::to_vec_pretty(&identity)?);
    write().map_err(StoreError::io("write", &path))?;
    Ok(identity)
}

/// From now on the folder is not opened; `hint` says what to do if it stays so.
pub fn begin_remaking(dir: &Path, hint: &str) -> Result<(), StoreError> {
    let path = dir.join(UNFINISHED_FILE);
    write_whole(&path, hint.as_bytes()).map_err(StoreError::io("write", &path))
}

/// The folder is whole.
pub fn end_remaking(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(UNFINISHED_FILE);
    std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    sync_folder(dir).map_err(StoreError::io("sync", dir))
}

/// Where a store's keys are in its folder.
pub const KEYS: &str = "keys";
/// What of a folder is the store's, beside its keys.
pub const PARTS: [&str; 3] = ["log", "snapshots", IDENTITY_FILE];

/// All of it or nothing is on the disk, under this name.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_as(path, bytes, 0o666)
}

/// The same, for the eyes of the file's owner only.
pub fn write_whole_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_as(path, bytes, 0o600)
}

fn write_whole_as(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Makes renames and new files in the folder last.
pub fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
