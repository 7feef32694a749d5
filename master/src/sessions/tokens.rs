//! Tokens of service accounts for the pods of a node, and the volume that pods get them in by
//! default. Pure: the same state and time give the same tokens, whichever master asks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    ObjectFieldSelector, Pod, ProjectedVolumeSource, Secret, ServiceAccount,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use timonier_identity::Authority;
use timonier_master_core::object::{name_of, namespace_of, uid_of};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::compiled::token_key;

use super::secrets::account_of;
use crate::pki::{CA_NAME, CA_NAMESPACE};
use crate::tokens::{self, KEYS_NAME, KEYS_NAMESPACE, Named};

/// Where programs look for the token, the CA and the namespace.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access";
/// The config map that shows the cluster's CA, in every namespace where there is none of this name.
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
/// Kubernetes' life of a pod's token, in seconds.
const LIFE_S: i64 = 3607;
const FILE_MODE: i32 = 0o644;

/// Whether a change of this secret concerns pods that have tokens.
pub fn depend_on(namespace: &str, secret: &str) -> bool {
    [(KEYS_NAMESPACE, KEYS_NAME), (CA_NAMESPACE, CA_NAME)].contains(&(namespace, secret))
}

/// The pod as the agent is to run it: with a token where it names a service account and nothing
/// says otherwise. A pod without a service account of its own has no use for one.
pub fn with_default<'a>(snapshot: &Snapshot, pod: &'a Pod) -> Cow<'a, Pod> {
    if !gets_default(snapshot, pod) {
        return Cow::Borrowed(pod);
    }
    let mut pod = pod.clone();
    let Some(spec) = &mut pod.spec else { return Cow::Owned(pod) };
    let mut mounted = false;
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let mounts = container.volume_mounts.get_or_insert_default();
        // One's own is left alone.
        if mounts.iter().any(|mount| mount.mount_path.trim_end_matches('/') == MOUNT_PATH) {
            continue;
        }
        mounted = true;
        mounts.push(VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: MOUNT_PATH.to_owned(),
            read_only: Some(true),
            ..Default::default()
        });
    }
    if mounted {
        spec.volumes.get_or_insert_default().push(default_volume());
    }
    Cow::Owned(pod)
}

fn gets_default(snapshot: &Snapshot, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let taken = spec.volumes.iter().flatten().any(|volume| volume.name == VOLUME);
    let account = snapshot.get::<ServiceAccount>(namespace_of(&pod.metadata), account_of(pod));
    let of_account = account.and_then(|account| account.automount_service_account_token);
    let has_own =
        spec.service_account_name.as_deref().is_some_and(|n| !matches!(n, "" | "default"));
    !taken && spec.automount_service_account_token.or(of_account).unwrap_or(has_own)
}

fn default_volume() -> Volume {
    let token = ServiceAccountTokenProjection {
        path: "token".to_owned(),
        expiration_seconds: Some(LIFE_S),
        ..Default::default()
    };
    let item = KeyToPath { key: ROOT_CA_KEY.into(), path: ROOT_CA_KEY.into(), mode: None };
    let map = ConfigMapProjection {
        name: ROOT_CA.to_owned(),
        items: Some(vec![item]),
        ..Default::default()
    };
    let namespace = DownwardAPIVolumeFile {
        path: "namespace".to_owned(),
        field_ref: Some(ObjectFieldSelector {
            api_version: Some("v1".to_owned()),
            field_path: "metadata.namespace".to_owned(),
        }),
        ..Default::default()
    };
    let downward = DownwardAPIProjection { items: Some(vec![namespace]) };
    let sources = vec![
        VolumeProjection { service_account_token: Some(token), ..Default::default() },
        VolumeProjection { config_map: Some(map), ..Default::default() },
        VolumeProjection { downward_api: Some(downward), ..Default::default() },
    ];
    let source = ProjectedVolumeSource { default_mode: Some(FILE_MODE), sources: Some(sources) };
    Volume { name: VOLUME.to_owned(), projected: Some(source), ..Default::default() }
}

fn projections(pod: &Pod) -> impl Iterator<Item = &ServiceAccountTokenProjection> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.projected.as_ref());
    sources
        .flat_map(|source| source.sources.iter().flatten())
        .filter_map(|source| source.service_account_token.as_ref())
}

/// Whether the node is to be sent new tokens of the pod, which had those of an earlier time.
pub fn have_turned(snapshot: &Snapshot, pod: &Pod, earlier: Timestamp, now: Timestamp) -> bool {
    let turned = |life| turn(pod, life, earlier) != turn(pod, life, now);
    projections(pod).any(|token| turned(tokens::life_s(seconds(token))))
        || gets_default(snapshot, pod) && turned(tokens::life_s(LIFE_S.unsigned_abs()))
}

/// Whether the pod has tokens.
pub fn has_any(snapshot: &Snapshot, pod: &Pod) -> bool {
    projections(pod).next().is_some() || gets_default(snapshot, pod)
}

fn seconds(token: &ServiceAccountTokenProjection) -> u64 {
    token.expiration_seconds.map_or(0, i64::unsigned_abs)
}

/// When the token of now begins, in seconds since 1970. A new one begins at half of the life of the
/// one before; of different pods at different times.
fn turn(pod: &Pod, life_s: u64, now: Timestamp) -> i64 {
    let half = i64::try_from(life_s / 2).unwrap_or(i64::MAX).max(1);
    let shift = uid_of(&pod.metadata).bytes().fold(0_i64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(i64::from(byte)).rem_euclid(half)
    });
    let now = now.as_second();
    now - (now - shift).rem_euclid(half)
}

/// The tokens that the pod's volumes show, by [`token_key`]; none without a key to sign with, or
/// when the service account is gone. `pod` is what [`with_default`] gave.
pub fn of(snapshot: &Snapshot, pod: &Pod, now: Timestamp) -> BTreeMap<String, String> {
    let account = snapshot.get::<ServiceAccount>(namespace_of(&pod.metadata), account_of(pod));
    let Some(account) = account else { return BTreeMap::new() };
    let sign = |token: &ServiceAccountTokenProjection| {
        let life_s = tokens::life_s(seconds(token));
        let audience = token.audience.iter().filter(|text| !text.is_empty());
        let audiences: Vec<String> = audience.cloned().collect();
        let (name, uid) = (name_of(&pod.metadata), uid_of(&pod.metadata));
        let bound = Named { name: name.to_owned(), uid: uid.to_owned() };
        let begin = turn(pod, life_s, now);
        let at = Timestamp::from_second(begin).ok()?;
        let id = format!("{uid}-{begin}");
        let signed = tokens::sign_as(snapshot, account, &audiences, Some(bound), life_s, at, id);
        Some((token_key(token), signed.ok()?.0))
    };
    projections(pod).filter_map(sign).collect()
}

/// The config map with the cluster's CA, for a pod that refers to it.
pub fn root_ca(snapshot: &Snapshot) -> Option<ConfigMap> {
    let secret = snapshot.get::<Secret>(CA_NAMESPACE, CA_NAME)?;
    let text = |value: &ByteString| String::from_utf8_lossy(&value.0).into_owned();
    let parts = secret.data.iter().flatten().map(|(name, value)| (name.clone(), text(value)));
    let bundle = Authority::from_parts(&parts.collect()).ok()?.bundle_pem();
    let data = BTreeMap::from([(ROOT_CA_KEY.to_owned(), bundle)]);
    Some(ConfigMap { data: Some(data), ..Default::default() })
}

/// The name under which [`root_ca`] is referred to.
pub fn is_root_ca(name: &str) -> bool {
    name == ROOT_CA
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use timonier_proto::{Kind, Kinded, Object};

    use super::*;
    use crate::sessions::compile;

    fn pod(spec: Value) -> Object {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "image": "a"}]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": {"name": "p", "namespace": "team", "uid": "u1"}});
        Object::from_json(Kind::Pod, pod.to_string().as_bytes()).unwrap()
    }

    fn state(spec: Value, automount: Option<bool>) -> Snapshot {
        let account = |name: &str| -> Object {
            let account = json!({"metadata": {"name": name, "namespace": "team", "uid": name},
                "automountServiceAccountToken": automount});
            let account: ServiceAccount = serde_json::from_value(account).unwrap();
            account.into_object()
        };
        let keys = tokens::new_keys().unwrap().into_object();
        Snapshot::rebuild(1, [pod(spec), account("robot"), account("default"), keys], [])
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn compiled(state: &Snapshot, now: Timestamp) -> timonier_proto::compiled::CompiledPod {
        let pod = state.get::<Pod>("team", "p").unwrap();
        serde_json::from_slice(&compile::pod(state, pod, now).compiled_json).unwrap()
    }

    #[test]
    fn pods_with_a_service_account_have_its_token() {
        for (spec, of_account, gets) in [
            (json!({}), None, false),
            (json!({"automountServiceAccountToken": true}), None, true),
            (json!({"serviceAccountName": "robot"}), None, true),
            (json!({"serviceAccountName": "robot"}), Some(false), false),
            (
                json!({"serviceAccountName": "robot", "automountServiceAccountToken": true}),
                Some(false),
                true,
            ),
            (
                json!({"serviceAccountName": "robot", "automountServiceAccountToken": false}),
                None,
                false,
            ),
        ] {
            let state = state(spec.clone(), of_account);
            let pod = compiled(&state, at(0));
            assert_eq!(pod.tokens.len(), usize::from(gets), "{spec}");
            let spec = pod.pod.spec.unwrap();
            let mounts = spec.containers[0].volume_mounts.iter().flatten();
            assert_eq!(mounts.filter(|m| m.mount_path == MOUNT_PATH).count(), usize::from(gets));
            assert_eq!(spec.volumes.iter().flatten().count(), usize::from(gets));
        }
    }

    #[test]
    fn tokens_are_replaced_long_before_they_end() {
        let source = json!({"path": "t", "expirationSeconds": 600});
        let volume =
            json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": source}]}});
        let spec = json!({"serviceAccountName": "robot", "volumes": [volume],
            "automountServiceAccountToken": false});
        let state = state(spec, None);
        let pod = state.get::<Pod>("team", "p").unwrap();
        let mut changes = 0;
        for second in 0..1200 {
            let of = |second| compiled(&state, at(second)).tokens.into_values().next().unwrap();
            let (before, after) = (of(second), of(second + 1));
            assert_eq!(before != after, have_turned(&state, pod, at(second), at(second + 1)));
            changes += u32::from(before != after);
            if second % 100 == 0 {
                let user = tokens::verify(&state, &before, at(second + 299)).unwrap();
                assert_eq!(user.name, "system:serviceaccount:team:robot");
            }
        }
        assert_eq!(changes, 4);
    }
}
