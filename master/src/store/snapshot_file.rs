//! A snapshot of the state as one file: a line of JSON that says what is in it, a line an object, a
//! line a remembered transaction, and a last line with the checksum of all before.
//!
//! On the disk all of it is sealed ([`super::sealed`]); files of the first builds were not, and are
//! read, too. When and of what one is made is [`super::snapshotter`]'s.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use timonier_master_core::level::Level;
use timonier_master_core::snapshot::{Answered, Snapshot};
use timonier_proto::Object;

use super::StoreError;
use super::folder::sync_folder;
use super::keyring::{KeyId, Keyring, PLAIN};
use super::machine::State;
use super::raft::SnapshotMeta;
use super::sealed::{self, Sealer, Unsealer};

/// At [`Level::FIRST`]…
const FORMAT: &str = "timonier snapshot 1";
/// …and at later ones: with the level, the time that was counted, and when each id was remembered.
const TIMED_FORMAT: &str = "timonier snapshot 2";
const SUFFIX: &str = ".snapshot";
const BUFFER_BYTES: usize = 256 << 10;

/// The snapshot that stands for the purged part of the log.
#[derive(Debug, Clone)]
pub struct Current {
    pub meta: SnapshotMeta,
    pub path: PathBuf,
    pub bytes: u64,
    /// What it is sealed with.
    pub key: KeyId,
}

impl Current {
    /// The last entry that is in it.
    pub fn reached(&self) -> Option<u64> {
        self.meta.last_log_id.map(|last| last.index)
    }

    /// A state that has not changed may be sealed anew, in the same place.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.path == other.path && self.key == other.key
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    cluster_id: String,
    meta: SnapshotMeta,
    revision: u64,
    objects: u64,
    answered: u64,
    #[serde(default)]
    level: u32,
    #[serde(default)]
    elapsed_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    /// Of every byte before this line.
    crc32: u32,
}

/// What identifies the snapshot of a state.
pub fn meta_of(state: &State) -> SnapshotMeta {
    let last = state.last_applied;
    SnapshotMeta {
        last_log_id: last,
        last_membership: state.membership.clone(),
        snapshot_id: last
            .map_or_else(|| "0".to_owned(), |id| format!("{}-{}", id.leader_id.term, id.index)),
    }
}

fn path_of(dir: &Path, meta: &SnapshotMeta) -> PathBuf {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    dir.join(format!("{index:020}-{term}{SUFFIX}"))
}

/// On the disk, whole, when this returns.
pub fn write(
    dir: &Path,
    cluster_id: &str,
    state: &State,
    keyring: &Keyring,
) -> io::Result<Current> {
    let meta = meta_of(state);
    let path = path_of(dir, &meta);
    let temporary = path.with_extension("tmp");
    let make = || -> io::Result<KeyId> {
        let key = keyring.active();
        let out = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temporary)?);
        let (out, key) = match key {
            None => (write_lines(out, cluster_id, &meta, &state.snapshot)?, PLAIN),
            Some(key) => {
                let id = key.id;
                let sealer = Sealer::new(out, keyring, key)?;
                (write_lines(sealer, cluster_id, &meta, &state.snapshot)?.finish()?, id)
            }
        };
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_folder(dir)?;
        Ok(key)
    };
    let key = make().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })?;
    let bytes = std::fs::metadata(&path)?.len();
    Ok(Current { meta, path, bytes, key })
}

/// The snapshot as it was before it was sealed, in memory: for another master, whose keys are its
/// own, and for whoever may have a backup.
pub fn plain_copy(path: &Path, keyring: &Keyring) -> io::Result<File> {
    let mut copy = memory_file()?;
    let mut source = Unsealer::new(File::open(path)?, keyring)?;
    io::copy(&mut source, &mut copy)?;
    copy.rewind()?;
    Ok(copy)
}

/// A file that no disk ever sees.
pub fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("timonier snapshot", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// The lines as they are before they are sealed.
pub fn write_lines<W: Write>(
    out: W,
    cluster_id: &str,
    meta: &SnapshotMeta,
    snapshot: &Snapshot,
) -> io::Result<W> {
    let mut out = Summed { out, crc: crc32fast::Hasher::new() };
    let timed = snapshot.level >= Level::TIMED_IDS;
    let head = Head {
        format: if timed { TIMED_FORMAT } else { FORMAT }.to_owned(),
        cluster_id: cluster_id.to_owned(),
        meta: meta.clone(),
        revision: snapshot.revision,
        objects: snapshot.len() as u64,
        answered: snapshot.answered().count() as u64,
        level: snapshot.level.into(),
        elapsed_ms: snapshot.elapsed_ms,
    };
    out.line(&head)?;
    for object in snapshot.all_objects() {
        out.line(object)?;
    }
    for (id, Answered { revision, at_ms }) in snapshot.answered() {
        if timed {
            out.line(&(id, revision, at_ms))?;
        } else {
            out.line(&(id, revision))?;
        }
    }
    let tail = Tail { crc32: out.crc.clone().finalize() };
    out.line(&tail)?;
    Ok(out.out)
}

struct Summed<W> {
    out: W,
    crc: crc32fast::Hasher,
}

impl<W: Write> Summed<W> {
    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.crc.update(&line);
        self.out.write_all(&line)
    }
}

/// The newest one in the folder with its state; removes what is older or was left half written.
pub fn load_newest(
    dir: &Path,
    cluster_id: &str,
    keyring: &Keyring,
) -> Result<Option<(Current, State)>, StoreError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(SUFFIX) {
            paths.push(path);
        } else if name.ends_with(".tmp") {
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    paths.sort_unstable();
    let Some(path) = paths.pop() else { return Ok(None) };
    let file = File::open(&path).map_err(StoreError::io("open", &path))?;
    let (meta, snapshot) = load(&path, file, cluster_id, keyring)?;
    remove(&paths);
    let key = key_of(&path).map_err(StoreError::io("read", &path))?;
    let bytes = std::fs::metadata(&path).map_err(StoreError::io("read", &path))?.len();
    let state = State {
        snapshot,
        last_applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
    };
    Ok(Some((Current { meta, path, bytes, key }, state)))
}

/// Snapshots that a newer one stands for; that one is left over does no harm.
pub fn remove(paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(file = %path.display(), %error, "an old snapshot could not be removed");
        }
    }
}

/// Every older one than `current`.
pub fn remove_older(dir: &Path, current: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let older: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|e| e == "snapshot") && path.as_path() < current
        })
        .collect();
    remove(&older);
}

fn key_of(path: &Path) -> io::Result<KeyId> {
    Ok(sealed::key_of(File::open(path)?)?.unwrap_or(PLAIN))
}

/// Whether the folder has a snapshot that is sealed.
pub fn any_sealed(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "snapshot") && key_of(&path)? != PLAIN {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads it all, sealed or not. `path` is for the errors.
pub fn load(
    path: &Path,
    source: impl Read,
    cluster_id: &str,
    keyring: &Keyring,
) -> Result<(SnapshotMeta, Snapshot), StoreError> {
    let source = Unsealer::new(source, keyring).map_err(StoreError::io("read", path))?;
    let mut lines = Lines {
        path,
        reader: BufReader::with_capacity(BUFFER_BYTES, source),
        crc: crc32fast::Hasher::new(),
        offset: 0,
        line: Vec::new(),
    };
    let head: Head = lines.next()?;
    let timed = match head.format.as_str() {
        FORMAT => false,
        TIMED_FORMAT => true,
        other => return Err(lines.newer(format!("its format {other:?} is of another build"))),
    };
    let level = Level::try_from(head.level).map_err(|error| lines.newer(error.to_string()))?;
    if cluster_id != head.cluster_id {
        return Err(lines.corrupt(format!("it is of another cluster, {}", head.cluster_id)));
    }
    let mut objects = Vec::new();
    for _ in 0..head.objects {
        objects.push(lines.next::<Object>()?);
    }
    let mut answered = Vec::new();
    for _ in 0..head.answered {
        let (id, revision, at_ms) = match timed {
            true => lines.next()?,
            false => lines.next().map(|(id, revision)| (id, revision, 0))?,
        };
        answered.push((id, Answered { revision, at_ms }));
    }
    let crc = lines.crc.clone().finalize();
    let tail: Tail = lines.next()?;
    if tail.crc32 != crc {
        return Err(lines.corrupt("its checksum does not match".to_owned()));
    }
    let mut snapshot = Snapshot::rebuild(head.revision, objects, answered);
    snapshot.level = level;
    snapshot.elapsed_ms = head.elapsed_ms;
    Ok((head.meta, snapshot))
}

struct Lines<'a, R> {
    path: &'a Path,
    reader: BufReader<R>,
    crc: crc32fast::Hasher,
    /// Where `line` begins.
    offset: u64,
    line: Vec<u8>,
}

impl<R: Read> Lines<'_, R> {
    fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, StoreError> {
        self.offset += self.line.len() as u64;
        self.line.clear();
        if let Err(error) = self.reader.read_until(b'\n', &mut self.line) {
            return Err(self.unreadable(error));
        }
        if self.line.last() != Some(&b'\n') {
            return Err(self.corrupt("it ends too early".to_owned()));
        }
        self.crc.update(&self.line);
        // Without what was found there: it may be secret.
        serde_json::from_slice(&self.line).map_err(|error| {
            self.corrupt(format!("column {}: it is not what it should be", error.column()))
        })
    }

    fn unreadable(&self, error: io::Error) -> StoreError {
        if let Some(error) = sealed::open_error(&error) {
            return StoreError::Keys {
                path: self.path.to_owned(),
                why: error.to_string(),
                hint: "put the keyring that this store was sealed with back into its keys folder"
                    .to_owned(),
            };
        }
        match error.kind() {
            io::ErrorKind::InvalidData => self.corrupt(error.to_string()),
            _ => StoreError::io("read", self.path)(error),
        }
    }

    fn corrupt(&self, why: String) -> StoreError {
        let hint = "restore the data folder from a backup; the log before the snapshot is gone, so \
                    it cannot be made again";
        self.refused(why, hint)
    }

    /// It is whole, but this build does not know what is in it.
    fn newer(&self, why: String) -> StoreError {
        self.refused(why, "take the build that wrote it, or a newer one")
    }

    fn refused(&self, why: String, hint: &str) -> StoreError {
        StoreError::Corrupt {
            what: "snapshot",
            path: self.path.to_owned(),
            offset: self.offset,
            index: None,
            why,
            hint: hint.to_owned(),
        }
    }
}
