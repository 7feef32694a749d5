//! This master's part in the cluster's trust: the CA, its own certificate, and what others get.
//!
//! The CA is kept in the store, so that all masters have it, and beside it in a sealed file, because
//! a master needs a certificate before its store is open. A master's own certificate is not kept: it
//! signs itself a new one whenever it starts, and in time before that one expires.

mod authority;
mod first_steps;
mod join;
mod noted;
mod revoked;
mod safe;
mod service;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use timonier_identity::{
    Authority, Identity, IdentityError, Lifetimes, PeerCertificate, Subject, Trust, unix_now,
    write_private,
};
use tokio::sync::{Notify, watch};

pub use authority::{CA_NAME, CA_NAMESPACE, Expiry};
pub use join::obtain;
pub use noted::note;
pub use revoked::{is_revoked, revoke};
pub use safe::Safe;
pub use service::TrustDoor;
pub use tokens::{TOKEN_NAME_PREFIX, TOKEN_TYPE, check_fresh};

use crate::store::StoreError;

const FOLDER: &str = "pki";
/// Certificates that are remembered to tell of their expiry.
const KNOWN_MAX: usize = 20_000;

/// Why a master has no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("join the masters at {address}: {why}")]
    Join { address: String, why: String },
    #[error("{0}")]
    Token(String),
    #[error("revoke the certificates of {0}: {1}")]
    Revoke(String, String),
    #[error("store the cluster's CA: {0}")]
    Store(String),
    #[error("open the keys that the cluster's CA is sealed with: {0}")]
    Keys(#[from] StoreError),
}

/// What a master's part in the trust begins with.
#[derive(Debug, Clone)]
pub struct PkiConfig {
    pub data_dir: PathBuf,
    /// By which others reach this master; for its certificate and the configuration of its
    /// administrator.
    pub addresses: Vec<String>,
    pub lifetimes: Lifetimes,
}

/// The trust as this master has it. Clones are the same.
#[derive(Clone)]
pub struct Pki {
    inner: Arc<Inner>,
}

struct Inner {
    config: PkiConfig,
    safe: Safe,
    /// This master's, once it is known.
    id: AtomicU64,
    identity: Identity,
    authority: RwLock<Arc<Authority>>,
    /// Counts the CA's changes.
    changes: watch::Sender<u64>,
    /// Asks for a look before its time.
    look: Notify,
    known: Mutex<HashMap<String, PeerCertificate>>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads the CA from the data folder, or makes one: the store may know another, which is then
    /// taken over by [`Pki::run`].
    pub fn open(config: PkiConfig, safe: Safe) -> Result<Self, PkiError> {
        let authority = match safe.read()? {
            Some(authority) => authority,
            None => {
                let authority = Authority::create(unix_now(), &config.lifetimes)?;
                safe.save(&authority)?;
                authority
            }
        };
        let credentials = own_credentials(&config, 0, &authority)?;
        let identity = Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem()))?;
        let inner = Inner {
            config,
            safe,
            id: AtomicU64::new(0),
            identity,
            authority: RwLock::new(Arc::new(authority)),
            changes: watch::Sender::new(0),
            look: Notify::new(),
            known: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This master's own, for its server and for its connections to the other masters.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.inner.authority.read().expect("no holder panics"))
    }

    /// Names this master in its certificate: `system:master:<id>`.
    pub fn name(&self, id: u64) -> Result<(), PkiError> {
        self.inner.id.store(id, Ordering::Relaxed);
        self.renew_own()
    }

    /// Seals this master's copy of the CA with a new key.
    pub async fn rotate_key(&self) -> Result<(), PkiError> {
        let safe = self.inner.safe.clone();
        let rotated = tokio::task::spawn_blocking(move || safe.rotate_key()).await;
        rotated.unwrap_or_else(|error| Err(PkiError::Store(error.to_string())))
    }

    fn id(&self) -> u64 {
        self.inner.id.load(Ordering::Relaxed)
    }

    fn lifetimes(&self) -> &Lifetimes {
        &self.inner.config.lifetimes
    }

    /// Signs with this CA from now on, and tells everybody.
    fn adopt(&self, authority: Authority) -> Result<(), PkiError> {
        self.inner.safe.save(&authority)?;
        let credentials = own_credentials(&self.inner.config, self.id(), &authority)?;
        let trust = Trust::Bundle(authority.bundle_pem());
        self.inner.identity.replace(Some(credentials), trust)?;
        *self.inner.authority.write().expect("no holder panics") = Arc::new(authority);
        self.inner.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// A new certificate of its own, from the CA it has.
    fn renew_own(&self) -> Result<(), PkiError> {
        let authority = self.authority();
        let credentials = own_credentials(&self.inner.config, self.id(), &authority)?;
        let trust = Trust::Bundle(authority.bundle_pem());
        Ok(self.inner.identity.replace(Some(credentials), trust)?)
    }

    /// Certifies the key of a request, and remembers until when.
    fn sign(
        &self,
        request_pem: &str,
        subject: &Subject,
        validity: Duration,
    ) -> Result<(String, String), IdentityError> {
        let authority = self.authority();
        let chain = authority.sign(request_pem, subject, unix_now(), validity)?;
        self.remember(leaf_of(&chain)?);
        Ok((chain, authority.bundle_pem()))
    }

    /// Remembers a certificate that was signed or shown here, to tell of its expiry.
    pub fn remember(&self, certificate: PeerCertificate) {
        let mut known = self.known();
        let newer =
            known.get(&certificate.name).is_none_or(|old| old.not_after <= certificate.not_after);
        if newer && (known.len() < KNOWN_MAX || known.contains_key(&certificate.name)) {
            known.insert(certificate.name.clone(), certificate);
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, PeerCertificate>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificate at the head of a chain.
fn leaf_of(chain_pem: &str) -> Result<PeerCertificate, IdentityError> {
    PeerCertificate::from_pem(chain_pem)
}

fn own_credentials(
    config: &PkiConfig,
    id: u64,
    authority: &Authority,
) -> Result<timonier_identity::Credentials, IdentityError> {
    let subject = Subject::master(&id.to_string(), &hosts(&config.addresses));
    authority.issue(&subject, unix_now(), config.lifetimes.machine)
}

/// Host names and addresses without ports; what stands for any address names none.
fn hosts(addresses: &[String]) -> Vec<String> {
    let host = |address: &String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    };
    let named = |host: &String| host != "0.0.0.0" && host != "::" && !host.is_empty();
    let mut hosts: Vec<String> = addresses.iter().map(host).filter(named).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    write_private(path, text).map_err(|source| PkiError::Write { path: path.to_owned(), source })
}
