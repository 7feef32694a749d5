//! What the store reads back from its disk: segments of the log, the transactions in them, and
//! snapshots. Any bytes are judged, and none are taken for what their checksum says they are not.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use timonier_master::store::reading::{Scanned, load_snapshot, read_transactions, scan_segment};
use timonier_master_core::snapshot::Snapshot;

/// A segment with entries of every kind, cut after them.
const SEGMENT: &[u8] = include_bytes!("../../fuzz/corpus/log_segment/real");
/// Its number, which is part of the checksums.
const SEGMENT_NUMBER: u64 = 1;
/// An error burst that the checksums always find.
const BURST_BYTES_MAX: usize = 4;

/// A whole file, as it is found at a start.
pub fn segment(data: &[u8]) {
    let Scanned { records, end, fault } = scan_segment(data, SEGMENT_NUMBER);
    let mut last_end = 0;
    for record in &records {
        assert!(record.offset >= last_end, "records overlap");
        last_end = record.offset + record.payload_bytes;
        assert!(last_end <= data.len(), "a record lies outside of its file");
    }
    assert!(end >= last_end || fault.is_some());
}

/// A short burst of wrong bits anywhere: no record is accepted that differs from what was written.
/// Two bytes say where, up to four what.
pub fn damage(data: &[u8]) {
    let [low, high, burst @ ..] = data else { return };
    let at = usize::from(u16::from_le_bytes([*low, *high])) % SEGMENT.len();
    let mut bytes = SEGMENT.to_vec();
    for (byte, wrong) in bytes[at..].iter_mut().zip(burst.iter().take(BURST_BYTES_MAX)) {
        *byte ^= wrong;
    }
    let (before, after) =
        (scan_segment(SEGMENT, SEGMENT_NUMBER), scan_segment(&bytes, SEGMENT_NUMBER));
    assert!(after.records.len() <= before.records.len());
    for (intact, accepted) in before.records.iter().zip(&after.records) {
        assert_eq!(intact, accepted);
        let payload = intact.offset..intact.offset + intact.payload_bytes;
        assert_eq!(SEGMENT[payload.clone()], bytes[payload], "a damaged record was accepted");
    }
    if bytes != SEGMENT && after.records.len() < before.records.len() {
        assert!(after.fault.is_some(), "records are missing and nobody says so");
    }
}

/// The payload of an entry, applied to an empty state.
pub fn transactions(data: &[u8]) {
    let Ok(transactions) = read_transactions(data) else { return };
    let mut snapshot = Snapshot::default();
    for transaction in &transactions {
        let before = snapshot.clone();
        let applied = snapshot.apply(transaction);
        if applied.is_err() {
            assert_eq!(snapshot.revision, before.revision);
            assert_eq!(snapshot.len(), before.len(), "a refused transaction changed the state");
        }
    }
}

/// A snapshot file.
pub fn snapshot(data: &[u8]) {
    let file = rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(file.expect("memory for a file"));
    file.write_all(data).expect("memory can be written");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let _ = load_snapshot(&path, "fuzz");
}
