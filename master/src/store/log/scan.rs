//! Finding the records of a segment, and judging what is not one: the torn end of the last write,
//! or damage.
//!
//! Reads only; what is done about it is [`super::files`]'s.

use super::record::{self, ALIGN_BYTES, HEADER_BYTES, Header};
use super::segment::{Place, RECORDS_OFFSET, is_zeros};

/// A disk writes at least so many bytes as one piece.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Default)]
pub struct Scan {
    pub places: Vec<Place>,
    /// Where the next record goes, or where the fault is.
    pub end: u64,
    /// Highest index + 1 that the records say was committed.
    pub committed_next: u64,
    pub fault: Option<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The last write was cut off by a crash; it was never acknowledged.
    Torn,
    /// What was written is not there any more.
    Damaged(String),
}

/// Looks at the whole file. `next` is the index that its first record must have, if known.
pub fn scan(bytes: &[u8], segment: u64, capacity: u64, mut next: Option<u64>) -> Scan {
    let mut scan = Scan { end: RECORDS_OFFSET, ..Scan::default() };
    scan.fault = loop {
        let offset = scan.end;
        let rest = bytes.get(at(offset)..).unwrap_or_default();
        if is_zeros(rest) {
            break None;
        }
        let header = rest.first_chunk::<HEADER_BYTES>();
        if header.is_some_and(|header| record::is_newer(header, segment)) {
            let why = "a newer version of the master wrote it; start that one";
            break Some(Fault::Damaged(why.to_owned()));
        }
        let header = header.and_then(|header| Header::decode(header, segment));
        let Some(header) = header else {
            break Some(judge(bytes, segment, offset, HEADER_BYTES, "there is no intact record"));
        };
        if next.is_some_and(|next| next != header.index) {
            let expected = next.unwrap_or_default();
            let found = header.index;
            break Some(Fault::Damaged(format!("entry {expected} was expected, not {found}")));
        }
        let end = HEADER_BYTES + header.payload_bytes as usize;
        let intact = rest
            .get(HEADER_BYTES..end)
            .is_some_and(|payload| crc32fast::hash(payload) == header.payload_crc);
        if !intact {
            break Some(judge(bytes, segment, offset, end, "the record's checksum does not match"));
        }
        scan.places.push(Place {
            offset,
            payload_bytes: header.payload_bytes,
            kind: header.kind,
            key: header.key,
            log_id: header.log_id(),
        });
        scan.committed_next = scan.committed_next.max(header.committed_next);
        scan.end += header.record_bytes();
        next = Some(header.index + 1);
    };
    let length = bytes.len() as u64;
    if length < capacity && !matches!(scan.fault, Some(Fault::Damaged(_))) {
        let why = format!("the file was cut short: {length} of {capacity} bytes are left");
        scan.fault = Some(Fault::Damaged(why));
    }
    scan
}

/// Of a bad record at `offset`, whose `extent` bytes should have been written.
///
/// A record of a later write proves that this one was on the disk: damage. Else it belongs to the
/// last write, and is torn if part of it was never written, that is if a piece the disk writes as
/// one still reads as the zeros it was made with (no record holds so many of its own).
fn judge(bytes: &[u8], segment: u64, offset: u64, extent: usize, what: &str) -> Fault {
    let later = (at(offset)..bytes.len())
        .step_by(ALIGN_BYTES as usize)
        .skip(1)
        .filter(|&at| record::may_begin(&bytes[at..]))
        .filter_map(|at| Header::decode(bytes[at..].first_chunk()?, segment))
        .find(|header| u64::from(header.group) > offset);
    if let Some(later) = later {
        let index = later.index;
        return Fault::Damaged(format!("{what}, although entry {index} after it was written"));
    }
    let end = at(offset).saturating_add(extent).min(bytes.len());
    let mut begin = at(offset);
    while begin < end {
        let piece_end = (begin / SECTOR_BYTES + 1).saturating_mul(SECTOR_BYTES).min(end);
        if is_zeros(&bytes[begin..piece_end]) {
            return Fault::Torn;
        }
        begin = piece_end;
    }
    Fault::Damaged(format!("{what}, although it was written whole"))
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
