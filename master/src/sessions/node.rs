//! A node's registration: what its agent says of the host becomes (or renews) the Node object, and
//! the node gets its pod range.
//!
//! Conditions, taints and cordons are others' and stay as they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_master_core::ipam;
use timonier_master_core::object::key_of;
use timonier_master_core::op::{Claimed, Op, Precondition, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::unique::{self, FENCE_AFTER_ANNOTATION};
use timonier_proto::v1::{Hello, NodeCapacity};
use timonier_proto::{ApiError, Kinded, Reason, names};

use super::Inner;
use super::registry::Claim;
use crate::pki;
use crate::stamp::stamp;
use crate::store::CommitError;

/// How often a registration that raced with another write is tried.
const TRIES_MAX: usize = 10;
/// Most labels an agent may give its node.
const LABELS_MAX: usize = 64;
/// On a node: the labels that its agent has given it, as JSON.
const AGENT_LABELS_ANNOTATION: &str = "timonier.io/agent-labels";
/// The master writes these itself.
const MASTERS_LABELS: [&str; 3] = [LABEL_HOSTNAME, LABEL_OS, LABEL_ARCH];
const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
const LABEL_OS: &str = "kubernetes.io/os";
const LABEL_ARCH: &str = "kubernetes.io/arch";
/// An agent gives no label of these domains or below them…
const RESERVED_DOMAINS: [&str; 3] = ["kubernetes.io", "k8s.io", "timonier.io"];
/// …but for those that Kubernetes' NodeRestriction leaves to kubelets: where and what a host is.
const HOSTS_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
const HOSTS_DOMAINS: [&str; 2] = ["node.kubernetes.io", "kubelet.kubernetes.io"];

/// Pod ranges promised to nodes whose objects are not stored yet, so that many can register at the
/// same time and no two get the same.
#[derive(Debug, Default)]
pub struct Promises {
    /// By node.
    ranges: Mutex<HashMap<String, String>>,
}

/// One promise, kept until it is in the store or the registration failed.
struct Promise<'a> {
    promises: &'a Promises,
    node: &'a str,
    range: String,
}

impl Promises {
    /// The state, and a range that nobody has in it or was promised.
    fn make<'a>(
        &'a self,
        inner: &Inner,
        hello: &'a Hello,
        again: bool,
    ) -> Result<(Snapshot, Promise<'a>), ApiError> {
        let node = hello.node_name.as_str();
        let cluster = &inner.settings.cluster_range;
        // Other masters begin to look at the same place.
        let elsewhere =
            if again { ipam::some_node_range(cluster, fastrand::u64(..)).ok() } else { None };
        let own = Some(hello.pod_range.as_str()).filter(|range| !range.is_empty());
        let preferred = own.or(elsewhere.as_deref());
        let mut ranges = self.lock();
        // Within the lock: what was promised before is in this snapshot, or still in `ranges`.
        let snapshot = inner.store.snapshot();
        let others = ranges.iter().filter(|(other, _)| *other != node);
        let promised = others.map(|(_, range)| range.as_str()).collect();
        let range = ipam::node_range_beside(&snapshot, cluster, node, preferred, &promised)
            .map_err(|error| {
                let text = format!("cannot register node {node}: {error}; hint: start the master with a larger --cluster-range");
                ApiError::new(Reason::Unavailable, text)
            })?;
        ranges.insert(node.to_owned(), range.clone());
        Ok((snapshot, Promise { promises: self, node, range }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.promises.lock().remove(self.node);
    }
}

/// Creates or renews the Node object; its pod range.
pub async fn register(inner: &Inner, claim: &Claim, hello: &Hello) -> Result<String, ApiError> {
    let shown = claim.certificate.as_deref();
    let name = &hello.node_name;
    // What it goes by until it is welcomed, and from then on.
    let fence_after_ms = inner.settings.fence_after_ms.max(hello.lease_held_ms);
    for attempt in 0..TRIES_MAX {
        let (snapshot, promise) = inner.promises.make(inner, hello, attempt > 0)?;
        let range = promise.range.clone();
        let stored = snapshot.get::<Node>("", name).map(|node| &**node);
        let mut wanted = node_object(stored, hello, &range, fence_after_ms);
        if let Some(shown) = shown {
            pki::note(wanted.metadata.annotations.get_or_insert_default(), shown);
        }
        let Some(txn) = transaction(stored, wanted, &range) else { return Ok(range) };
        match inner.store.commit(txn).await {
            Ok(_) => return Ok(range),
            Err(CommitError::Rejected(rejection)) => {
                tracing::debug!(node = name, %rejection, "registration raced, trying again");
                // This master's copy may be behind what the rejection is about.
                inner.store.linearize().await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let text = format!("cannot register node {name}: it is being changed all the time");
    Err(ApiError::new(Reason::Conflict, text))
}

/// `None` when the stored node says all this already.
fn transaction(stored: Option<&Node>, mut wanted: Node, range: &str) -> Option<Txn> {
    let key = key_of(&wanted);
    let Some(stored) = stored else {
        let create = stamp(Op::Create(wanted.into_object()), Timestamp::now());
        return Some(Txn {
            preconditions: vec![
                Precondition::Free { what: Claimed::PodRange(range.to_owned()), by: key.clone() },
                Precondition::Absent(key),
            ],
            ..Txn::of(vec![create])
        });
    };
    if *stored == wanted {
        return None;
    }
    let revision =
        stored.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    let precondition = Precondition::Revision(key, revision);
    // Without its resourceVersion, which the first operation changes under the second.
    wanted.metadata.resource_version = None;
    let mut ops = Vec::new();
    let (old, new) = (&stored.metadata, &wanted.metadata);
    if stored.spec != wanted.spec || old.labels != new.labels || old.annotations != new.annotations
    {
        ops.push(Op::Replace(wanted.clone().into_object()));
    }
    if stored.status != wanted.status {
        ops.push(Op::ReplaceStatus(wanted.into_object()));
    }
    Some(Txn { preconditions: vec![precondition], ..Txn::of(ops) })
}

fn node_object(stored: Option<&Node>, hello: &Hello, range: &str, fence_after_ms: u32) -> Node {
    let mut node = stored.cloned().unwrap_or_else(|| Node {
        metadata: ObjectMeta { name: Some(hello.node_name.clone()), ..Default::default() },
        ..Default::default()
    });
    if unique::fence_after_ms(&node.metadata) != fence_after_ms {
        let annotations = node.metadata.annotations.get_or_insert_default();
        annotations.insert(FENCE_AFTER_ANNOTATION.to_owned(), fence_after_ms.to_string());
    }
    label(&mut node.metadata, hello);
    let labels = node.metadata.labels.get_or_insert_default();
    for (key, value) in [
        (LABEL_HOSTNAME, hello.node_name.as_str()),
        (LABEL_OS, "linux"),
        (LABEL_ARCH, architecture(&hello.architecture)),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let spec: &mut NodeSpec = node.spec.get_or_insert_default();
    spec.pod_cidr = Some(range.to_owned());
    spec.pod_cidrs = Some(vec![range.to_owned()]);
    let status: &mut NodeStatus = node.status.get_or_insert_default();
    let capacity = hello.capacity.unwrap_or_default();
    status.capacity = Some(resources(&capacity, 0, 0));
    status.allocatable =
        Some(resources(&capacity, capacity.reserved_cpu_millis, capacity.reserved_memory_bytes));
    status.addresses = Some(vec![
        NodeAddress { type_: "InternalIP".to_owned(), address: hello.address.clone() },
        NodeAddress { type_: "Hostname".to_owned(), address: hello.node_name.clone() },
    ]);
    status.node_info = Some(NodeSystemInfo {
        architecture: architecture(&hello.architecture).to_owned(),
        boot_id: hello.boot_id.clone(),
        container_runtime_version: hello.runtime.clone(),
        kernel_version: hello.kernel.clone(),
        kubelet_version: format!("v{}", hello.version),
        operating_system: "linux".to_owned(),
        os_image: hello.os_image.clone(),
        ..Default::default()
    });
    node
}

/// Puts the agent's labels on its node. What a user has set, or set otherwise than the agent did,
/// stays: an annotation remembers what was the agent's.
fn label(meta: &mut ObjectMeta, hello: &Hello) {
    let annotations = meta.annotations.take().unwrap_or_default();
    let before: BTreeMap<String, String> = annotations
        .get(AGENT_LABELS_ANNOTATION)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    meta.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    let labels = meta.labels.get_or_insert_default();
    let mut own: BTreeMap<String, String> =
        before.into_iter().filter(|(key, value)| labels.get(key) == Some(value)).collect();
    // In an order of their own, so that the same ones are taken each time.
    let given: BTreeMap<&String, &String> =
        hello.labels.iter().filter(|(key, _)| !MASTERS_LABELS.contains(&key.as_str())).collect();
    let (given, refused): (Vec<_>, Vec<_>) =
        given.into_iter().partition(|(key, value)| may_give(key, value));
    if !refused.is_empty() {
        let labels: Vec<_> = refused.iter().take(LABELS_MAX).map(|(key, _)| key).collect();
        let node = &hello.node_name;
        tracing::warn!(node, ?labels, "an agent does not give its node these labels");
    }
    for (key, value) in given.into_iter().take(LABELS_MAX) {
        let is_users = labels.contains_key(key) && !own.contains_key(key);
        if !is_users || labels.get(key) == Some(value) {
            labels.insert(key.clone(), value.clone());
            own.insert(key.clone(), value.clone());
        }
    }
    if !own.is_empty() {
        let text = serde_json::to_string(&own).expect("texts are plain data");
        meta.annotations.get_or_insert_default().insert(AGENT_LABELS_ANNOTATION.into(), text);
    } else if let Some(annotations) = &mut meta.annotations {
        annotations.remove(AGENT_LABELS_ANNOTATION);
    }
}

/// Whether an agent may give its node this label. Those of Kubernetes and of ours place pods of
/// others' choice: a node does not make itself what it is not.
fn may_give(key: &str, value: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let is_of = |reserved: &&str| {
        domain.strip_suffix(*reserved).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    names::label_key(key).is_ok()
        && names::label_value(value).is_ok()
        && (HOSTS_LABELS.contains(&key)
            || HOSTS_DOMAINS.contains(&domain)
            || !RESERVED_DOMAINS.iter().any(is_of))
}

/// What is left of the capacity when this much is kept back.
fn resources(
    capacity: &NodeCapacity,
    less_cpu_millis: u64,
    less_memory_bytes: u64,
) -> BTreeMap<String, Quantity> {
    let cpu_millis = capacity.cpu_millis.saturating_sub(less_cpu_millis);
    let cpu = if cpu_millis.is_multiple_of(1000) {
        (cpu_millis / 1000).to_string()
    } else {
        format!("{cpu_millis}m")
    };
    let memory = capacity.memory_bytes.saturating_sub(less_memory_bytes) / 1024;
    let storage = capacity.ephemeral_storage_bytes / 1024;
    [
        ("cpu", cpu),
        ("memory", format!("{memory}Ki")),
        ("ephemeral-storage", format!("{storage}Ki")),
        ("pods", capacity.pods.to_string()),
    ]
    .map(|(name, quantity)| (name.to_owned(), Quantity(quantity)))
    .into()
}

/// As Kubernetes spells it.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use timonier_proto::unique::FENCE_AFTER_MS_DEFAULT;

    use super::*;

    fn hello() -> Hello {
        Hello {
            node_name: "n1".into(),
            address: "10.0.0.1".into(),
            architecture: "x86_64".into(),
            capacity: Some(NodeCapacity {
                cpu_millis: 2000,
                memory_bytes: 4 << 30,
                reserved_cpu_millis: 100,
                reserved_memory_bytes: 1 << 30,
                pods: 110,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    const RANGE: &str = "10.244.1.0/24";

    fn again(stored: &Node, hello: &Hello) -> Option<Txn> {
        let wanted = node_object(Some(stored), hello, RANGE, FENCE_AFTER_MS_DEFAULT);
        transaction(Some(stored), wanted, RANGE)
    }

    #[test]
    fn a_renewal_keeps_what_is_others_and_writes_nothing_when_nothing_changed() {
        let mut node = node_object(None, &hello(), RANGE, FENCE_AFTER_MS_DEFAULT);
        assert_eq!(node.metadata.annotations, None);
        let status = node.status.clone().unwrap();
        assert_eq!(status.allocatable.unwrap()["cpu"].0, "1900m");
        assert_eq!(status.capacity.unwrap()["memory"].0, "4194304Ki");
        node.spec.as_mut().unwrap().unschedulable = Some(true);
        node.metadata.labels.as_mut().unwrap().insert("disk".into(), "fast".into());
        node.metadata.resource_version = Some("7".into());
        assert_eq!(again(&node, &hello()), None);
        let moved = Hello { address: "10.0.0.9".into(), ..hello() };
        let txn = again(&node, &moved).unwrap();
        assert_eq!(txn.ops.len(), 1, "{txn:?}");
        let Op::ReplaceStatus(object) = &txn.ops[0] else { panic!("{txn:?}") };
        let wanted = object.get::<Node>().unwrap();
        assert_eq!(wanted.spec.as_ref().unwrap().unschedulable, Some(true));
        assert_eq!(wanted.metadata.labels.as_ref().unwrap()["disk"], "fast");
    }

    #[test]
    fn an_agent_s_labels_are_its_own_and_not_a_user_s() {
        let with = |labels: &[(&str, &str)]| Hello {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..hello()
        };
        let again = |node: &Node, labels: &[(&str, &str)]| {
            node_object(Some(node), &with(labels), RANGE, FENCE_AFTER_MS_DEFAULT)
        };
        let label = |node: &Node, key: &str| {
            node.metadata.labels.as_ref().and_then(|labels| labels.get(key).cloned())
        };
        let first = with(&[("disk", "fast"), ("zone", "a")]);
        let mut node = node_object(None, &first, RANGE, FENCE_AFTER_MS_DEFAULT);
        assert_eq!(label(&node, "disk").as_deref(), Some("fast"));
        // It may change what it gave.
        node = again(&node, &[("disk", "slow"), ("zone", "a")]);
        assert_eq!(label(&node, "disk").as_deref(), Some("slow"));
        assert_eq!(again(&node, &[("disk", "slow"), ("zone", "a")]), node, "nothing is written");
        // Users set one of their own and change one of the agent's: both stay.
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert("tier".into(), "web".into());
        labels.insert("zone".into(), "b".into());
        for _ in 0..2 {
            node = again(&node, &[("tier", "gold"), ("zone", "a"), ("disk", "fast")]);
            assert_eq!(label(&node, "tier").as_deref(), Some("web"));
            assert_eq!(label(&node, "zone").as_deref(), Some("b"));
            assert_eq!(label(&node, "disk").as_deref(), Some("fast"));
        }
        let claimed = [
            ("node-role.kubernetes.io/control-plane", ""),
            ("node-restriction.kubernetes.io/pci", "yes"),
            ("kubernetes.io/hostname", "n9"),
            ("k8s.io/x", "y"),
            ("timonier.io/x", "y"),
            ("a.timonier.io/x", "y"),
            ("topology.kubernetes.io/other", "y"),
            ("no label", "y"),
            ("long", &"x".repeat(64)),
        ];
        let before = node.metadata.clone();
        let node = again(&node, &claimed);
        assert_eq!(node.metadata.labels, before.labels);
        assert_eq!(label(&node, "kubernetes.io/hostname").as_deref(), Some("n1"));
        // Where its host is, what it is, and another one's domain that merely ends alike.
        for key in [HOSTS_LABELS[1], "node.kubernetes.io/instance-type", "mykubernetes.io/x"] {
            assert_eq!(label(&again(&node, &[(key, "y")]), key).as_deref(), Some("y"), "{key}");
        }
    }

    #[test]
    fn how_long_a_lease_lasts_there_is_written_down_and_follows() {
        let node = node_object(None, &hello(), RANGE, 60_000);
        assert_eq!(unique::fence_after_ms(&node.metadata), 60_000);
        let txn = again(&node, &hello()).unwrap();
        let Op::Replace(object) = &txn.ops[0] else { panic!("{txn:?}") };
        let meta = &object.get::<Node>().unwrap().metadata;
        assert_eq!(unique::fence_after_ms(meta), FENCE_AFTER_MS_DEFAULT);
    }
}
