//! This node's membership: its certificate, how it came by it, and how it is renewed in time.
//!
//! The first time, a join token tells which master to believe and gets the certificate; from then
//! on the certificate, kept in the data folder, is enough. It is renewed over the session's own
//! connection, which goes on.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timonier_identity::{
    Credentials, DialOptions, Identity, IdentityError, JoinRole, JoinToken, KeyRequest, Trust,
    dial, read_text, unix_now, write_private,
};
use timonier_proto::v1::join_client::JoinClient;
use timonier_proto::v1::{FollowRequest, JoinReply, JoinRequest, RenewRequest, TrustUpdate};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

/// In the data folder.
pub const PKI_FOLDER: &str = "pki";
const MEMBER_FILE: &str = "node.json";
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The same trouble is logged again only after so long.
const LOG_AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked whether the certificate is to be renewed, in a long life…
const LOOK_INTERVAL_S: i64 = 600;
/// …and how many times in a short one.
const LOOKS_PER_LIFE: i64 = 12;
/// Renewals of many nodes are spread over so long, when the CA was renewed.
const SPREAD_MAX: Duration = Duration::from_secs(30);

/// Why a node is no member of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("read {}: {why}; hint: move it away and start once with --token", path.display())]
    File { path: PathBuf, why: String },
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "{0}; hint: start once with --token @FILE or --token TEXT; a master's data folder has one in node-token, and `timonctl token create --role node` makes others"
    )]
    NoToken(String),
    #[error("the join token is for a {0}, not for a node")]
    OtherRole(JoinRole),
    #[error("join as node {node}: {why}")]
    Refused { node: String, why: String },
}

/// What is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    chain_pem: String,
    key_pem: String,
    bundle_pem: String,
}

/// This node's membership. Clones are the same.
#[derive(Debug, Clone)]
pub struct Membership {
    identity: Identity,
    path: PathBuf,
}

impl Membership {
    /// With an identity that somebody else looks after; `data_dir` keeps what is renewed.
    pub fn new(identity: Identity, data_dir: &Path) -> Self {
        Self { identity, path: data_dir.join(PKI_FOLDER).join(MEMBER_FILE) }
    }

    /// Reads the node's certificate, or gets one with the token: tries the masters in turn until
    /// one answers. An answer that says no ends it.
    pub async fn open(
        node: &str,
        data_dir: &Path,
        masters: &[String],
        token: Option<&JoinToken>,
    ) -> Result<Self, JoinError> {
        let path = data_dir.join(PKI_FOLDER).join(MEMBER_FILE);
        let why = match read(&path, node)? {
            Ok(identity) => return Ok(Self { identity, path }),
            Err(why) => why,
        };
        let Some(token) = token else { return Err(JoinError::NoToken(why)) };
        if token.role != JoinRole::Node {
            return Err(JoinError::OtherRole(token.role));
        }
        let kept = join(node, masters, token).await?;
        let identity = identity_of(&kept)?;
        let membership = Self { identity, path };
        membership.keep_file(&kept)?;
        tracing::info!(node, "joined the cluster");
        Ok(membership)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Follows the trusted CAs over the session's connection and renews the certificate in time.
    /// Never ends: what goes wrong is tried again, here or at the next session.
    pub async fn look_after(&self, channel: Channel) -> ! {
        let mut client = JoinClient::new(channel);
        let mut delay = RETRY_FIRST;
        loop {
            match client.follow(FollowRequest {}).await {
                Ok(updates) => {
                    delay = RETRY_FIRST;
                    let mut updates = updates.into_inner();
                    let mut last: Option<TrustUpdate> = None;
                    loop {
                        let update = match timeout(self.next_look(), updates.message()).await {
                            Ok(Ok(Some(update))) => Some(update),
                            Ok(_) => break,
                            Err(_) => None,
                        };
                        let first = last.is_none();
                        last = update.or(last);
                        if let Some(update) = &last
                            && let Err(why) = self.up_to(&mut client, update, first).await
                        {
                            tracing::warn!(
                                why,
                                "cannot renew this node's certificate; trying again"
                            );
                        }
                    }
                }
                // An older master: the session's end will tell.
                Err(status) if status.code() == Code::Unimplemented => pending().await,
                Err(status) => {
                    tracing::debug!(why = status.message(), "cannot follow the trusted CAs");
                }
            }
            sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    fn next_look(&self) -> Duration {
        let life = self.identity.own().map_or(0, |own| own.not_after - own.not_before);
        let seconds = (life / LOOKS_PER_LIFE).clamp(1, LOOK_INTERVAL_S);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(1))
    }

    /// Trusts what the update says, and renews the certificate where it is time.
    async fn up_to(
        &self,
        client: &mut JoinClient<Channel>,
        update: &TrustUpdate,
        first: bool,
    ) -> Result<(), String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let Some(credentials) = self.identity.credentials() else { return Ok(()) };
        if self.identity.bundle_pem().as_deref() != Some(&update.bundle_pem) {
            self.take(credentials, update.bundle_pem.clone())?;
            tracing::info!("the trusted CAs have changed");
        }
        let Some(own) = self.identity.own() else { return Ok(()) };
        let other_ca = own.issuer != update.issuer;
        if !other_ca && unix_now() < own.renew_at() {
            return Ok(());
        }
        if other_ca && !first {
            let life =
                Duration::from_secs(u64::try_from(own.not_after - own.not_before).unwrap_or(0));
            sleep(SPREAD_MAX.min(life / 24).mul_f64(fastrand::f64())).await;
        }
        let request = KeyRequest::new().map_err(|error| told(&error))?;
        let asked = client.renew(RenewRequest { request_pem: request.request_pem });
        let reply = timeout(ANSWER_DEADLINE, asked)
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let credentials = Credentials { chain_pem: reply.chain_pem, key_pem: request.key_pem };
        self.take(credentials, reply.bundle_pem)?;
        tracing::info!("this node's certificate is renewed");
        Ok(())
    }

    fn take(&self, credentials: Credentials, bundle_pem: String) -> Result<(), String> {
        let kept = Kept {
            chain_pem: credentials.chain_pem.clone(),
            key_pem: credentials.key_pem.clone(),
            bundle_pem: bundle_pem.clone(),
        };
        self.identity
            .replace(Some(credentials), Trust::Bundle(bundle_pem))
            .map_err(|error| error.to_string())?;
        self.keep_file(&kept).map_err(|error| error.to_string())
    }

    fn keep_file(&self, kept: &Kept) -> Result<(), JoinError> {
        let text = serde_json::to_string_pretty(kept).expect("texts are plain data");
        write_private(&self.path, &text)
            .map_err(|source| JoinError::Write { path: self.path.clone(), source })
    }
}

/// The identity that is kept, or why there is none to go on with.
fn read(path: &Path, node: &str) -> Result<Result<Identity, String>, JoinError> {
    let broken = |why: String| JoinError::File { path: path.to_owned(), why };
    let Some(text) = read_text(path)? else {
        return Ok(Err(format!("node {node} has no certificate yet")));
    };
    let kept: Kept = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let identity = identity_of(&kept).map_err(|error| broken(error.to_string()))?;
    let own = identity.own().ok_or_else(|| broken("no certificate is in it".into()))?;
    if own.node() != Some(node) {
        let text =
            format!("the certificate in {} is {}'s, not node {node}'s", path.display(), own.name);
        return Ok(Err(text));
    }
    if unix_now() >= own.not_after {
        return Ok(Err(format!("the certificate of node {node} has expired")));
    }
    Ok(Ok(identity))
}

fn identity_of(kept: &Kept) -> Result<Identity, IdentityError> {
    let credentials =
        Credentials { chain_pem: kept.chain_pem.clone(), key_pem: kept.key_pem.clone() };
    Identity::new(Some(credentials), Trust::Bundle(kept.bundle_pem.clone()))
}

async fn join(node: &str, masters: &[String], token: &JoinToken) -> Result<Kept, JoinError> {
    let identity = Identity::new(None, Trust::Pinned(token.ca_hash))?;
    let request = KeyRequest::new()?;
    let mut delay = RETRY_FIRST;
    let mut told: Option<(String, Instant)> = None;
    loop {
        for master in masters {
            let why = match ask(master, &identity, node, token, &request).await {
                Ok(JoinReply { chain_pem, bundle_pem, .. }) => {
                    return Ok(Kept { chain_pem, key_pem: request.key_pem, bundle_pem });
                }
                Err(Answer::Never(why)) => {
                    return Err(JoinError::Refused { node: node.to_owned(), why });
                }
                Err(Answer::NotNow(why)) => format!("join at master {master}: {why}"),
            };
            if told.as_ref().is_none_or(|(text, at)| *text != why || at.elapsed() > LOG_AGAIN) {
                tracing::warn!("{why}; trying again");
                told = Some((why, Instant::now()));
            }
        }
        sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

enum Answer {
    NotNow(String),
    Never(String),
}

async fn ask(
    master: &str,
    identity: &Identity,
    node: &str,
    token: &JoinToken,
    request: &KeyRequest,
) -> Result<JoinReply, Answer> {
    let options = DialOptions::default();
    let channel = dial(master, identity, &options).await;
    let channel = channel.map_err(|error| Answer::NotNow(error.to_string()))?;
    let asked = JoinRequest {
        token: token.to_string(),
        name: node.to_owned(),
        request_pem: request.request_pem.clone(),
    };
    let mut client = JoinClient::new(channel);
    let reply = timeout(ANSWER_DEADLINE, client.join(asked)).await;
    let reply = reply.map_err(|_| Answer::NotNow("no answer".into()))?;
    let reply = reply.map_err(|status| match status.code() {
        Code::Unauthenticated | Code::InvalidArgument | Code::PermissionDenied => {
            Answer::Never(status.message().to_owned())
        }
        _ => Answer::NotNow(status.message().to_owned()),
    })?;
    Ok(reply.into_inner())
}
