//! Metadata of any kind: names, labels, annotations, owners.

use timonier_proto::names::{self, NameResult};
use timonier_proto::{Kind, Object};

use super::field::{Field, Problems};
use super::unique;

/// Bytes of all annotations of an object together, as in Kubernetes.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// Annotation of a namespace that chooses how its pods are reached.
const NETWORK_ANNOTATION: &str = "timonier.io/network";

/// What a name of that kind may look like.
pub fn name_rule(kind: Kind) -> fn(&str) -> NameResult {
    match kind {
        Kind::Namespace => names::dns_label,
        Kind::Service => names::dns_1035_label,
        Kind::Role | Kind::RoleBinding | Kind::ClusterRole | Kind::ClusterRoleBinding => {
            super::access::path_segment
        }
        _ => names::dns_subdomain,
    }
}

pub fn check(object: &Object, problems: &mut Problems) {
    let meta = object.meta();
    let root = Field::root("metadata");
    let rule = name_rule(object.kind());
    match (meta.name.as_deref().unwrap_or_default(), meta.generate_name.as_deref()) {
        ("", None | Some("")) => {
            problems.required(&root.name("name"), "name or generateName is required");
        }
        ("", Some(prefix)) => {
            // A suffix of letters and digits follows.
            let outcome = rule(&format!("{prefix}x"));
            problems.name(&root.name("generateName"), prefix, outcome);
        }
        (name, _) => problems.name(&root.name("name"), name, rule(name)),
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let namespaced = object.kind().info().namespaced;
    if namespaced {
        problems.name(&root.name("namespace"), namespace, names::dns_label(namespace));
    } else if !namespace.is_empty() {
        problems.forbidden(&root.name("namespace"), "not allowed on this type");
    }
    labels(&root.name("labels"), meta.labels.as_ref(), problems);
    annotations(&root.name("annotations"), meta.annotations.as_ref(), problems);
    if let (Kind::Namespace, Some(all)) = (object.kind(), &meta.annotations)
        && let Some(value) = all.get(NETWORK_ANNOTATION)
    {
        problems.one_of(&root.name("annotations").key(NETWORK_ANNOTATION), value, &["isolated"]);
    }
    if object.kind() == Kind::Pod {
        unique::annotation(&root.name("annotations"), meta.annotations.as_ref(), problems);
    }
    owners(&root.name("ownerReferences"), object, problems);
    if meta.finalizers.as_ref().is_some_and(|list| !list.is_empty()) {
        problems.not_supported(&root.name("finalizers"), "nothing here waits for them");
    }
}

type Map = std::collections::BTreeMap<String, String>;

pub fn labels(field: &Field<'_>, labels: Option<&Map>, problems: &mut Problems) {
    for (key, value) in labels.into_iter().flatten() {
        if let Err(why) = names::label_key(key) {
            problems.invalid(field, key, why);
        }
        if let Err(why) = names::label_value(value) {
            problems.invalid(&field.key(key), value, why);
        }
    }
}

pub fn annotations(field: &Field<'_>, annotations: Option<&Map>, problems: &mut Problems) {
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        bytes += key.len() + value.len();
        if let Err(why) = names::label_key(&key.to_lowercase()) {
            problems.invalid(field, key, why);
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        let why = format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes");
        problems.forbidden(field, why);
    }
}

fn owners(field: &Field<'_>, object: &Object, problems: &mut Problems) {
    let mut controllers = 0;
    for (index, owner) in object.meta().owner_references.iter().flatten().enumerate() {
        let field = field.index(index);
        for (name, value) in [
            ("apiVersion", &owner.api_version),
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ] {
            if value.is_empty() {
                problems.required(&field.name(name), "");
            }
        }
        if owner.controller == Some(true) {
            controllers += 1;
        }
        if controllers > 1 {
            problems.invalid(
                &field,
                &owner.name,
                "only one reference can have controller set to true",
            );
        }
    }
}
