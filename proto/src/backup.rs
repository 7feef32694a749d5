//! A backup's file: a line of JSON that says what it is, the state, and a last line with the
//! checksum of all before. The state is a snapshot as the store writes it, sealed or not.
//!
//! Judges files and makes their first and last lines; what the state in it means is the store's.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Of the file; one that begins otherwise is not read.
pub const FORMAT: &str = "timonier backup 1";
/// What every format of ours begins with.
const FAMILY: &str = "timonier backup ";
/// Longest first line.
const HEADER_BYTES_MAX: usize = 64 << 10;
const TRAILER_BEGIN: &[u8] = b"\ntimonier backup end ";
const SUM_HEX_BYTES: usize = 64;
/// Of the last line, with the newline before it.
pub const TRAILER_BYTES: usize = TRAILER_BEGIN.len() + SUM_HEX_BYTES + 1;
const BUFFER_BYTES: usize = 256 << 10;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub format: String,
    pub cluster_id: String,
    /// Of the state.
    pub revision: u64,
    pub objects: u64,
    /// When it was saved, RFC 3339.
    pub time: String,
    /// Who saved it.
    pub master_id: u64,
    pub master_name: String,
    /// Of the build that saved it.
    pub version: String,
    /// What is needed to open it: `none`, `key file` or `passphrase`, those of the master.
    pub needs: String,
    /// The key that the state is sealed with, itself sealed with what is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<serde_json::Value>,
}

impl Header {
    /// Whether nobody reads it without a key.
    pub fn is_sealed(&self) -> bool {
        self.keyring.is_some()
    }

    /// As it stands in the file.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a header is plain data");
        line.push(b'\n');
        line
    }
}

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("it is not a timonier backup")]
    Foreign,
    #[error("its format is {0:?}, this build reads {FORMAT:?}; hint: take the build that saved it")]
    Format(String),
    #[error("it ends too early: it was not saved or copied whole; hint: take another copy")]
    Truncated,
    #[error("its checksum does not match: it was changed or damaged; hint: take another copy")]
    Damaged,
    #[error("read it: {0}")]
    Read(#[from] io::Error),
}

/// The sum over a file's bytes, as its last line has it.
#[derive(Debug, Clone, Default)]
pub struct Sum(Sha256);

impl Sum {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The file's last line, with the newline that ends the state.
    pub fn trailer(self) -> Vec<u8> {
        let mut line = TRAILER_BEGIN.to_vec();
        for byte in self.0.finalize() {
            line.extend_from_slice(format!("{byte:02x}").as_bytes());
        }
        line.push(b'\n');
        line
    }
}

/// A whole file that is what was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub header: Header,
    /// Where the state begins in the file.
    pub state_from: u64,
    /// Its length.
    pub state_bytes: u64,
}

/// Judges a file while it passes, in bounded memory. Nothing of the state is looked into.
#[derive(Debug, Default)]
pub struct Checker {
    /// What could still be the first line, or the last.
    pending: Vec<u8>,
    sum: Sum,
    /// Bytes that are in the sum.
    summed: u64,
    /// The first line, and where the state begins.
    head: Option<(Header, u64)>,
}

impl Checker {
    /// The next bytes of the file; an error as soon as they show that it is none of ours.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.pending.extend_from_slice(bytes);
        if self.head.is_none() {
            self.head = read_header(&self.pending, false)?;
        }
        if self.head.is_some() && self.pending.len() > TRAILER_BYTES {
            let take = self.pending.len() - TRAILER_BYTES;
            self.sum.update(&self.pending[..take]);
            self.summed += take as u64;
            self.pending.drain(..take);
        }
        Ok(())
    }

    /// The file has ended.
    pub fn finish(mut self) -> Result<Checked, BackupError> {
        if self.head.is_none() {
            self.head = read_header(&self.pending, true)?;
        }
        let (header, state_from) = self.head.ok_or(BackupError::Truncated)?;
        let is_last =
            self.pending.len() == TRAILER_BYTES && self.pending.starts_with(TRAILER_BEGIN);
        if !is_last || self.summed < state_from {
            return Err(BackupError::Truncated);
        }
        if self.sum.trailer() != self.pending {
            return Err(BackupError::Damaged);
        }
        Ok(Checked { header, state_from, state_bytes: self.summed - state_from })
    }
}

/// Reads all of `source`, as [`Checker`] does.
pub fn check(mut source: impl Read) -> Result<Checked, BackupError> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return checker.finish(),
            Ok(got) => checker.update(&buffer[..got])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The first line, once all of it is there.
fn read_header(bytes: &[u8], ended: bool) -> Result<Option<(Header, u64)>, BackupError> {
    let Some(end) = bytes.iter().take(HEADER_BYTES_MAX).position(|byte| *byte == b'\n') else {
        return match ended && bytes.starts_with(b"{\"format\":\"timonier backup ") {
            true => Err(BackupError::Truncated),
            false if ended || bytes.len() >= HEADER_BYTES_MAX => Err(BackupError::Foreign),
            false => Ok(None),
        };
    };
    #[derive(Deserialize)]
    struct Begin {
        format: String,
    }
    let begin: Begin = serde_json::from_slice(&bytes[..end]).map_err(|_| BackupError::Foreign)?;
    match begin.format.as_str() {
        FORMAT => {}
        other if other.starts_with(FAMILY) => return Err(BackupError::Format(begin.format)),
        _ => return Err(BackupError::Foreign),
    }
    // Of our format, and yet not readable.
    let header = serde_json::from_slice(&bytes[..end]).map_err(|_| BackupError::Damaged)?;
    Ok(Some((header, end as u64 + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let header = Header {
            format: FORMAT.to_owned(),
            cluster_id: "c".to_owned(),
            revision: 7,
            objects: 1,
            time: "2026-01-01T00:00:00Z".to_owned(),
            master_id: 1,
            master_name: "m1".to_owned(),
            version: "0.1.0".to_owned(),
            needs: "none".to_owned(),
            keyring: None,
        };
        let mut bytes = header.line();
        bytes.extend_from_slice(&b"some state\n".repeat(60_000));
        let mut sum = Sum::default();
        sum.update(&bytes);
        bytes.extend_from_slice(&sum.trailer());
        bytes
    }

    #[test]
    fn a_whole_file_is_accepted() {
        let bytes = file();
        let checked = check(&bytes[..]).unwrap();
        let state = &bytes[checked.state_from as usize..][..checked.state_bytes as usize];
        assert!(state.starts_with(b"some state\n") && state.ends_with(b"some state\n"));
        assert_eq!(checked.header.revision, 7);
    }

    #[test]
    fn a_file_is_judged_the_same_in_pieces_of_any_size() {
        let bytes = file();
        let whole = check(&bytes[..]).unwrap();
        for size in [1, 7, TRAILER_BYTES, 4096, bytes.len()] {
            let judge = |bytes: &[u8]| {
                let mut checker = Checker::default();
                bytes.chunks(size).try_for_each(|piece| checker.update(piece))?;
                checker.finish()
            };
            assert_eq!(judge(&bytes).unwrap(), whole, "pieces of {size}");
            let mut bad = bytes.clone();
            bad[300_000] ^= 1;
            assert!(matches!(judge(&bad), Err(BackupError::Damaged)), "pieces of {size}");
            let cut = &bytes[..bytes.len() - TRAILER_BYTES];
            assert!(matches!(judge(cut), Err(BackupError::Truncated)), "pieces of {size}");
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let bytes = file();
        let last = bytes.len();
        for cut in [0, 1, 40, 200, 300_000, last - TRAILER_BYTES, last - 1] {
            assert!(check(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in [0, 20, 100, 262_144, 300_000, last - TRAILER_BYTES, last - 10, last - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(check(&bad[..]).is_err(), "changed at {at}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(matches!(check(&longer[..]), Err(BackupError::Truncated)));
        let newer = String::from_utf8(bytes).unwrap().replacen("backup 1", "backup 9", 1);
        assert!(matches!(check(newer.as_bytes()), Err(BackupError::Format(_))));
        assert!(matches!(check(&b"\x7fELF"[..]), Err(BackupError::Foreign)));
    }
}
