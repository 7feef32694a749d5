//! One file of the log: made at its full size before it is used, then filled with records.
//!
//! The space is reserved on the disk and reads as zeros, so a write never fails for want of space,
//! and what was never written can be told from what was damaged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::record::{self, Kind};
use crate::store::StoreError;
use crate::store::folder::sync_folder;
use crate::store::keyring::{KeyId, Keyring, OpenError};
use crate::store::raft::{Entry, LogId};

/// Where records begin: a sector of its own for the file's header.
pub const RECORDS_OFFSET: u64 = 512;
const MAGIC: &[u8; 8] = b"TIMLOG01";
const FILE_HEADER_BYTES: usize = 28;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub offset: u64,
    pub payload_bytes: u32,
    pub kind: Kind,
    /// What it is sealed with.
    pub key: KeyId,
    pub log_id: LogId,
}

#[derive(Debug)]
pub struct Segment {
    /// Counts the files since the log began; in its name.
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<File>,
    /// The file's size.
    pub capacity: u64,
    /// The entries in it, without gaps.
    pub places: Vec<Place>,
    /// Where the next record goes.
    pub end: u64,
}

impl Segment {
    pub fn file_name(number: u64) -> String {
        format!("{number:012}.log")
    }

    /// The number in a segment's file name.
    pub fn number_of(name: &str) -> Option<u64> {
        name.strip_suffix(".log").filter(|n| n.len() == 12)?.parse().ok()
    }

    /// Makes an empty one of `capacity` bytes. Fails, and leaves nothing, when the disk is full.
    pub fn create(dir: &Path, number: u64, capacity: u64) -> io::Result<Self> {
        let path = dir.join(Self::file_name(number));
        let temporary = path.with_extension("tmp");
        let make = || -> io::Result<File> {
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&temporary)?;
            reserve(&file, capacity)?;
            file.write_all_at(&file_header(number, capacity), 0)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            sync_folder(dir)?;
            Ok(file)
        };
        let file = make().inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })?;
        Ok(Self {
            number,
            path,
            file: Arc::new(file),
            capacity,
            places: Vec::new(),
            end: RECORDS_OFFSET,
        })
    }

    /// Opens a file without looking at its records; answers its bytes, too.
    pub fn open(dir: &Path, number: u64) -> Result<(Self, Vec<u8>), StoreError> {
        let path = dir.join(Self::file_name(number));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        let capacity = capacity_in(&bytes, number).ok_or_else(|| StoreError::Corrupt {
            what: "log file header",
            path: path.clone(),
            offset: 0,
            index: None,
            why: "it is not the header of this file".to_owned(),
            hint: "restore the data folder from a backup".to_owned(),
        })?;
        let file = Arc::new(file);
        let places = Vec::new();
        Ok((Self { number, path, file, capacity, places, end: RECORDS_OFFSET }, bytes))
    }

    pub fn room(&self) -> u64 {
        self.capacity - self.end
    }

    pub fn last(&self) -> Option<LogId> {
        self.places.last().map(|place| place.log_id)
    }

    pub fn place(&self, index: u64) -> Option<Place> {
        let first = self.places.first()?.log_id.index;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.places.get(at).copied()
    }

    /// Makes everything from `offset` on zeros again, on the disk when this returns, and the file
    /// its full size. From the back, so that a crash leaves no gap.
    pub fn cut(&mut self, offset: u64, index: u64) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut end = length;
        while end > offset {
            let bytes = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROS.len());
            end -= bytes as u64;
            self.file.write_all_at(&ZEROS[..bytes], end)?;
        }
        if length < self.capacity {
            reserve(&self.file, self.capacity)?;
        }
        self.file.sync_all()?;
        self.places.retain(|place| place.log_id.index < index);
        self.end = offset;
        Ok(())
    }
}

/// Reads one entry, and checks it again: the disk may have changed since the log was opened.
pub fn read_entry(
    file: &File,
    path: &Path,
    place: &Place,
    keyring: &Keyring,
) -> Result<Entry, StoreError> {
    let mut bytes = vec![0; record::HEADER_BYTES + place.payload_bytes as usize];
    file.read_exact_at(&mut bytes, place.offset).map_err(StoreError::io("read", path))?;
    let damaged = |why: String| StoreError::Corrupt {
        what: "log record",
        path: path.to_owned(),
        offset: place.offset,
        index: Some(place.log_id.index),
        why,
        hint: "the disk is failing: restore the data folder from a backup on another".to_owned(),
    };
    let payload = bytes.split_off(record::HEADER_BYTES);
    let header: [u8; record::HEADER_BYTES] = bytes.try_into().expect("the header has these bytes");
    let crc = u32::from_le_bytes(header[12..16].try_into().expect("the header has these bytes"));
    if crc32fast::hash(&payload) != crc {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    let payload = record::unseal(&header, payload, keyring)
        .map_err(|error| sealed_otherwise(path, place, &error))?;
    record::decode_entry(place.log_id, place.kind, payload).map_err(|error| StoreError::Corrupt {
        what: "log",
        path: path.to_owned(),
        offset: place.offset,
        index: Some(place.log_id.index),
        why: error.to_string(),
        hint: "its checksum is right, so another build wrote it: start that one again".to_owned(),
    })
}

/// The record is as it was written, but the keyring is not the one that sealed it.
fn sealed_otherwise(path: &Path, place: &Place, error: &OpenError) -> StoreError {
    StoreError::Keys {
        path: path.to_owned(),
        why: format!("log index {}: {error}", place.log_id.index),
        hint: "put the keyring that this store was sealed with back into its keys folder"
            .to_owned(),
    }
}

/// Whether the file's first record is there and sealed.
pub fn begins_sealed(path: &Path, number: u64) -> bool {
    let mut bytes = [0; record::HEADER_BYTES];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, RECORDS_OFFSET));
    read.is_ok()
        && record::Header::decode(&bytes, number)
            .is_some_and(|header| header.format == record::Format::Sealed)
}

pub fn is_zeros(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// Reserves space that reads as zeros; where the file system cannot, writes the zeros.
fn reserve(file: &File, capacity: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, capacity) {
        Ok(()) => Ok(()),
        Err(error) if error == rustix::io::Errno::OPNOTSUPP => {
            let mut at = file.metadata()?.len();
            while at < capacity {
                let bytes = usize::try_from(capacity - at).unwrap_or(usize::MAX).min(ZEROS.len());
                file.write_all_at(&ZEROS[..bytes], at)?;
                at += bytes as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Magic, number, capacity, checksum.
fn file_header(number: u64, capacity: u64) -> [u8; FILE_HEADER_BYTES] {
    let mut bytes = [0; FILE_HEADER_BYTES];
    bytes[0..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&capacity.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn capacity_in(bytes: &[u8], number: u64) -> Option<u64> {
    let header = bytes.get(..FILE_HEADER_BYTES)?;
    let capacity = u64::from_le_bytes(header[16..24].try_into().ok()?);
    (header == file_header(number, capacity)).then_some(capacity)
}
