//! The little that is kept beside the log's records: the last vote, and up to where the log was
//! purged.
//!
//! One file of two slots, written in turn, each with a number and a checksum. A write that is torn
//! leaves the other slot, and none needs new space on the disk, so voting works on a full one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::StoreError;
use crate::store::folder::sync_folder;
use crate::store::raft::{LogId, Vote};

const SLOT_BYTES: usize = 4096;
const PREFIX_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LogState {
    /// Grows with each write; the slot with the higher one counts.
    number: u64,
    pub vote: Option<Vote>,
    /// Entries up to this one are no longer needed, nor read.
    pub purged: Option<LogId>,
}

#[derive(Debug)]
pub struct StateFile {
    file: File,
    state: LogState,
}

impl StateFile {
    /// `fresh`: there is no log yet, so the file may be missing.
    pub fn open(dir: &Path, fresh: bool) -> Result<Self, StoreError> {
        let path = dir.join("state");
        if !path.exists() {
            if !fresh {
                return Err(corrupt(&path, "the file is missing although there is a log"));
            }
            create(dir, &path)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        let slots = [read_slot(&file, 0), read_slot(&file, 1)];
        let state = slots.into_iter().flatten().max_by_key(|slot| slot.number);
        let state = state.ok_or_else(|| corrupt(&path, "neither of its two slots is intact"))?;
        Ok(Self { file, state })
    }

    pub fn state(&self) -> LogState {
        self.state
    }

    /// On the disk when this returns.
    pub fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.save(LogState { vote: Some(vote), ..self.state })
    }

    /// On the disk when this returns.
    pub fn save_purged(&mut self, purged: LogId) -> io::Result<()> {
        self.save(LogState { purged: Some(purged), ..self.state })
    }

    fn save(&mut self, state: LogState) -> io::Result<()> {
        let state = LogState { number: self.state.number + 1, ..state };
        self.file.write_all_at(&slot(&state)?, slot_offset(state.number))?;
        self.file.sync_data()?;
        self.state = state;
        Ok(())
    }
}

fn slot_offset(number: u64) -> u64 {
    (number % 2) * SLOT_BYTES as u64
}

fn create(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let temporary = dir.join("state.tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&slot(&LogState::default())?)?;
        file.write_all(&[0; SLOT_BYTES])?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_folder(dir)
    };
    write().map_err(StoreError::io("write", path))
}

/// Length, checksum, JSON, zeros.
fn slot(state: &LogState) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(state)?;
    let mut bytes = Vec::with_capacity(SLOT_BYTES);
    bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.resize(SLOT_BYTES, 0);
    Ok(bytes)
}

fn read_slot(file: &File, which: u64) -> Option<LogState> {
    let mut bytes = [0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, slot_offset(which)).ok()?;
    let length = u32::from_le_bytes(bytes[0..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
    let json = bytes.get(PREFIX_BYTES..PREFIX_BYTES + length)?;
    if length == 0 || crc32fast::hash(json) != crc {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn corrupt(path: &Path, why: &str) -> StoreError {
    StoreError::Corrupt {
        what: "vote",
        path: PathBuf::from(path),
        offset: 0,
        index: None,
        why: why.to_owned(),
        hint: "restore the data folder from a backup".to_owned(),
    }
}
