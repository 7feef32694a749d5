//! How bytes from the disk are judged, without a store around them: for the fuzz targets.

use std::path::Path;

use openraft::{CommittedLeaderId, EntryPayload};
use timonier_master_core::op::Txn;
use timonier_master_core::snapshot::Snapshot;

use super::keyring::Keyring;
use super::log::{Fault, Kind, decode_entry, scan};
use super::raft::LogId;
use super::{StoreError, snapshot_file};

/// A record that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub index: u64,
    /// Of the payload, in the file.
    pub offset: usize,
    pub payload_bytes: usize,
}

/// What a segment's file holds.
#[derive(Debug)]
pub struct Scanned {
    pub records: Vec<Accepted>,
    /// Where the next record goes, or where the fault is.
    pub end: usize,
    pub fault: Option<String>,
}

/// Judges a whole file of the log as a start does.
pub fn scan_segment(bytes: &[u8], number: u64) -> Scanned {
    let found = scan::scan(bytes, number, bytes.len() as u64, None);
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let records = found.places.iter().map(|place| Accepted {
        index: place.log_id.index,
        offset: size(place.offset) + super::log::HEADER_BYTES,
        payload_bytes: place.payload_bytes as usize,
    });
    Scanned {
        records: records.collect(),
        end: size(found.end),
        fault: found.fault.map(|fault| match fault {
            Fault::Torn => "torn".to_owned(),
            Fault::Damaged(why) => why,
        }),
    }
}

/// The transactions in an entry's payload.
pub fn read_transactions(payload: &[u8]) -> Result<Vec<Txn>, serde_json::Error> {
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), 1);
    let entry = decode_entry(log_id, Kind::Transactions, payload.to_vec())?;
    Ok(match entry.payload {
        EntryPayload::Normal(batch) => batch.txns.to_vec(),
        EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
    })
}

/// The state in a snapshot's file that is not sealed.
pub fn load_snapshot(path: &Path, cluster_id: &str) -> Result<Snapshot, StoreError> {
    let source = std::fs::File::open(path).map_err(StoreError::io("open", path))?;
    let keyring = Keyring::none();
    snapshot_file::load(path, source, cluster_id, &keyring).map(|(_, snapshot)| snapshot)
}
