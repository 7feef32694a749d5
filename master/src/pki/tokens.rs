//! Join tokens as the store has them: Secrets with a hash of the token's secret, its role, and when
//! it expires. Revoking one is deleting it.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_identity::{JoinRole, JoinToken};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::{Kind, ObjectKey};
use tonic::Status;

use super::CA_NAMESPACE;
use crate::store::Store;

pub use timonier_master_core::access::reserved::JOIN_TOKEN_PREFIX as TOKEN_NAME_PREFIX;

/// The type of a token's Secret.
pub const TOKEN_TYPE: &str = "timonier.io/join-token";
const ROLE: &str = "role";
const SECRET_HASH: &str = "secret-hash";
/// As RFC 3339; absent where the token does not expire.
const EXPIRES: &str = "expires";

/// The token's Secret.
pub fn to_secret(token: &JoinToken, expires: Option<Timestamp>) -> Secret {
    let mut data = vec![(ROLE, token.role.to_string()), (SECRET_HASH, token.secret_hash())];
    data.extend(expires.map(|at| (EXPIRES, at.to_string())));
    let data = data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("{TOKEN_NAME_PREFIX}{}", token.id)),
            namespace: Some(CA_NAMESPACE.to_owned()),
            ..Default::default()
        },
        type_: Some(TOKEN_TYPE.to_owned()),
        data: Some(data.collect()),
        ..Default::default()
    }
}

/// [`check`], by the newest state where this master's own copy does not know the token: it may have
/// been made at another master a moment ago.
pub async fn check_fresh(store: &Store, token: &JoinToken, role: JoinRole) -> Result<(), Status> {
    if token.role != role {
        let text = format!("the join token is for a {}, not for a {role}", token.role);
        return Err(Status::unauthenticated(text));
    }
    if check(&store.snapshot(), token, Timestamp::now()).is_ok() {
        return Ok(());
    }
    store.linearize().await.map_err(|error| Status::unavailable(error.to_string()))?;
    check(&store.snapshot(), token, Timestamp::now())
}

/// Whether the token lets in whoever shows it, for what its text says.
pub fn check(snapshot: &Snapshot, token: &JoinToken, now: Timestamp) -> Result<(), Status> {
    let hint = format!("hint: timonctl token create --role {} makes a new one", token.role);
    let refuse =
        |why: String| Status::unauthenticated(format!("join token {}: {why}; {hint}", token.id));
    let secret = stored(snapshot, &key_of(token));
    let unknown = || refuse("it is not known here: it was revoked, or is another cluster's".into());
    let secret = secret.ok_or_else(unknown)?;
    let text = |key| text(secret, key);
    if !token.matches(&text(SECRET_HASH).unwrap_or_default()) {
        return Err(refuse("its secret is wrong".into()));
    }
    if text(ROLE).as_deref() != Some(JoinRole::as_str(token.role)) {
        return Err(refuse(format!("it is not for a {}", token.role)));
    }
    match text(EXPIRES).map(|at| at.parse::<Timestamp>()) {
        None => Ok(()),
        Some(Ok(at)) if at > now => Ok(()),
        Some(Ok(at)) => Err(refuse(format!("it expired at {at}"))),
        Some(Err(_)) => Err(refuse("its expiry cannot be read".into())),
    }
}

/// The key of the token's Secret, if that is there and its time is over.
pub fn expired(snapshot: &Snapshot, token: &JoinToken, now: Timestamp) -> Option<ObjectKey> {
    let key = key_of(token);
    let expires = text(stored(snapshot, &key)?, EXPIRES)?.parse::<Timestamp>();
    expires.is_ok_and(|at| at <= now).then_some(key)
}

fn key_of(token: &JoinToken) -> ObjectKey {
    ObjectKey::new(Kind::Secret, CA_NAMESPACE, format!("{TOKEN_NAME_PREFIX}{}", token.id))
}

fn stored<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a Secret> {
    let secret = snapshot.get::<Secret>(&key.namespace, &key.name)?;
    Some(&**secret).filter(|secret| secret.type_.as_deref() == Some(TOKEN_TYPE))
}

/// An entry of a token's Secret.
fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8_lossy(&bytes.0).into_owned())
}
