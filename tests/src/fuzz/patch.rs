//! Patches of every type, and apply, onto objects as they are stored.

use std::sync::LazyLock;

use serde_json::json;
use timonier_master_core::admission::{admit_change, admit_new};
use timonier_master_core::patch::{PatchType, annotate, merge_applied, patch as patched};
use timonier_proto::Object;
use timonier_proto::decode::{decode, decode_json};

static STORED: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let container = json!({
        "name": "web", "image": "web:1", "ports": [{"containerPort": 80}, {"containerPort": 81}],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    });
    let pod = json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "k", "operator": "Exists"}]});
    let meta = json!({"name": "web", "namespace": "default", "labels": {"app": "web"}});
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": pod});
    let manifests = [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {
            "selector": {"app": "web"}, "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}),
    ];
    let stored = |manifest| admit_new(decode(&manifest).expect("decodes")).expect("is admitted");
    manifests.into_iter().map(stored).collect()
});

/// The first byte chooses the object and the type of patch, the rest is the patch.
pub fn patch(data: &[u8]) {
    let Some((choice, patch)) = data.split_first() else { return };
    let stored = &STORED[usize::from(choice & 3)];
    let result = match (choice >> 2) & 3 {
        0 => patched(stored, PatchType::Merge, patch),
        1 => patched(stored, PatchType::Strategic, patch),
        2 => patched(stored, PatchType::Json, patch),
        _ => return apply(stored, patch),
    };
    let Ok(changed) = result else { return };
    assert_eq!(changed.key(), stored.key(), "a patch changed which object it is");
    let _ = admit_change(stored, changed);
}

/// Applied twice, the second changes nothing.
fn apply(stored: &Object, manifest: &[u8]) {
    let Ok(mut desired) = decode_json(manifest) else { return };
    if desired.key() != stored.key() || annotate(&mut desired).is_err() {
        return;
    }
    let Ok(once) = merge_applied(stored, &desired) else { return };
    let twice = merge_applied(&once, &desired).expect("what was applied can be applied again");
    assert_eq!(twice, once);
}
