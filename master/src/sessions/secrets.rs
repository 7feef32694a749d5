//! Which secrets a pod uses: a node is sent those, and no others. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, Secret, ServiceAccount};
use timonier_master_core::access::reserved::is_reserved;
use timonier_master_core::object::namespace_of;
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::secret::{DOCKER_CONFIG_JSON_KEY, RegistryCredentials, registry_credentials};
use timonier_proto::{Kind, ObjectKey};

/// Names of the secrets that the pod's volumes and variables show.
pub fn shown(pod: &Pod) -> BTreeSet<&str> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names = BTreeSet::new();
    for volume in spec.volumes.iter().flatten() {
        names.extend(volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()));
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        names.extend(projected.filter_map(|s| Some(s.secret.as_ref()?.name.as_str())));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let env = container.env.iter().flatten();
        names.extend(env.filter_map(|variable| {
            Some(variable.value_from.as_ref()?.secret_key_ref.as_ref()?.name.as_str())
        }));
        let sources = container.env_from.iter().flatten();
        names.extend(sources.filter_map(|s| Some(s.secret_ref.as_ref()?.name.as_str())));
    }
    names.remove("");
    names
}

/// The name of the pod's service account.
pub fn account_of(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Names of its image pull secrets: its own, else its service account's.
fn pulling<'a>(snapshot: &'a Snapshot, pod: &'a Pod) -> &'a [LocalObjectReference] {
    let own = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref());
    own.filter(|list| !list.is_empty()).unwrap_or_else(|| {
        let namespace = namespace_of(&pod.metadata);
        let account = snapshot.get::<ServiceAccount>(namespace, account_of(pod));
        account.and_then(|account| account.image_pull_secrets.as_deref()).unwrap_or_default()
    })
}

/// The secret as pods have it: the cluster's own are not there for them, as whoever may make a pod
/// would have the cluster.
pub fn of_pods<'a>(snapshot: &'a Snapshot, namespace: &str, name: &str) -> Option<&'a Secret> {
    let secret = snapshot.get::<Secret>(namespace, name)?;
    let key = ObjectKey::new(Kind::Secret, namespace, name);
    Some(&**secret).filter(|_| !is_reserved(&key))
}

/// Whether the pod has any use for the secret.
pub fn uses(snapshot: &Snapshot, pod: &Pod, name: &str) -> bool {
    shown(pod).contains(name) || pulling(snapshot, pod).iter().any(|secret| secret.name == name)
}

/// What its image pull secrets hold. One that is missing or no such secret is passed over, as in
/// Kubernetes: the pull says what came of it.
pub fn registries(snapshot: &Snapshot, pod: &Pod) -> Vec<RegistryCredentials> {
    let namespace = namespace_of(&pod.metadata);
    pulling(snapshot, pod)
        .iter()
        .filter_map(|reference| of_pods(snapshot, namespace, &reference.name))
        .filter_map(|secret| {
            registry_credentials(&secret.data.as_ref()?.get(DOCKER_CONFIG_JSON_KEY)?.0)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use timonier_proto::Kinded;

    use super::*;

    #[test]
    fn no_pod_is_given_the_cluster_s_own_secrets() {
        let secret = |namespace: &str, name: &str| -> Secret {
            let meta = serde_json::json!({"name": name, "namespace": namespace});
            serde_json::from_value(serde_json::json!({"metadata": meta})).unwrap()
        };
        let all = [("kube-system", "timonier-ca"), ("kube-system", "db"), ("team", "timonier-ca")];
        let objects = all.map(|(namespace, name)| secret(namespace, name).into_object());
        let state = Snapshot::rebuild(1, objects, []);
        let given = all.map(|(namespace, name)| of_pods(&state, namespace, name).is_some());
        assert_eq!(given, [false, true, true]);
    }
}
