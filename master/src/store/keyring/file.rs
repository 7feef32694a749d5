//! The file of the data keys: JSON, readable by its owner only, written whole or not at all.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::NONCE_LEN;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::protect::{Protection, Wrapping};
use super::{DataKey, Encryption, KEY_BYTES, KeyId, PLAIN, open_with, seal_with};
use crate::store::StoreError;
use crate::store::folder::write_whole_private;

pub const NAME: &str = "keyring.json";
const FORMAT: u32 = 1;
const ALGORITHM: &str = "AES-256-GCM";

#[derive(Serialize, Deserialize)]
pub struct Stored {
    format: u32,
    protection: Protection,
    active: KeyId,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    id: KeyId,
    algorithm: String,
    made: String,
    /// Base64: the key, or the key sealed.
    key: Zeroizing<String>,
}

/// A keyring's content, readable.
pub struct Opened {
    pub active: KeyId,
    pub keys: Vec<DataKey>,
    pub wrapping: Wrapping,
    /// In the file the keys are not sealed as they are to be from now on.
    pub rewrap: bool,
}

pub fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(StoreError::io("create folder", dir))
}

/// `None` when there is no file.
pub fn read(path: &Path) -> Result<Option<Stored>, StoreError> {
    let json = match std::fs::read(path) {
        Ok(json) => Zeroizing::new(json),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    warn_of_readers(path);
    // The text of a JSON error may quote what it found.
    let stored: Stored = serde_json::from_slice(&json)
        .map_err(|error| damaged(path, format!("line {}: it is not a keyring", error.line())))?;
    if stored.format != FORMAT {
        let format = stored.format;
        return Err(damaged(path, format!("its format is {format}, this build reads {FORMAT}")));
    }
    Ok(Some(stored))
}

fn warn_of_readers(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %path.display(), mode = format!("{:o}", mode & 0o777),
            "others than its owner may read the data keys; hint: chmod 600 it"
        );
    }
}

pub fn write(
    path: &Path,
    wrapping: &Wrapping,
    active: KeyId,
    keys: &[Arc<DataKey>],
    nonce: impl Fn() -> [u8; NONCE_LEN],
) -> Result<(), StoreError> {
    let stored = store(wrapping, active, keys, nonce);
    let json = Zeroizing::new(serde_json::to_vec_pretty(&stored).expect("a keyring is plain data"));
    write_whole_private(path, &json).map_err(StoreError::io("write", path))
}

/// The keys, sealed where the wrapping does.
pub fn store(
    wrapping: &Wrapping,
    active: KeyId,
    keys: &[Arc<DataKey>],
    nonce: impl Fn() -> [u8; NONCE_LEN],
) -> Stored {
    Stored {
        format: FORMAT,
        protection: wrapping.protection().clone(),
        active,
        keys: keys
            .iter()
            .map(|key| {
                let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES));
                match wrapping.cipher() {
                    Some(cipher) => {
                        let aad = key_aad(key.id);
                        seal_with(cipher, nonce(), &aad, &key.raw[..], &mut bytes);
                    }
                    None => bytes.extend_from_slice(&key.raw[..]),
                }
                StoredKey {
                    id: key.id,
                    algorithm: ALGORITHM.to_owned(),
                    made: key.made.clone(),
                    key: Zeroizing::new(STANDARD.encode(&*bytes)),
                }
            })
            .collect(),
    }
}

/// A sealed key in another key's place is not opened.
fn key_aad(id: KeyId) -> Vec<u8> {
    format!("timonier data key {id} {ALGORITHM}").into_bytes()
}

impl Stored {
    /// Opens the keys as the master was told to.
    pub fn open(&self, path: &Path, encryption: &Encryption) -> Result<Opened, StoreError> {
        if let Encryption::Changed { to, from } = encryption {
            // One that was stopped in between has changed it already.
            return self.open(path, to).or_else(|_| {
                let opened = self.open(path, from)?;
                Ok(Opened { wrapping: Wrapping::make(to)?, rewrap: true, ..opened })
            });
        }
        let wrapping = Wrapping::open(&self.protection, path, encryption)?;
        let mut keys = Vec::new();
        for stored in &self.keys {
            if stored.algorithm != ALGORITHM {
                let text = format!("key {} is for {:?}", stored.id, stored.algorithm);
                return Err(damaged(path, text));
            }
            let bytes = STANDARD.decode(stored.key.as_bytes());
            let mut bytes = Zeroizing::new(
                bytes.map_err(|_| damaged(path, format!("key {} is not base64", stored.id)))?,
            );
            if let Some(cipher) = wrapping.cipher() {
                open_with(cipher, &key_aad(stored.id), &mut bytes)
                    .ok_or_else(|| wrapping.wrong(path))?;
            }
            let raw: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_| {
                damaged(path, format!("key {} does not have {KEY_BYTES} bytes", stored.id))
            })?;
            keys.push(DataKey::new(stored.id, stored.made.clone(), Zeroizing::new(raw)));
        }
        if self.active == PLAIN || !keys.iter().any(|key| key.id == self.active) {
            return Err(damaged(path, format!("the active key, {}, is missing", self.active)));
        }
        let (wrapping, rewrap) = match wrapping.upgraded(encryption)? {
            Some(stronger) => (stronger, true),
            None => (wrapping, false),
        };
        Ok(Opened { active: self.active, keys, wrapping, rewrap })
    }
}

fn damaged(path: &Path, why: String) -> StoreError {
    StoreError::Keys {
        path: path.to_owned(),
        why,
        hint: "restore the file from where you keep a copy of it: without its keys the store \
               cannot be read; other masters of the cluster have keys and copies of their own"
            .to_owned(),
    }
}

/// There are sealed files, and no keys.
pub fn lost(path: &Path) -> StoreError {
    damaged(path, "the file is missing, and the store is sealed with keys in it".to_owned())
}
