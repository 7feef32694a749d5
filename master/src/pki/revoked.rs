//! Certificates that are good no more before their time: all of one name that were signed until it
//! was revoked. What is signed later is good, so that a node whose key was stolen can join again.
//!
//! A Secret says whose; each entry stays until every certificate of that time has ended.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use timonier_identity::PeerCertificate;
use timonier_master_core::access::reserved::REVOKED_NAME;
use timonier_master_core::op::{Op, Rejection, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Kinded;

use super::{CA_NAMESPACE, PkiError};
use crate::stamp::stamp;
use crate::store::{CommitError, Store};

const REVOKED_TYPE: &str = "timonier.io/revoked-certificates";
/// Names that are revoked at the same time: with more, the CA is to be renewed instead.
const ENTRIES_MAX: usize = 2_000;
/// How often a list that others change at the same time is written.
const TRIES_MAX: usize = 5;

/// One name. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    /// What was signed then or before is good no more.
    signed_until: i64,
    /// All of those have ended by then.
    kept_until: i64,
}

/// Whether the certificate was revoked, by the state as this master knows it.
pub fn is_revoked(snapshot: &Snapshot, certificate: &PeerCertificate) -> bool {
    signed_until(snapshot, &certificate.name).is_some_and(|until| certificate.issued_at() <= until)
}

/// Until when certificates of that name are revoked.
pub fn signed_until(snapshot: &Snapshot, name: &str) -> Option<i64> {
    let secret = snapshot.get::<Secret>(CA_NAMESPACE, REVOKED_NAME)?;
    let entry = secret.data.as_ref()?.get(&key_of(name))?;
    // What cannot be read was meant to keep somebody out.
    Some(read(entry).map_or(i64::MAX, |entry| entry.signed_until))
}

/// Revokes what was signed for that name up to `now`; all of it will have ended at `kept_until`.
pub async fn revoke(store: &Store, name: &str, now: i64, kept_until: i64) -> Result<(), PkiError> {
    let entry = Entry { name: name.to_owned(), signed_until: now, kept_until };
    for _ in 0..TRIES_MAX {
        let txn = Txn::of(vec![stamp(with(&store.snapshot(), &entry, now)?, Timestamp::now())]);
        match store.commit(txn).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Rejected(
                Rejection::Conflict { .. } | Rejection::AlreadyExists(_),
            )) => {
                let current = store.linearize().await;
                current.map_err(|error| PkiError::Store(error.to_string()))?;
            }
            Err(error) => return Err(PkiError::Revoke(name.to_owned(), error.to_string())),
        }
    }
    let why = format!("the list was changed meanwhile, {TRIES_MAX} times; hint: try again");
    Err(PkiError::Revoke(name.to_owned(), why))
}

/// Writes the list with that entry and without those whose time is over.
fn with(snapshot: &Snapshot, entry: &Entry, now: i64) -> Result<Op, PkiError> {
    let old = snapshot.get::<Secret>(CA_NAMESPACE, REVOKED_NAME);
    let mut data: BTreeMap<String, ByteString> =
        old.and_then(|old| old.data.clone()).unwrap_or_default();
    data.retain(|_, bytes| read(bytes).is_none_or(|entry| entry.kept_until > now));
    data.remove(&key_of(&entry.name));
    if data.len() >= ENTRIES_MAX {
        let why = format!(
            "{ENTRIES_MAX} names are revoked already; hint: timonctl certificate renew --ca ends all old certificates in time"
        );
        return Err(PkiError::Revoke(entry.name.clone(), why));
    }
    let text = serde_json::to_vec(entry).expect("texts and numbers are plain data");
    data.insert(key_of(&entry.name), ByteString(text));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(REVOKED_NAME.to_owned()),
            namespace: Some(CA_NAMESPACE.to_owned()),
            // Of two masters that write it at the same time, one is refused.
            resource_version: old.and_then(|old| old.metadata.resource_version.clone()),
            ..Default::default()
        },
        type_: Some(REVOKED_TYPE.to_owned()),
        data: Some(data),
        ..Default::default()
    };
    let object = secret.into_object();
    Ok(if old.is_some() { Op::Replace(object) } else { Op::Create(object) })
}

fn read(bytes: &ByteString) -> Option<Entry> {
    serde_json::from_slice(&bytes.0).ok()
}

/// Names may hold what keys may not.
fn key_of(name: &str) -> String {
    Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, issued_at: i64) -> PeerCertificate {
        let (not_before, not_after) = (issued_at - 300, issued_at + 90 * 86_400);
        let groups = vec!["system:nodes".to_owned()];
        let (serial, issuer) = ("01".to_owned(), "ca".to_owned());
        PeerCertificate { name: name.to_owned(), groups, serial, issuer, not_before, not_after }
    }

    fn state(snapshot: &Snapshot, entry: &Entry, now: i64) -> Snapshot {
        match with(snapshot, entry, now).unwrap() {
            Op::Create(object) | Op::Replace(object) => Snapshot::rebuild(1, [object], []),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_signed_before_is_good_no_more_and_what_is_signed_later_is() {
        let now = 1_800_000_000;
        let entry =
            |name: &str| Entry { name: name.to_owned(), signed_until: now, kept_until: now + 100 };
        let empty = Snapshot::rebuild(1, [], []);
        let n1 = "system:node:n1";
        assert!(!is_revoked(&empty, &certificate(n1, now)));
        let one = state(&empty, &entry(n1), now);
        assert!(is_revoked(&one, &certificate(n1, now - 1)));
        assert!(is_revoked(&one, &certificate(n1, now)));
        assert!(!is_revoked(&one, &certificate(n1, now + 1)));
        assert!(!is_revoked(&one, &certificate("system:node:n10", now)));
        // Entries stay as long as a certificate could, and no longer.
        let two = state(&one, &entry("ann"), now + 99);
        assert!(is_revoked(&two, &certificate(n1, now)));
        let later = state(&two, &entry("ann"), now + 100);
        assert!(!is_revoked(&later, &certificate(n1, now)));
        assert!(is_revoked(&later, &certificate("ann", now)));
    }
}
