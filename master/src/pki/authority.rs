//! The CA in the store, and the loop that keeps certificates from expiring.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_identity::{Authority, PeerCertificate, unix_now};
use timonier_master_core::op::{Op, Rejection, Txn};
use timonier_master_core::reconcile::record::Recorder;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Kinded;
use tokio_util::sync::CancellationToken;

use super::{Pki, PkiError, is_revoked, noted, revoked};
use crate::stamp::stamp;
use crate::store::{CommitError, Store};

/// Where the CA is kept in the store.
pub use timonier_master_core::access::reserved::{CA_NAME, NAMESPACE as CA_NAMESPACE};

const CA_TYPE: &str = "timonier.io/certificate-authority";
/// How soon a change of the CA by another master is seen.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether certificates expire…
const LATE_INTERVAL_S: i64 = 10;
/// …and how often those that do are warned of.
const WARN_INTERVAL_S: i64 = 3600;
/// Late is what has less than this part of its life left: it renews itself at a third.
const LATE_PART: i64 = 6;
/// Events of one round of warnings.
const WARNINGS_MAX: usize = 100;
const COMPONENT: &str = "timonier-master";
const REASON: &str = "CertificateExpiring";
/// Short lives are renewed by looking this often in each.
const LOOKS_PER_LIFE: i64 = 12;

impl Pki {
    /// At the start: takes over the store's CA. The first master, while it is alone, puts the CA
    /// there where it is missing, and writes what a person needs for the first steps.
    pub async fn settle(&self, store: &Store) -> Result<(), PkiError> {
        self.take_over(&store.snapshot())?;
        self.refresh_admin(&store.snapshot(), unix_now())?;
        self.refresh_tokens()?;
        // Where there are others, the CA is in the store already; and one that led when it was
        // killed takes itself for the leader until they reach it, so nothing may wait for it here.
        if !*store.leadership().borrow() || store.members().len() > 1 {
            return Ok(());
        }
        self.put(store).await?;
        self.first_tokens(store).await
    }

    async fn put(&self, store: &Store) -> Result<(), PkiError> {
        if stored(&store.snapshot()).is_some() {
            return Ok(());
        }
        let secret = to_secret(&self.authority());
        let create = stamp(Op::Create(secret.into_object()), Timestamp::now());
        match store.commit(Txn::of(vec![create])).await {
            Ok(_) | Err(CommitError::Rejected(Rejection::AlreadyExists(_))) => {}
            Err(error) => return Err(PkiError::Store(error.to_string())),
        }
        self.take_over(&store.snapshot())
    }

    /// Keeps all up to date until the shutdown: follows the CA in the store, renews this master's
    /// certificate and its administrator's file, renews the CA before it expires, and drops the
    /// replaced ones when their time is over.
    pub async fn run(self, store: Store, shutdown: CancellationToken) {
        let life = i64::try_from(self.lifetimes().machine.as_secs()).unwrap_or(i64::MAX);
        let interval = LOOK_INTERVAL
            .min(Duration::from_secs(u64::try_from((life / LOOKS_PER_LIFE).max(1)).unwrap_or(1)));
        let mut warn_at = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.inner.look.notified() => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.look(&store).await {
                tracing::warn!(%error, "cannot keep the certificates up to date; trying again");
            }
            let now = unix_now();
            if now >= warn_at {
                let is_any = self.warn(&store, now).await;
                warn_at = now + if is_any { WARN_INTERVAL_S } else { LATE_INTERVAL_S };
            }
        }
    }

    async fn look(&self, store: &Store) -> Result<(), PkiError> {
        self.take_over(&store.snapshot())?;
        let now = unix_now();
        if self.identity().own().is_none_or(|own| now >= own.renew_at()) {
            self.renew_own()?;
            tracing::info!("this master's certificate is renewed");
        }
        self.refresh_admin(&store.snapshot(), now)?;
        self.refresh_tokens()?;
        if !*store.leadership().borrow() {
            return Ok(());
        }
        self.put(store).await?;
        let authority = self.authority();
        if let Some(pruned) = authority.pruned(now) {
            self.replace(store, &pruned).await?;
            tracing::info!("a replaced CA is not trusted any more");
        }
        if now >= authority.certificate()?.renew_at() {
            self.renew_authority(store).await?;
        }
        Ok(())
    }

    /// A new CA beside this one, for all masters; this master signs with it at once.
    pub async fn renew_authority(&self, store: &Store) -> Result<(), PkiError> {
        self.take_over(&store.snapshot())?;
        let renewed = self.authority().renewed(unix_now(), self.lifetimes())?;
        self.replace(store, &renewed).await?;
        let name = self.authority().certificate()?.name;
        tracing::info!(ca = name, "the cluster has a new CA; the old one stays trusted meanwhile");
        Ok(())
    }

    /// Ends all certificates of that name so far, and the sessions that were opened with them.
    pub(super) async fn revoke(&self, store: &Store, name: &str) -> Result<(), PkiError> {
        let authority = self.authority();
        // Whatever was signed ends with the CA that signed it, however long lives were set to be.
        let mut kept_until = authority.certificate()?.not_after;
        for (_, until) in authority.previous()? {
            kept_until = kept_until.max(until);
        }
        revoked::revoke(store, name, unix_now(), kept_until).await?;
        // This master's administrator may be meant.
        self.refresh_admin(&store.snapshot(), unix_now())
    }

    async fn replace(&self, store: &Store, authority: &Authority) -> Result<(), PkiError> {
        let snapshot = store.snapshot();
        let old = snapshot.get::<Secret>(CA_NAMESPACE, CA_NAME);
        let mut secret = to_secret(authority);
        // Of two masters that replace it at the same time, one is refused.
        secret.metadata.resource_version =
            old.and_then(|old| old.metadata.resource_version.clone());
        let replace = Op::Replace(secret.into_object());
        store
            .commit(Txn::of(vec![stamp(replace, Timestamp::now())]))
            .await
            .map_err(|error| PkiError::Store(error.to_string()))?;
        self.take_over(&store.snapshot())
    }

    /// Takes over the CA of the store where it is another one than this master has.
    fn take_over(&self, snapshot: &Snapshot) -> Result<(), PkiError> {
        let Some(parts) = stored(snapshot) else { return Ok(()) };
        if parts == self.authority().to_parts() {
            return Ok(());
        }
        self.adopt(Authority::from_parts(&parts)?)
    }

    /// Tells of certificates that should have been renewed by now: in the log, and in events where
    /// this master leads. Whether there are any.
    pub(super) async fn warn(&self, store: &Store, now: i64) -> bool {
        let mut ops = Vec::new();
        let snapshot = store.snapshot();
        let late = self.late(&snapshot, now);
        if late.is_empty() {
            return false;
        }
        let recorder = Recorder { component: COMPONENT, now: Timestamp::now() };
        for certificate in late {
            let (name, until) = (&certificate.name, time(certificate.not_after));
            tracing::warn!(name, until, "a certificate expires soon and has not been renewed");
            if ops.len() >= WARNINGS_MAX || !*store.leadership().borrow() {
                continue;
            }
            let text = format!(
                "the certificate of {name} expires at {until} and has not been renewed; hint: see timonctl certificate status"
            );
            let node = certificate.node().map(|node| snapshot.get::<Node>("", node));
            let warning = match node {
                Some(Some(node)) => recorder.warning(&**node, REASON, text),
                // It has left.
                Some(None) => continue,
                None => match snapshot.get::<Secret>(CA_NAMESPACE, CA_NAME) {
                    Some(ca) => recorder.warning(&**ca, REASON, text),
                    None => continue,
                },
            };
            ops.push(stamp(warning, recorder.now));
        }
        if !ops.is_empty()
            && let Err(error) = store.commit(Txn::of(ops)).await
        {
            tracing::warn!(%error, "cannot store what expires as events");
        }
        true
    }

    /// What this master has signed or seen since it started, and what is noted of nodes, by name.
    pub(super) fn all_known(&self, snapshot: &Snapshot) -> HashMap<String, PeerCertificate> {
        let mut all = self.known().clone();
        for noted in snapshot.list::<Node>(None).filter_map(|node| noted::noted(node)) {
            let newer = all.get(&noted.name).is_none_or(|seen| seen.not_after < noted.not_after);
            if newer {
                all.insert(noted.name.clone(), noted);
            }
        }
        all.retain(|_, certificate| !is_revoked(snapshot, certificate));
        all
    }

    /// Certificates that should have been renewed by now: the CA's, this master's, nodes' and people's.
    /// Those that have expired are not worth a word any more.
    pub(super) fn late(&self, snapshot: &Snapshot, now: i64) -> Vec<PeerCertificate> {
        let late = |certificate: &PeerCertificate| {
            let left = certificate.not_after - now;
            left > 0 && left < (certificate.not_after - certificate.not_before) / LATE_PART
        };
        let mut known: Vec<PeerCertificate> = self
            .all_known(snapshot)
            .into_values()
            .filter(|one| one.master().is_none() && late(one))
            .collect();
        known.extend(self.authority().certificate().ok().filter(late));
        known.extend(self.identity().own().filter(late));
        known
    }

    /// What `cluster-info` says of it.
    pub fn expiry(&self, snapshot: &Snapshot) -> Expiry {
        Expiry {
            authority: self.authority().certificate().map_or(0, |ca| ca.not_after),
            own: self.identity().not_after().unwrap_or_default(),
            late: self.late(snapshot, unix_now()).len(),
        }
    }
}

/// When certificates expire; times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    pub authority: i64,
    /// This master's own.
    pub own: i64,
    /// Certificates that should have been renewed by now.
    pub late: usize,
}

fn time(unix_s: i64) -> String {
    Timestamp::from_second(unix_s).map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

/// The CA's parts in the store.
fn stored(snapshot: &Snapshot) -> Option<BTreeMap<String, String>> {
    let secret = snapshot.get::<Secret>(CA_NAMESPACE, CA_NAME)?;
    let text = |bytes: &ByteString| String::from_utf8_lossy(&bytes.0).into_owned();
    let data = secret.data.as_ref()?;
    Some(data.iter().map(|(name, bytes)| (name.clone(), text(bytes))).collect())
}

fn to_secret(authority: &Authority) -> Secret {
    let parts = authority.to_parts().into_iter();
    Secret {
        metadata: ObjectMeta {
            name: Some(CA_NAME.to_owned()),
            namespace: Some(CA_NAMESPACE.to_owned()),
            ..Default::default()
        },
        type_: Some(CA_TYPE.to_owned()),
        data: Some(parts.map(|(name, text)| (name, ByteString(text.into_bytes()))).collect()),
        ..Default::default()
    }
}
