//! [`Safe`]: where a master keeps the CA on its disk, sealed like the store's files.
//!
//! It has a keyring of its own, because a master needs the CA before its store is open; what keeps
//! the keys of both (a key file, a passphrase) is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use timonier_identity::{Authority, IdentityError, read_text};

use super::{FOLDER, PkiError, write};
use crate::store::{Encryption, KeyId, Keyring};

/// The CA with its key.
const AUTHORITY_FILE: &str = "authority.json";
/// The trusted CAs' certificates, for people.
const BUNDLE_FILE: &str = "ca.crt";
const KEYS_FOLDER: &str = "keys";
/// What is sealed is opened for nothing else.
const PURPOSE: &[u8] = b"timonier cluster ca";

/// The CA's file and what opens it. Clones are the same.
#[derive(Clone)]
pub struct Safe {
    folder: PathBuf,
    keyring: Arc<Keyring>,
    /// Held while the file is written.
    writing: Arc<Mutex<()>>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    /// The CA's parts, as JSON, sealed with this key; base64.
    Sealed { key: KeyId, sealed: String },
    /// As long as the store is not sealed either.
    Plain(BTreeMap<String, String>),
}

impl fmt::Debug for Safe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safe").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Safe {
    /// Of the master with this data folder. Makes a key where there is none, and blocks for about a
    /// tenth of a second for a passphrase.
    pub fn open(data_dir: &Path, encryption: &Encryption) -> Result<Self, PkiError> {
        let folder = data_dir.join(FOLDER);
        let kept = kept(&folder.join(AUTHORITY_FILE))?;
        let begun = matches!(kept, Some(Kept::Sealed { .. }));
        let keyring = Keyring::open(&folder.join(KEYS_FOLDER), encryption, begun)?;
        Ok(Self { folder, keyring: Arc::new(keyring), writing: Arc::default() })
    }

    /// The CA of a master with this data folder, for tests and benchmarks that run beside it. Makes
    /// nothing; `None` where none is kept yet.
    pub fn peek(data_dir: &Path, encryption: &Encryption) -> Result<Option<Authority>, PkiError> {
        if !data_dir.join(FOLDER).join(AUTHORITY_FILE).exists() {
            return Ok(None);
        }
        Self::open(data_dir, encryption)?.read()
    }

    /// The CA; `None` where none is kept yet.
    pub fn read(&self) -> Result<Option<Authority>, PkiError> {
        let path = self.folder.join(AUTHORITY_FILE);
        let parts = match kept(&path)? {
            None => return Ok(None),
            Some(Kept::Plain(parts)) => parts,
            Some(Kept::Sealed { key, sealed }) => {
                let mut bytes =
                    STANDARD.decode(sealed).map_err(|error| unreadable(&path, &error))?;
                let opened = self.keyring.unseal(key, PURPOSE, &mut bytes);
                opened.map_err(|error| unreadable(&path, &error))?;
                serde_json::from_slice(&bytes).map_err(|error| unreadable(&path, &error))?
            }
        };
        Ok(Some(Authority::from_parts(&parts)?))
    }

    /// Keeps this CA instead of the one before.
    pub(super) fn save(&self, authority: &Authority) -> Result<(), PkiError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(authority)
    }

    /// Seals the CA with a new key, if it is sealed, and forgets the old one. Blocks.
    pub(super) fn rotate_key(&self) -> Result<(), PkiError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(authority) = self.read()?.filter(|_| self.keyring.active().is_some()) else {
            return Ok(());
        };
        self.keyring.rotate()?;
        self.write(&authority)?;
        // Only the new one is in use.
        self.keyring.retain(&BTreeSet::new())?;
        Ok(())
    }

    fn write(&self, authority: &Authority) -> Result<(), PkiError> {
        let parts = authority.to_parts();
        let kept = match self.keyring.active() {
            None => Kept::Plain(parts),
            Some(key) => {
                let plain = serde_json::to_vec(&parts).expect("texts are plain data");
                let mut sealed = Vec::new();
                self.keyring.seal(&key, PURPOSE, &plain, &mut sealed);
                Kept::Sealed { key: key.id, sealed: STANDARD.encode(sealed) }
            }
        };
        let text = serde_json::to_string_pretty(&kept).expect("texts are plain data");
        write(&self.folder.join(AUTHORITY_FILE), &text)?;
        write(&self.folder.join(BUNDLE_FILE), &authority.bundle_pem())
    }
}

fn kept(path: &Path) -> Result<Option<Kept>, PkiError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &dyn fmt::Display) -> PkiError {
    let (what, why) = (path.display().to_string(), error.to_string());
    PkiError::Identity(IdentityError::Read { what, why })
}
