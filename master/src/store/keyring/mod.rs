//! The data keys that the store's files are sealed with, and how they are rotated.
//!
//! A [`Keyring`] holds keys in memory and in one small file ([`file`]); it knows nothing of records
//! and snapshots. Each master has its own: what goes from one to another goes over TLS.

mod file;
mod protect;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use self::protect::Wrapping;
use super::StoreError;

/// A data key's number in a record; 0 stands for what is not sealed.
pub type KeyId = u16;
/// The number that says that something is not sealed.
pub const PLAIN: KeyId = 0;
/// Bytes of a data key: AES-256's.
pub const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// What sealing adds: the nonce before, the tag behind.
pub const SEAL_BYTES: usize = NONCE_LEN + TAG_BYTES;
/// Random part of a nonce; the rest counts.
const NONCE_PREFIX_BYTES: usize = 8;
/// Keys that a keyring holds at most: a rotation that finds so many in use is refused.
const KEYS_MAX: usize = 64;

/// Where the keys come from, and what keeps them from who reads the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Data keys lie in the data folder, readable by its owner only.
    #[default]
    DataFolder,
    /// They lie there too, sealed with the 32-byte key in this file.
    KeyFile(PathBuf),
    /// They lie there too, sealed with a key made of the passphrase in this file.
    Passphrase(PathBuf),
    /// They may still be sealed as they were before, and are sealed anew when they are opened.
    Changed { to: Box<Encryption>, from: Box<Encryption> },
    /// Nothing is sealed, as before there were keys. To measure what sealing costs, and for tests.
    Off,
}

/// What `timonctl encryption status` shows of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    pub id: KeyId,
    /// When it was made, as RFC 3339.
    pub made: String,
    pub active: bool,
}

/// A key that seals and opens.
pub struct DataKey {
    pub id: KeyId,
    made: String,
    raw: Zeroizing<[u8; KEY_BYTES]>,
    cipher: LessSafeKey,
}

struct Keys {
    /// [`PLAIN`] when nothing is sealed.
    active: KeyId,
    all: BTreeMap<KeyId, Arc<DataKey>>,
}

pub struct Keyring {
    path: PathBuf,
    wrapping: Wrapping,
    keys: RwLock<Keys>,
    /// Held by whoever changes the file.
    changing: Mutex<()>,
    nonces: Nonces,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.info()).finish_non_exhaustive()
    }
}

/// A number used once: 64 random bits, drawn anew at each start and after 2³² uses, then a counter
/// of 32 bits. Two nonces under one key are equal only if two draws are: after a thousand starts
/// the chance is 2⁻⁴⁵.
struct Nonces(Mutex<([u8; NONCE_PREFIX_BYTES], u32)>);

impl Nonces {
    fn new() -> Self {
        Self(Mutex::new((random(), 0)))
    }

    fn next(&self) -> [u8; NONCE_LEN] {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (prefix, counter) = *state;
        *state = match counter.checked_add(1) {
            Some(next) => (prefix, next),
            None => (random(), 0),
        };
        drop(state);
        let mut nonce = [0; NONCE_LEN];
        nonce[..NONCE_PREFIX_BYTES].copy_from_slice(&prefix);
        nonce[NONCE_PREFIX_BYTES..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

/// From the system's generator.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random generator works");
    bytes
}

/// Why something sealed was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("it is sealed with key {0}, which the keyring does not have")]
    NoKey(KeyId),
    #[error("key {0} does not open it: it was changed, or the key is another one")]
    Refused(KeyId),
}

impl DataKey {
    fn new(id: KeyId, made: String, raw: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self { id, made, cipher: cipher(&raw), raw }
    }

    fn generate(id: KeyId) -> Self {
        Self::new(
            id,
            Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            Zeroizing::new(random()),
        )
    }
}

fn cipher(raw: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, raw).expect("the key has AES-256's length"))
}

/// Appends `plain`, sealed: nonce, ciphertext, tag.
fn seal_with(
    cipher: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    plain: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&nonce);
    let begin = out.len();
    out.extend_from_slice(plain);
    let tag = cipher
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut out[begin..],
        )
        .expect("a message is shorter than AES-GCM's 64 GiB");
    out.extend_from_slice(tag.as_ref());
}

/// What [`seal_with`] made becomes the plain text again, in place.
fn open_with(cipher: &LessSafeKey, aad: &[u8], sealed: &mut Vec<u8>) -> Option<()> {
    let nonce: [u8; NONCE_LEN] = sealed.first_chunk().copied()?;
    let nonce = Nonce::assume_unique_for_key(nonce);
    let length = cipher.open_within(nonce, Aad::from(aad), sealed, NONCE_LEN..).ok()?.len();
    sealed.truncate(length);
    Some(())
}

impl Keyring {
    /// Reads the keys in `dir`, or makes the first one. `begun`: sealed files are there already, so
    /// that keys which are missing are lost, not yet to be made. Blocks, for a passphrase for about
    /// a tenth of a second.
    pub fn open(dir: &Path, encryption: &Encryption, begun: bool) -> Result<Self, StoreError> {
        let path = dir.join(file::NAME);
        let keyring = |wrapping, active, all| Self {
            path: path.clone(),
            wrapping,
            keys: RwLock::new(Keys { active, all }),
            changing: Mutex::default(),
            nonces: Nonces::new(),
        };
        if *encryption == Encryption::Off && !path.exists() {
            return Ok(Self::none());
        }
        if !path.exists() && begun {
            return Err(file::lost(&path));
        }
        file::make_dir(dir)?;
        if let Some(stored) = file::read(&path)? {
            let opened = stored.open(&path, encryption)?;
            let all = opened.keys.into_iter().map(|key| (key.id, Arc::new(key))).collect();
            let active = if *encryption == Encryption::Off { PLAIN } else { opened.active };
            let keyring = keyring(opened.wrapping, active, all);
            if opened.rewrap {
                keyring.save(active)?;
                tracing::info!(file = %path.display(), "the data keys are sealed with what was given now");
            }
            return Ok(keyring);
        }
        let first = DataKey::generate(PLAIN + 1);
        let active = first.id;
        let wrapping = Wrapping::make(encryption)?;
        let keyring = keyring(wrapping, active, BTreeMap::from([(active, Arc::new(first))]));
        keyring.save(active)?;
        tracing::info!(file = %path.display(), "made the first key that the store is sealed with");
        Ok(keyring)
    }

    /// A keyring of one new key, to seal a copy of the store with, and that key for the copy's
    /// head, sealed with what protects this keyring. `None` when that is nothing outside the data
    /// folder: the copy would carry its own key.
    pub fn for_a_copy(&self) -> Option<(Self, serde_json::Value)> {
        self.wrapping.cipher().filter(|_| self.active_id() != PLAIN)?;
        let key = Arc::new(DataKey::generate(PLAIN + 1));
        let stored =
            file::store(&self.wrapping, key.id, std::slice::from_ref(&key), || self.nonces.next());
        let head = serde_json::to_value(&stored).expect("a keyring is plain data");
        Some((Self::in_memory(key.id, [key]), head))
    }

    /// The keyring that a copy was sealed with, out of its head. `path` is for the errors.
    pub fn of_a_copy(
        path: &Path,
        head: serde_json::Value,
        encryption: &Encryption,
    ) -> Result<Self, StoreError> {
        let stored: file::Stored = serde_json::from_value(head).map_err(|_| StoreError::Keys {
            path: path.to_owned(),
            why: "they are of a format that this build does not know".to_owned(),
            hint: "take the build that made the copy".to_owned(),
        })?;
        let opened = stored.open(path, encryption)?;
        Ok(Self::in_memory(opened.active, opened.keys.into_iter().map(Arc::new)))
    }

    fn in_memory(active: KeyId, keys: impl IntoIterator<Item = Arc<DataKey>>) -> Self {
        let all = keys.into_iter().map(|key| (key.id, key)).collect();
        Self { keys: RwLock::new(Keys { active, all }), ..Self::none() }
    }

    /// One that seals nothing.
    pub fn none() -> Self {
        Self {
            path: PathBuf::new(),
            wrapping: Wrapping::none(),
            keys: RwLock::new(Keys { active: PLAIN, all: BTreeMap::new() }),
            changing: Mutex::default(),
            nonces: Nonces::new(),
        }
    }

    /// The key that new things are sealed with; `None` when nothing is sealed.
    pub fn active(&self) -> Option<Arc<DataKey>> {
        let keys = self.keys();
        keys.all.get(&keys.active).cloned()
    }

    /// The number of [`Self::active`], or [`PLAIN`].
    pub fn active_id(&self) -> KeyId {
        self.keys().active
    }

    /// Appends `plain`, sealed: [`SEAL_BYTES`] more. Whoever opens it must give the same `aad`.
    pub fn seal(&self, key: &DataKey, aad: &[u8], plain: &[u8], out: &mut Vec<u8>) {
        seal_with(&key.cipher, self.nonces.next(), aad, plain, out);
    }

    /// What was sealed becomes plain, in place.
    pub fn unseal(&self, id: KeyId, aad: &[u8], sealed: &mut Vec<u8>) -> Result<(), OpenError> {
        let key = self.keys().all.get(&id).cloned().ok_or(OpenError::NoKey(id))?;
        open_with(&key.cipher, aad, sealed).ok_or(OpenError::Refused(id))
    }

    /// Makes a key and seals with it from now on. On the disk when this returns. Blocks.
    pub fn rotate(&self) -> Result<KeyId, StoreError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let refuse = |why: &str, hint: &str| StoreError::Keys {
            path: self.path.clone(),
            why: why.to_owned(),
            hint: hint.to_owned(),
        };
        let next = {
            let keys = self.keys();
            if keys.active == PLAIN {
                return Err(refuse("nothing is sealed here", "start the master with encryption"));
            }
            if keys.all.len() >= KEYS_MAX {
                let why = format!("{KEYS_MAX} keys are in use by the store's files");
                return Err(refuse(&why, "old ones go once snapshots can be written again"));
            }
            let newest = keys.all.keys().next_back().copied().unwrap_or(PLAIN);
            newest.checked_add(1).ok_or_else(|| {
                refuse("its numbers are used up", "make a new cluster from a backup")
            })?
        };
        let key = Arc::new(DataKey::generate(next));
        // In the file before anything is sealed with it; active there only with it in memory.
        self.keys_mut().all.insert(next, key);
        if let Err(error) = self.save(next) {
            self.keys_mut().all.remove(&next);
            return Err(error);
        }
        self.keys_mut().active = next;
        Ok(next)
    }

    /// Forgets the keys that nothing needs any more; answers which. Blocks.
    pub fn retain(&self, used: &BTreeSet<KeyId>) -> Result<Vec<KeyId>, StoreError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let active = self.active_id();
        let unused: Vec<KeyId> = (self.keys().all.keys().copied())
            .filter(|id| *id != active && !used.contains(id))
            .collect();
        if unused.is_empty() || active == PLAIN {
            return Ok(Vec::new());
        }
        let mut dropped = Vec::new();
        for id in &unused {
            dropped.extend(self.keys_mut().all.remove(id));
        }
        if let Err(error) = self.save(active) {
            self.keys_mut().all.extend(dropped.into_iter().map(|key| (key.id, key)));
            return Err(error);
        }
        Ok(unused)
    }

    pub fn info(&self) -> Vec<KeyInfo> {
        let keys = self.keys();
        keys.all
            .values()
            .map(|key| KeyInfo {
                id: key.id,
                made: key.made.clone(),
                active: key.id == keys.active,
            })
            .collect()
    }

    /// What keeps the keys themselves: `file`, `key file` or `passphrase`.
    pub fn protection(&self) -> &'static str {
        if self.active_id() == PLAIN { "off" } else { self.wrapping.text() }
    }

    fn save(&self, active: KeyId) -> Result<(), StoreError> {
        let keys: Vec<Arc<DataKey>> = self.keys().all.values().cloned().collect();
        file::write(&self.path, &self.wrapping, active, &keys, || self.nonces.next())
    }

    fn keys(&self) -> std::sync::RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_mut(&self) -> std::sync::RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_do_not_repeat_and_the_prefix_changes_when_the_counter_is_used_up() {
        let nonces = Nonces::new();
        let (first, second) = (nonces.next(), nonces.next());
        assert_eq!(first[..NONCE_PREFIX_BYTES], second[..NONCE_PREFIX_BYTES]);
        assert_ne!(first, second);
        nonces.0.lock().unwrap().1 = u32::MAX;
        let (last, anew) = (nonces.next(), nonces.next());
        assert_eq!(last[NONCE_PREFIX_BYTES..], [0xff; 4]);
        assert_ne!(last[..NONCE_PREFIX_BYTES], anew[..NONCE_PREFIX_BYTES]);
    }

    #[test]
    fn what_is_sealed_opens_only_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path(), &Encryption::DataFolder, false).unwrap();
        let key = keyring.active().unwrap();
        let mut sealed = Vec::new();
        keyring.seal(&key, b"here", b"a secret", &mut sealed);
        assert_eq!(sealed.len(), b"a secret".len() + SEAL_BYTES);
        let mut elsewhere = sealed.clone();
        let refused = keyring.unseal(key.id, b"there", &mut elsewhere);
        assert_eq!(refused, Err(OpenError::Refused(key.id)));
        assert_eq!(keyring.unseal(9, b"here", &mut sealed.clone()), Err(OpenError::NoKey(9)));
        keyring.unseal(key.id, b"here", &mut sealed).unwrap();
        assert_eq!(sealed, b"a secret");
        assert!(!format!("{keyring:?}").contains("raw"), "{keyring:?}");
    }

    #[test]
    fn a_key_in_use_is_kept_and_another_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path(), &Encryption::DataFolder, false).unwrap();
        keyring.rotate().unwrap();
        keyring.rotate().unwrap();
        assert_eq!(keyring.retain(&BTreeSet::from([1])).unwrap(), [2]);
        drop(keyring);
        let again = Keyring::open(dir.path(), &Encryption::DataFolder, true).unwrap();
        let ids: Vec<_> = again.info().iter().map(|key| (key.id, key.active)).collect();
        assert_eq!(ids, [(1, false), (3, true)]);
    }
}
