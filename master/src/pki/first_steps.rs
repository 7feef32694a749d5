//! What a person finds in the data folder of a cluster's first master: a configuration for timonctl
//! and a token for each role, good for a day.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use timonier_identity::{Credentials, JoinRole, JoinToken, Subject, read_text};
use timonier_master_core::op::{Op, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Kinded;

use super::{Pki, PkiError, is_revoked, leaf_of, tokens, write};
use crate::stamp::stamp;
use crate::store::Store;

/// How long a first token lets in; kubeadm's.
const FIRST_TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(24);
const ADMIN_FILE: &str = "admin.yaml";
const TOKEN_FILES: [(JoinRole, &str); 2] =
    [(JoinRole::Node, "node-token"), (JoinRole::Master, "master-token")];
/// The administrator's certificate and key, to write the file again without a new certificate.
const ADMIN_CREDENTIALS: &str = "admin.json";
const ANY_ADDRESSES: [&str; 2] = ["0.0.0.0", "[::]"];

impl Pki {
    /// Makes the first tokens where their files are missing, or have one that has expired: whoever
    /// starts again a master that is alone finds a token that is good. One that was revoked is not
    /// made again as long as its file is there.
    pub(super) async fn first_tokens(&self, store: &Store) -> Result<(), PkiError> {
        for (role, file) in TOKEN_FILES {
            let path = self.inner.config.data_dir.join(file);
            let now = Timestamp::now();
            let mut ops = Vec::new();
            if let Some(text) = read_text(&path)? {
                let old = text.parse().ok();
                match old.and_then(|old| tokens::expired(&store.snapshot(), &old, now)) {
                    Some(key) => ops.push(Op::Remove { key, uid: None }),
                    None => continue,
                }
            }
            let token = JoinToken::new(role, self.authority().ca_hash()?)
                .map_err(|error| PkiError::Store(error.to_string()))?;
            let secret = tokens::to_secret(&token, now.checked_add(FIRST_TOKEN_LIFE).ok());
            ops.push(stamp(Op::Create(secret.into_object()), now));
            let stored = store.commit(Txn::of(ops)).await;
            stored.map_err(|error| PkiError::Store(error.to_string()))?;
            write(&path, &format!("{token}\n"))?;
        }
        Ok(())
    }

    /// The tokens in the files go on with the CA that signs now: the one before will not be believed
    /// for ever.
    pub(super) fn refresh_tokens(&self) -> Result<(), PkiError> {
        let ca_hash = self.authority().ca_hash()?;
        for (_, file) in TOKEN_FILES {
            let path = self.inner.config.data_dir.join(file);
            let token = read_text(&path)?.and_then(|text| text.parse::<JoinToken>().ok());
            if let Some(mut token) = token.filter(|token| token.ca_hash != ca_hash) {
                token.ca_hash = ca_hash;
                write(&path, &format!("{token}\n"))?;
            }
        }
        Ok(())
    }

    /// Writes the administrator's configuration where it is missing, its certificate is to be
    /// renewed or was revoked, or this master's address or the CA has changed.
    pub(super) fn refresh_admin(&self, snapshot: &Snapshot, now: i64) -> Result<(), PkiError> {
        let folder = &self.inner.config.data_dir;
        let kept = folder.join(super::FOLDER).join(ADMIN_CREDENTIALS);
        let authority = self.authority();
        let issuer = authority.certificate()?.name;
        let good = |credentials: &Credentials| {
            leaf_of(&credentials.chain_pem).is_ok_and(|leaf| {
                leaf.issuer == issuer && now < leaf.renew_at() && !is_revoked(snapshot, &leaf)
            })
        };
        let old = read_text(&kept)?.and_then(|text| {
            let (chain_pem, key_pem) = serde_json::from_str(&text).ok()?;
            Some(Credentials { chain_pem, key_pem }).filter(good)
        });
        let credentials = match old {
            Some(credentials) => credentials,
            None => {
                let new = authority.issue(&Subject::admin(), now, self.lifetimes().person)?;
                let text = serde_json::to_string(&(&new.chain_pem, &new.key_pem));
                write(&kept, &text.expect("texts are plain data"))?;
                new
            }
        };
        self.remember(leaf_of(&credentials.chain_pem)?);
        let path = folder.join(ADMIN_FILE);
        // timonctl adds to the file what it learns of the masters.
        let bundle = authority.bundle_pem();
        let mut parts = self.servers();
        parts.extend([&bundle, &credentials.chain_pem].map(|pem| STANDARD.encode(pem) + "\n"));
        let old = read_text(&path)?.unwrap_or_default();
        if parts.iter().all(|part| old.contains(part)) {
            return Ok(());
        }
        write(&path, &self.admin_file(&bundle, &credentials))
    }

    fn servers(&self) -> Vec<String> {
        self.inner.config.addresses.iter().map(|address| reachable(address)).collect()
    }

    fn admin_file(&self, bundle_pem: &str, credentials: &Credentials) -> String {
        let base64 = |text: &str| STANDARD.encode(text);
        let servers = self.servers();
        format!(
            "# timonctl's configuration for this cluster's administrator. It holds a key: keep it.\n\
             currentContext: admin\n\
             clusters:\n\
             - name: timonier\n  \
               servers: [{}]\n  \
               certificate-authority-data: {}\n\
             users:\n\
             - name: admin\n  \
               client-certificate-data: {}\n  \
               client-key-data: {}\n\
             contexts:\n\
             - name: admin\n  \
               cluster: timonier\n  \
               user: admin\n",
            servers.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", "),
            base64(bundle_pem),
            base64(&credentials.chain_pem),
            base64(&credentials.key_pem),
        )
    }
}

/// Nobody can dial `0.0.0.0` from elsewhere; here, loopback is meant.
fn reachable(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((host, port)) if ANY_ADDRESSES.contains(&host) => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    }
}
