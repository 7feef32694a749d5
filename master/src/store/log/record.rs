//! One record of the log: a header with checksums, then the entry's payload, sealed or plain.
//!
//! Bytes only; files are [`super::segment`]'s. The checksum is of the payload as it is stored, so
//! that what is torn or damaged is found without any key.

use openraft::{CommittedLeaderId, EntryPayload};

use crate::store::keyring::{DataKey, KeyId, Keyring, OpenError, PLAIN, SEAL_BYTES};
use crate::store::raft::{Batch, Entry, LogId};

/// Records begin at multiples of this many bytes.
pub const ALIGN_BYTES: u64 = 8;
pub const HEADER_BYTES: usize = 56;
const MAGIC: [u8; 4] = *b"TmLr";

/// Little-endian, in this order after magic and header checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub payload_bytes: u32,
    pub payload_crc: u32,
    pub index: u64,
    pub term: u64,
    pub node: u64,
    /// What the writer knew to be committed: index + 1, or 0 for nothing. It rides along, so that
    /// committing needs no write of its own.
    pub committed_next: u64,
    /// Where in the file the write began that this record was part of. Everything before it was on
    /// the disk already: this tells a torn last write from damage.
    pub group: u32,
    pub kind: Kind,
    /// Of the payload.
    pub format: Format,
    /// What the payload is sealed with.
    pub key: KeyId,
}

/// How a payload is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    /// As it is; all that the first builds wrote.
    Plain = 0,
    /// Nonce, AES-256-GCM's ciphertext, tag; the header from `index` on is the associated data.
    Sealed = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Blank = 1,
    Transactions = 2,
    Membership = 3,
}

impl Header {
    pub fn log_id(&self) -> LogId {
        LogId::new(CommittedLeaderId::new(self.term, self.node), self.index)
    }

    /// Header, payload and padding.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_bytes as usize)
    }

    /// `segment` is mixed into the checksum, so that a record in the wrong file is none.
    pub fn encode(&self, segment: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.term.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.node.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.committed_next.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.group.to_le_bytes());
        bytes[52] = self.kind as u8;
        bytes[53] = self.format as u8;
        bytes[54..56].copy_from_slice(&self.key.to_le_bytes());
        let crc = header_crc(&bytes, segment);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` when these bytes are no intact header.
    pub fn decode(bytes: &[u8; HEADER_BYTES], segment: u64) -> Option<Self> {
        if bytes[0..4] != MAGIC || u32_at(bytes, 4) != header_crc(bytes, segment) {
            return None;
        }
        let kind = match bytes[52] {
            1 => Kind::Blank,
            2 => Kind::Transactions,
            3 => Kind::Membership,
            _ => return None,
        };
        let format = match bytes[53] {
            0 => Format::Plain,
            1 => Format::Sealed,
            _ => return None,
        };
        Some(Self {
            payload_bytes: u32_at(bytes, 8),
            payload_crc: u32_at(bytes, 12),
            index: u64_at(bytes, 16),
            term: u64_at(bytes, 24),
            node: u64_at(bytes, 32),
            committed_next: u64_at(bytes, 40),
            group: u32_at(bytes, 48),
            kind,
            format,
            key: u16::from_le_bytes([bytes[54], bytes[55]]),
        })
    }
}

/// Whether an intact header says that a newer build wrote its record.
pub fn is_newer(bytes: &[u8; HEADER_BYTES], segment: u64) -> bool {
    bytes[0..4] == MAGIC
        && u32_at(bytes, 4) == header_crc(bytes, segment)
        && Header::decode(bytes, segment).is_none()
}

/// What a sealed payload is bound to: everything in the header but its checksums. The log index
/// and term are in it, so a record cannot stand for another.
fn associated(header: &[u8; HEADER_BYTES]) -> &[u8] {
    &header[16..]
}

/// Appends the whole record, padded. `header` comes with all but what is the payload's.
pub fn encode(
    mut header: Header,
    payload: &[u8],
    segment: u64,
    keyring: &Keyring,
    key: Option<&DataKey>,
    out: &mut Vec<u8>,
) -> Header {
    (header.format, header.key) = match key {
        Some(key) => (Format::Sealed, key.id),
        None => (Format::Plain, PLAIN),
    };
    let begin = out.len();
    let bound = header.encode(segment);
    out.extend_from_slice(&bound);
    match key {
        Some(key) => keyring.seal(key, associated(&bound), payload, out),
        None => out.extend_from_slice(payload),
    }
    let stored = &out[begin + HEADER_BYTES..];
    header.payload_bytes = u32::try_from(stored.len()).unwrap_or(u32::MAX);
    header.payload_crc = crc32fast::hash(stored);
    out[begin..begin + HEADER_BYTES].copy_from_slice(&header.encode(segment));
    out.resize(out.len().next_multiple_of(ALIGN_BYTES as usize), 0);
    header
}

/// The stored payload as it was before it was sealed.
pub fn unseal(
    header: &[u8; HEADER_BYTES],
    mut payload: Vec<u8>,
    keyring: &Keyring,
) -> Result<Vec<u8>, OpenError> {
    if header[53] == Format::Plain as u8 {
        return Ok(payload);
    }
    let key = u16::from_le_bytes([header[54], header[55]]);
    keyring.unseal(key, associated(header), &mut payload)?;
    Ok(payload)
}

/// Bytes on the disk of a record whose payload has so many, at most: it may be sealed.
pub fn stored_bytes(payload_bytes: usize) -> u64 {
    record_bytes(payload_bytes + SEAL_BYTES)
}

fn record_bytes(payload_bytes: usize) -> u64 {
    ((HEADER_BYTES + payload_bytes) as u64).next_multiple_of(ALIGN_BYTES)
}

/// Whether a header may begin here; cheap, for searching.
pub fn may_begin(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

fn header_crc(bytes: &[u8; HEADER_BYTES], segment: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has eight bytes"))
}

/// An entry's kind and payload: a JSON array of transactions, the members, or nothing.
pub fn encode_payload(entry: &Entry) -> Result<(Kind, bytes::Bytes), serde_json::Error> {
    Ok(match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, bytes::Bytes::new()),
        EntryPayload::Normal(batch) if batch.encoded.is_empty() => {
            (Kind::Transactions, serde_json::to_vec(&batch.txns)?.into())
        }
        EntryPayload::Normal(batch) => (Kind::Transactions, batch.encoded.clone()),
        EntryPayload::Membership(members) => {
            (Kind::Membership, serde_json::to_vec(members)?.into())
        }
    })
}

pub fn decode_entry(
    log_id: LogId,
    kind: Kind,
    payload: Vec<u8>,
) -> Result<Entry, serde_json::Error> {
    let payload = match kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Transactions => EntryPayload::Normal(Batch {
            txns: serde_json::from_slice(&payload)?,
            encoded: payload.into(),
            waiting: None,
        }),
        Kind::Membership => EntryPayload::Membership(serde_json::from_slice(&payload)?),
    };
    Ok(Entry { log_id, payload })
}
