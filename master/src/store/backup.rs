//! A backup: the state as a stream of bytes while the store goes on, and a data folder made of one.
//!
//! The file's first and last line are [`timonier_proto::backup`]'s, the state between is a snapshot's
//! ([`super::snapshot_file`]). Who may have one, and where it is kept, is not decided here.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::backup::{self as format, Header, Sum};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::folder;
use super::founding::Founding;
use super::keyring::{Encryption, Keyring};
use super::machine::State;
use super::raft::{FIRST_NODE_ID, MasterNode, SnapshotMeta};
use super::sealed::Sealer;
use super::{CommitError, Store, StoreConfig, StoreError, open, snapshot_file};

/// Bytes that travel together.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait for whoever takes them.
const PIECES_MAX: usize = 4;
/// One that is not taken for so long ends the backup.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 256 << 10;
const UNFINISHED_HINT: &str = "remove the folder and restore the backup again";

/// A backup that is being made.
#[derive(Debug)]
pub struct Saving {
    /// Roughly the file's length; 0 when it is not known.
    pub expected_bytes: u64,
    /// The file in order; an error is the last.
    pub pieces: mpsc::Receiver<io::Result<Bytes>>,
}

impl Store {
    /// The state with every write that was acknowledged before the call, as a backup's bytes.
    /// Writers are not held up. Sealed when the store's keys are protected by a key file or a
    /// passphrase; opening it takes the same one.
    pub async fn backup(&self) -> Result<Saving, CommitError> {
        self.linearize().await?;
        let shared = self.shared.clone();
        let state = shared.machine.state();
        let master = self.members().into_iter().find(|member| member.id == shared.id);
        let expected_bytes = shared.machine.snapshot_bytes();
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let sealing = shared.machine.keyring.for_a_copy();
            let (keyring, head) = sealing.map_or((None, None), |(k, head)| (Some(k), Some(head)));
            let header = Header {
                format: format::FORMAT.to_owned(),
                cluster_id: shared.machine.cluster_id.clone(),
                revision: state.snapshot.revision,
                objects: state.snapshot.len() as u64,
                time: Timestamp::now().to_string(),
                master_id: shared.id,
                master_name: master.map(|master| master.name).unwrap_or_default(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                needs: match keyring {
                    Some(_) => shared.machine.keyring.protection().to_owned(),
                    None => "none".to_owned(),
                },
                keyring: head,
            };
            let out =
                Pieces { sender: sender.clone(), runtime: runtime.clone(), piece: Vec::new() };
            if let Err(error) = write(out, &header, keyring.as_ref(), &state) {
                tracing::warn!(%error, "a backup was not finished");
                let _ = runtime.block_on(sender.send_timeout(Err(error), PIECE_DEADLINE));
            }
        });
        Ok(Saving { expected_bytes, pieces })
    }
}

/// Sends what is written, in pieces.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        let sending = self.sender.send_timeout(Ok(piece.into()), PIECE_DEADLINE);
        self.runtime
            .block_on(sending)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more"))
    }
}

/// Adds up what goes through.
struct Summing<W> {
    out: W,
    sum: Sum,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write(
    out: impl Write,
    header: &Header,
    keyring: Option<&Keyring>,
    state: &State,
) -> io::Result<()> {
    let mut out = Summing { out, sum: Sum::default() };
    out.write_all(&header.line())?;
    let meta = snapshot_file::meta_of(state);
    let cluster_id = &header.cluster_id;
    let lines = &state.snapshot;
    let sealing = keyring.and_then(|keyring| Some((keyring, keyring.active()?)));
    let Summing { mut out, sum } = match sealing {
        None => snapshot_file::write_lines(out, cluster_id, &meta, lines)?,
        Some((keyring, key)) => {
            let sealer = Sealer::new(out, keyring, key)?;
            snapshot_file::write_lines(sealer, cluster_id, &meta, lines)?.finish()?
        }
    };
    out.write_all(&sum.trailer())?;
    out.flush()
}

/// What a backup became.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// Of the file.
    pub header: Header,
    /// Of the new cluster.
    pub cluster_id: String,
    /// Where it goes on.
    pub revision: u64,
}

/// Makes the data folder of a new cluster's first master out of a backup's file. A file that is not
/// whole, or that the keys do not open, changes nothing; nor does a folder that has something in it.
pub async fn restore(file: &Path, config: &StoreConfig) -> Result<Restored, StoreError> {
    let (header, meta, snapshot) = read(file, &config.encryption)?;
    let dir = &config.dir;
    let was_there = is_there(dir)?;
    let state =
        State { snapshot, last_applied: meta.last_log_id, membership: meta.last_membership };
    let me = MasterNode { address: config.address.clone(), name: config.name.clone() };
    let founding = Founding::of(state, FIRST_NODE_ID, me, 0)
        .ok_or(StoreError::Unusable { path: file.to_owned(), why: "there is no state in it" })?;
    let making = async {
        let folder = dir.clone();
        std::fs::create_dir_all(&folder).map_err(StoreError::io("create folder", &folder))?;
        folder::begin_remaking(dir, UNFINISHED_HINT)?;
        let keyring = Arc::new(Keyring::open(&dir.join(folder::KEYS), &config.encryption, false)?);
        let founded = founding.write(dir, keyring, open::segment_bytes(config)).await?;
        folder::end_remaking(dir)?;
        Ok(founded)
    };
    match making.await {
        Ok(founded) => {
            let (cluster_id, revision) = (founded.cluster_id, founded.revision);
            Ok(Restored { header, cluster_id, revision })
        }
        Err(error) => {
            clear(dir, was_there);
            Err(error)
        }
    }
}

fn read(
    path: &Path,
    encryption: &Encryption,
) -> Result<(Header, SnapshotMeta, Snapshot), StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let wrong = |source| StoreError::Backup { path: path.to_owned(), source };
    let checked = format::check(&mut file).map_err(wrong)?;
    file.seek(SeekFrom::Start(checked.state_from)).map_err(StoreError::io("read", path))?;
    let keyring = match checked.header.keyring.clone() {
        Some(head) => Keyring::of_a_copy(path, head, encryption)?,
        None => Keyring::none(),
    };
    let source = BufReader::with_capacity(BUFFER_BYTES, file.take(checked.state_bytes));
    let cluster_id = &checked.header.cluster_id;
    let (meta, snapshot) = snapshot_file::load(path, source, cluster_id, &keyring)?;
    Ok((checked.header, meta, snapshot))
}

/// Refuses a folder that has something in it.
fn is_there(dir: &Path) -> Result<bool, StoreError> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::io("list", dir)(error)),
    };
    match entries.next() {
        None => Ok(true),
        Some(_) => Err(StoreError::NotEmpty(dir.to_owned())),
    }
}

/// Removes what was made before it failed.
fn clear(dir: &Path, was_there: bool) {
    let made: Vec<PathBuf> = match was_there {
        false => vec![dir.to_owned()],
        true => std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect(),
    };
    for path in made {
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "could not be removed");
        }
    }
}
