//! The lease on disk: small, written whole, and worth nothing after the host was restarted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// In the data folder.
pub const LEASE_FILE: &str = "lease.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// On the clock that counts from the host's start.
    pub renewed_ms: u64,
    pub fence_after_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    boot_id: String,
    renewed_ms: u64,
    fence_after_ms: u64,
}

pub(super) struct LeaseFile {
    path: PathBuf,
    boot_id: String,
}

impl LeaseFile {
    pub fn new(data_dir: &Path, boot_id: &str) -> Self {
        Self { path: data_dir.join(LEASE_FILE), boot_id: boot_id.to_owned() }
    }

    /// `None` where there is none, or none since the host started.
    pub fn read(&self) -> Option<Record> {
        let stored: Stored = serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()?;
        (stored.boot_id == self.boot_id).then_some(Record {
            renewed_ms: stored.renewed_ms,
            fence_after_ms: stored.fence_after_ms,
        })
    }

    /// Whole or not at all. Not synced: it need not outlive the host's power.
    pub fn write(&self, record: &Record) -> Result<(), String> {
        let stored = Stored {
            boot_id: self.boot_id.clone(),
            renewed_ms: record.renewed_ms,
            fence_after_ms: record.fence_after_ms,
        };
        let json = serde_json::to_vec(&stored).expect("a lease is plain data");
        let aside = self.path.with_extension("json.new");
        std::fs::write(&aside, json)
            .and_then(|()| std::fs::rename(&aside, &self.path))
            .map_err(|error| format!("write {}: {error}", self.path.display()))
    }

    pub fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "the lease is left");
            }
            _ => {}
        }
    }
}
