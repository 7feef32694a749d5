//! Tokens of service accounts: JSON web tokens that the masters sign with Ed25519 and check against
//! the state. Nothing of a token is stored; one ends at its time, or with its service account or
//! the pod that it was made for.
//!
//! Only this one form of a token is read: another algorithm in its header is no token of ours.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use timonier_identity::PeerCertificate;
use timonier_master_core::access::UserInfo;
use timonier_master_core::object::{is_ending, is_finished, uid_of};
use timonier_master_core::snapshot::Snapshot;
use tonic::Status;

use crate::caller::TokenReview;
use crate::pki;
use crate::store::Store;

/// Where the signing keys are kept, with the cluster's other secrets. Removing the object revokes
/// every token; the next leadership makes a new one.
pub use timonier_master_core::access::reserved::{
    NAMESPACE as KEYS_NAMESPACE, SIGNING_KEYS_NAME as KEYS_NAME,
};

/// Entry that names the key to sign with; the others only check.
const CURRENT: &str = "current";
const PUBLIC_SUFFIX: &str = ".pub";

/// Who signs, and for whom where nobody else is named.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Life of a token where none is asked for, in seconds.
pub const LIFE_SECONDS_DEFAULT: u64 = 3_600;
/// The shortest and the longest life, in seconds.
pub const LIFE_SECONDS_MIN: u64 = 600;
pub const LIFE_SECONDS_MAX: u64 = 30 * 24 * 3_600;
/// A longer text is no token.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Clocks of masters may differ by so much, in seconds.
const SKEW_SECONDS: i64 = 10;

/// Why a token is not believed, or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not one of a service account of this cluster")]
    Malformed,
    #[error("the token's signature is not this cluster's")]
    BadSignature,
    #[error("the token is for {0}, not for the masters")]
    OtherAudience(String),
    #[error("the token has expired; hint: timonctl create token makes a new one")]
    Expired,
    #[error("the token is revoked: {0} is gone")]
    Revoked(String),
    #[error("the cluster has no signing key yet; hint: try again in a second")]
    NoKey,
}

/// What a token says, in Kubernetes' form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: i64,
    pub nbf: i64,
    pub iat: i64,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

/// What a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Named,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub uid: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default)]
    typ: String,
}

/// A new signing key, as the object that keeps it.
pub fn new_keys() -> Result<Secret, ring::error::Unspecified> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())?;
    let pair =
        Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(|_| ring::error::Unspecified)?;
    let public = pair.public_key().as_ref().to_vec();
    let kid: String = public.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let data = [
        (CURRENT.to_owned(), ByteString(kid.clone().into_bytes())),
        (format!("{kid}{PUBLIC_SUFFIX}"), ByteString(public)),
        (kid, ByteString(document.as_ref().to_vec())),
    ];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(KEYS_NAME.to_owned()),
            namespace: Some(KEYS_NAMESPACE.to_owned()),
            ..Default::default()
        },
        type_: Some("timonier.io/signing-keys".to_owned()),
        data: Some(data.into()),
        ..Default::default()
    })
}

fn entry<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a [u8]> {
    let keys = snapshot.get::<Secret>(KEYS_NAMESPACE, KEYS_NAME)?;
    keys.data.as_ref()?.get(name).map(|value| value.0.as_slice())
}

/// A life that is asked for, in seconds, brought within the bounds; 0 asks for the default.
pub fn life_s(asked: u64) -> u64 {
    match asked {
        0 => LIFE_SECONDS_DEFAULT,
        asked => asked.clamp(LIFE_SECONDS_MIN, LIFE_SECONDS_MAX),
    }
}

/// A token of that service account, for those audiences (none: the masters), that lives
/// `life_seconds` (brought within the bounds) from `now`; and when it ends.
pub fn sign(
    snapshot: &Snapshot,
    account: &ServiceAccount,
    audiences: &[String],
    pod: Option<Named>,
    life_seconds: u64,
    now: Timestamp,
) -> Result<(String, Timestamp), TokenError> {
    let id = uuid::Uuid::new_v4().to_string();
    sign_as(snapshot, account, audiences, pod, life_seconds, now, id)
}

/// [`sign`], with the token's id: the same state, time and id give the same token.
pub fn sign_as(
    snapshot: &Snapshot,
    account: &ServiceAccount,
    audiences: &[String],
    pod: Option<Named>,
    life_seconds: u64,
    now: Timestamp,
    id: String,
) -> Result<(String, Timestamp), TokenError> {
    let kid = entry(snapshot, CURRENT)
        .and_then(|kid| std::str::from_utf8(kid).ok())
        .ok_or(TokenError::NoKey)?;
    let pair = entry(snapshot, kid)
        .and_then(|document| Ed25519KeyPair::from_pkcs8(document).ok())
        .ok_or(TokenError::NoKey)?;
    let life = life_s(life_seconds);
    let (at, meta) = (now.as_second(), &account.metadata);
    let namespace = meta.namespace.clone().unwrap_or_default();
    let name = meta.name.clone().unwrap_or_default();
    let exp = at + i64::try_from(life).unwrap_or(i64::MAX / 2);
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: format!("system:serviceaccount:{namespace}:{name}"),
        aud: if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences.to_vec() },
        exp,
        nbf: at,
        iat: at,
        jti: id,
        bound: Bound {
            namespace,
            serviceaccount: Named { name, uid: uid_of(meta).to_owned() },
            pod,
        },
    };
    let header = Header { alg: "EdDSA".into(), kid: kid.to_owned(), typ: "JWT".into() };
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
    Ok((format!("{signed}.{signature}"), Timestamp::from_second(exp).unwrap_or(now)))
}

fn encode(part: &impl Serialize) -> String {
    // Texts and numbers always have a JSON form.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap_or_default())
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// Whose token it is: signed here, for the masters, in its time, of a service account (and a pod)
/// that are still there.
pub fn verify(snapshot: &Snapshot, text: &str, now: Timestamp) -> Result<UserInfo, TokenError> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed);
    }
    let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let header: Header = decode(header)?;
    if header.alg != "EdDSA" {
        return Err(TokenError::Malformed);
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
    let public = entry(snapshot, &format!("{}{PUBLIC_SUFFIX}", header.kid))
        .ok_or(TokenError::BadSignature)?;
    UnparsedPublicKey::new(&ED25519, public)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| TokenError::BadSignature)?;
    // Only now is anything of it believed.
    let claims: Claims = decode(claims)?;
    if claims.iss != ISSUER || !claims.aud.iter().any(|audience| audience == ISSUER) {
        return Err(TokenError::OtherAudience(claims.aud.join(", ")));
    }
    let at = now.as_second();
    if at >= claims.exp || at < claims.nbf.saturating_sub(SKEW_SECONDS) {
        return Err(TokenError::Expired);
    }
    let Bound { namespace, serviceaccount, pod } = &claims.bound;
    let lives = snapshot
        .get::<ServiceAccount>(namespace, &serviceaccount.name)
        .is_some_and(|a| uid_of(&a.metadata) == serviceaccount.uid && !is_ending(&a.metadata));
    if !lives {
        let what = format!("service account {namespace}/{}", serviceaccount.name);
        return Err(TokenError::Revoked(what));
    }
    if let Some(pod) = pod {
        let lives = snapshot
            .get::<Pod>(namespace, &pod.name)
            .is_some_and(|found| uid_of(&found.metadata) == pod.uid && !is_finished(found));
        if !lives {
            return Err(TokenError::Revoked(format!("pod {namespace}/{}", pod.name)));
        }
    }
    Ok(UserInfo::of_service_account(namespace, &serviceaccount.name, &serviceaccount.uid))
}

/// Tells the server's layer whose a bearer token is, and which certificates were revoked.
#[derive(Clone)]
pub struct StoreTokens(pub Store);

impl TokenReview for StoreTokens {
    fn review(&self, token: &str) -> Result<(String, Vec<String>), Status> {
        let user = verify(&self.0.snapshot(), token, Timestamp::now())
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        Ok((user.name, user.groups))
    }

    fn is_revoked(&self, certificate: &PeerCertificate) -> bool {
        pki::is_revoked(&self.0.snapshot(), certificate)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use timonier_proto::Kinded;

    use super::*;

    fn account(uid: &str) -> ServiceAccount {
        let meta = json!({"name": "robot", "namespace": "team", "uid": uid});
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    fn pod(uid: &str, phase: &str) -> Pod {
        let meta = json!({"name": "p", "namespace": "team", "uid": uid});
        serde_json::from_value(json!({"metadata": meta, "status": {"phase": phase}})).unwrap()
    }

    fn state(keys: &Secret, account: ServiceAccount, pod: Pod) -> Snapshot {
        let objects = [keys.clone().into_object(), account.into_object(), pod.into_object()];
        Snapshot::rebuild(1, objects, [])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_account_its_pod_and_its_time() {
        let keys = new_keys().unwrap();
        let now = state(&keys, account("u1"), pod("p1", "Running"));
        let bound = Some(Named { name: "p".into(), uid: "p1".into() });
        let (token, ends) = sign(&now, &account("u1"), &[], bound, 0, at(0)).unwrap();
        assert_eq!(ends, at(3_600));
        let user = verify(&now, &token, at(1)).unwrap();
        assert_eq!(user.name, "system:serviceaccount:team:robot");
        assert!(user.in_group("system:serviceaccounts:team"));
        assert_eq!(verify(&now, &token, at(3_600)), Err(TokenError::Expired));
        assert_eq!(verify(&now, &token, at(-100)), Err(TokenError::Expired));
        let other = state(&keys, account("u2"), pod("p1", "Running"));
        assert!(matches!(verify(&other, &token, at(1)), Err(TokenError::Revoked(_))));
        for pod in [pod("p2", "Running"), pod("p1", "Succeeded")] {
            let gone = state(&keys, account("u1"), pod);
            assert!(matches!(verify(&gone, &token, at(1)), Err(TokenError::Revoked(_))));
        }
        let others = state(&new_keys().unwrap(), account("u1"), pod("p1", "Running"));
        assert_eq!(verify(&others, &token, at(1)), Err(TokenError::BadSignature));
        let (elsewhere, _) = sign(&now, &account("u1"), &["vault".into()], None, 0, at(0)).unwrap();
        assert_eq!(verify(&now, &elsewhere, at(1)), Err(TokenError::OtherAudience("vault".into())));
    }

    #[test]
    fn what_is_changed_is_not_believed() {
        let keys = new_keys().unwrap();
        let now = state(&keys, account("u1"), pod("p1", "Running"));
        let (token, _) = sign(&now, &account("u1"), &[], None, 1, at(0)).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let claims: Claims = decode(parts[1]).unwrap();
        assert_eq!(claims.exp - claims.iat, LIFE_SECONDS_MIN as i64);
        let longer = encode(&Claims { exp: claims.exp + 1, ..claims });
        let forged = format!("{}.{longer}.{}", parts[0], parts[2]);
        assert_eq!(verify(&now, &forged, at(1)), Err(TokenError::BadSignature));
        let none = encode(&json!({"alg": "none", "kid": "x"}));
        let unsigned = format!("{none}.{longer}.");
        assert_eq!(verify(&now, &unsigned, at(1)), Err(TokenError::Malformed));
        for nonsense in ["", ".", "..", "a.b.c", "timonier-node.x.y.z", &"x".repeat(10_000)] {
            assert_eq!(verify(&now, nonsense, at(1)), Err(TokenError::Malformed), "{nonsense}");
        }
    }
}
