//! What keeps the data keys in their file: nothing but its mode, a key in another file, or a
//! passphrase.

use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::LessSafeKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Encryption, KEY_BYTES, cipher, random};
use crate::store::StoreError;

/// Argon2id's cost for new keyrings: more than OWASP's minimum (19 MiB, 2 passes), about 0.1 s.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// A file that asks for more was not made by us: it would take the host's memory.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const SALT_BYTES: usize = 16;
/// A shorter passphrase is guessed, whatever it costs.
const PASSPHRASE_BYTES_MIN: usize = 8;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Protection {
    None,
    KeyFile,
    Passphrase {
        /// Base64.
        salt: String,
        memory_kib: u32,
        passes: u32,
    },
}

/// A protection with the key it comes down to.
pub struct Wrapping {
    protection: Protection,
    cipher: Option<LessSafeKey>,
}

impl Wrapping {
    pub fn none() -> Self {
        Self { protection: Protection::None, cipher: None }
    }

    /// For a new keyring.
    pub fn make(encryption: &Encryption) -> Result<Self, StoreError> {
        match encryption {
            Encryption::DataFolder | Encryption::Off => Ok(Self::none()),
            Encryption::Changed { to, .. } => Self::make(to),
            Encryption::KeyFile(path) => {
                Ok(Self { protection: Protection::KeyFile, cipher: Some(key_in(path)?) })
            }
            Encryption::Passphrase(path) => {
                let salt: [u8; SALT_BYTES] = random();
                let cipher = derived(path, &salt, MEMORY_KIB, PASSES)?;
                let protection = Protection::Passphrase {
                    salt: STANDARD.encode(salt),
                    memory_kib: MEMORY_KIB,
                    passes: PASSES,
                };
                Ok(Self { protection, cipher: Some(cipher) })
            }
        }
    }

    /// For a keyring that is there: what protects it must have been given.
    pub fn open(
        protection: &Protection,
        keyring: &Path,
        encryption: &Encryption,
    ) -> Result<Self, StoreError> {
        let refuse = |why: &str, hint: &str| {
            let (why, hint) = (why.to_owned(), hint.to_owned());
            StoreError::Keys { path: keyring.to_owned(), why, hint }
        };
        let cipher = match (protection, encryption) {
            (Protection::None, _) => None,
            (Protection::KeyFile, Encryption::KeyFile(path)) => Some(key_in(path)?),
            (Protection::KeyFile, _) => {
                return Err(refuse(
                    "its keys are sealed with a key file",
                    "start the master with --encryption-key-file and that file",
                ));
            }
            (Protection::Passphrase { salt, memory_kib, passes }, Encryption::Passphrase(path)) => {
                let salt = STANDARD.decode(salt).ok().filter(|salt| salt.len() >= SALT_BYTES);
                let salt = salt
                    .filter(|_| *memory_kib <= MEMORY_KIB_MAX && (1..=PASSES_MAX).contains(passes));
                let salt = salt.ok_or_else(|| {
                    refuse("its passphrase's parameters make no sense", "restore a copy of it")
                })?;
                Some(derived(path, &salt, *memory_kib, *passes)?)
            }
            (Protection::Passphrase { .. }, _) => {
                return Err(refuse(
                    "its keys are sealed with a passphrase",
                    "start the master with --encryption-passphrase-file and a file that holds it",
                ));
            }
        };
        Ok(Self { protection: protection.clone(), cipher })
    }

    /// What the keys are to be sealed with from now on, when they were not and should be.
    pub fn upgraded(&self, encryption: &Encryption) -> Result<Option<Self>, StoreError> {
        let asked = matches!(encryption, Encryption::KeyFile(_) | Encryption::Passphrase(_));
        if self.protection == Protection::None && asked {
            return Self::make(encryption).map(Some);
        }
        Ok(None)
    }

    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    pub fn cipher(&self) -> Option<&LessSafeKey> {
        self.cipher.as_ref()
    }

    pub fn text(&self) -> &'static str {
        match self.protection {
            Protection::None => "file",
            Protection::KeyFile => "key file",
            Protection::Passphrase { .. } => "passphrase",
        }
    }

    /// The refusal when the keys do not open.
    pub fn wrong(&self, keyring: &Path) -> StoreError {
        let given = self.text();
        StoreError::Keys {
            path: keyring.to_owned(),
            why: format!("this {given} does not open its keys"),
            hint: format!(
                "start the master with the {given} that the keys were sealed with; without it this \
                 master's data cannot be read: restore a backup, or let it join other masters anew"
            ),
        }
    }
}

fn refuse(path: &Path, why: String, hint: &str) -> StoreError {
    StoreError::Keys { path: path.to_owned(), why, hint: hint.to_owned() }
}

/// 32 bytes, or as many in base64 or hexadecimal.
fn key_in(path: &Path) -> Result<LessSafeKey, StoreError> {
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| {
        let hint = "make one with: head -c 32 /dev/urandom | base64 > FILE, and chmod 600 it";
        refuse(path, format!("read the key file: {error}"), hint)
    })?);
    let text = || std::str::from_utf8(&bytes).ok().map(str::trim);
    let decoded = if bytes.len() == KEY_BYTES {
        Some(bytes.clone())
    } else {
        text().and_then(|text| match text.len() {
            64 => hexadecimal(text),
            _ => STANDARD.decode(text).ok().map(Zeroizing::new),
        })
    };
    decoded
        .and_then(|key| Some(cipher(key.first_chunk().filter(|_| key.len() == KEY_BYTES)?)))
        .ok_or_else(|| {
            let hint = "it should hold 32 random bytes, as they are, in base64 or hexadecimal";
            refuse(path, "it is not a key".to_owned(), hint)
        })
}

fn hexadecimal(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let pairs = (0..text.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()
        .map(Zeroizing::new)
}

fn derived(
    path: &Path,
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
) -> Result<LessSafeKey, StoreError> {
    let text = Zeroizing::new(std::fs::read(path).map_err(|error| {
        refuse(path, format!("read the passphrase: {error}"), "give a file that holds it")
    })?);
    let passphrase = text.strip_suffix(b"\n").unwrap_or(&text);
    let passphrase = passphrase.strip_suffix(b"\r").unwrap_or(passphrase);
    if passphrase.len() < PASSPHRASE_BYTES_MIN {
        let why = format!("the passphrase is shorter than {PASSPHRASE_BYTES_MIN} bytes");
        return Err(refuse(path, why, "choose several words"));
    }
    let bad = |error: argon2::Error| {
        refuse(path, format!("make a key of the passphrase: {error}"), "restore the keyring")
    };
    let params = Params::new(memory_kib, passes, 1, Some(KEY_BYTES)).map_err(bad)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut key[..])
        .map_err(bad)?;
    Ok(cipher(&key))
}
