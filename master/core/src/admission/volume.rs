//! Volumes of a pod, and the config maps that they show.
//!
//! What a secret must hold is [`super::secret`]'s.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, PodSpec, ProjectedVolumeSource, Volume,
};
use serde_json::Value;
use timonier_proto::{names, quantity};

use super::field::{Field, Problems};

/// Bytes of all values of a config map together, as in Kubernetes.
const CONFIG_MAP_BYTES_MAX: usize = 1 << 20;
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];
/// Life of a token that a volume shows, in seconds, as in Kubernetes.
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const SUPPORTED: [&str; 6] =
    ["emptyDir", "hostPath", "configMap", "secret", "projected", "downwardAPI"];
const INSTEAD: &str = "use emptyDir, hostPath, configMap, secret, projected or downwardAPI";
const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.annotations",
];
pub const RESOURCES: [&str; 4] = ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

/// Answers the names of the volumes, for the mounts.
pub fn check<'a>(
    field: &Field<'_>,
    spec: &'a PodSpec,
    problems: &mut Problems,
) -> BTreeSet<&'a str> {
    let mut taken = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let field = field.index(index);
        problems.name(&field.name("name"), &volume.name, names::dns_label(&volume.name));
        if !taken.insert(volume.name.as_str()) {
            problems.duplicate(&field.name("name"), &volume.name);
        }
        source(&field, volume, problems);
    }
    taken
}

fn source(field: &Field<'_>, volume: &Volume, problems: &mut Problems) {
    let sources: Vec<String> = match serde_json::to_value(volume) {
        Ok(Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
        _ => Vec::new(),
    };
    let sources: Vec<&str> =
        sources.iter().map(String::as_str).filter(|key| *key != "name").collect();
    match sources.as_slice() {
        [] => problems.required(field, "must specify a volume type"),
        [one] if !SUPPORTED.contains(one) => {
            problems.not_supported(&field.name(one), INSTEAD);
        }
        [_] => {}
        [_, more, ..] => {
            problems.forbidden(&field.name(more), "may not specify more than 1 volume type");
        }
    }
    if let Some(path) = &volume.host_path {
        let field = field.name("hostPath");
        if !path.path.starts_with('/') || path.path.split('/').any(|part| part == "..") {
            let why = "must be an absolute path without '..'";
            problems.invalid(&field.name("path"), &path.path, why);
        }
        let type_ = path.type_.as_deref().unwrap_or_default();
        problems.one_of(&field.name("type"), type_, HOST_PATH_TYPES);
    }
    if let Some(dir) = &volume.empty_dir {
        let field = field.name("emptyDir");
        problems.one_of(
            &field.name("medium"),
            dir.medium.as_deref().unwrap_or_default(),
            &["", "Memory"],
        );
        if let Some(limit) = &dir.size_limit
            && let Err(error) = quantity::parse_units(&limit.0)
        {
            problems.invalid(&field.name("sizeLimit"), &limit.0, error);
        }
    }
    if let Some(map) = &volume.config_map {
        let field = field.name("configMap");
        if map.name.is_empty() {
            problems.required(&field.name("name"), "");
        }
        mode(&field.name("defaultMode"), map.default_mode, problems);
        items(&field.name("items"), map.items.as_deref(), problems);
    }
    if let Some(secret) = &volume.secret {
        let field = field.name("secret");
        if secret.secret_name.as_deref().unwrap_or_default().is_empty() {
            problems.required(&field.name("secretName"), "");
        }
        mode(&field.name("defaultMode"), secret.default_mode, problems);
        items(&field.name("items"), secret.items.as_deref(), problems);
    }
    if let Some(downward) = &volume.downward_api {
        let field = field.name("downwardAPI");
        mode(&field.name("defaultMode"), downward.default_mode, problems);
        downward_items(&field.name("items"), downward.items.as_deref(), problems);
    }
    if let Some(source) = &volume.projected {
        projected(&field.name("projected"), source, problems);
    }
}

fn projected(field: &Field<'_>, source: &ProjectedVolumeSource, problems: &mut Problems) {
    mode(&field.name("defaultMode"), source.default_mode, problems);
    let sources = field.name("sources");
    for (index, one) in source.sources.iter().flatten().enumerate() {
        let field = sources.index(index);
        let given = [
            one.secret.is_some(),
            one.config_map.is_some(),
            one.downward_api.is_some(),
            one.service_account_token.is_some(),
        ];
        if one.cluster_trust_bundle.is_some() {
            problems.not_supported(&field.name("clusterTrustBundle"), "");
        } else if one.pod_certificate.is_some() {
            problems.not_supported(&field.name("podCertificate"), "");
        } else if given.iter().filter(|given| **given).count() != 1 {
            problems.forbidden(&field, "must specify exactly 1 volume type");
        }
        if let Some(token) = &one.service_account_token {
            let field = field.name("serviceAccountToken");
            path(&field.name("path"), &token.path, problems);
            let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS_MIN);
            let field = field.name("expirationSeconds");
            if seconds < TOKEN_SECONDS_MIN {
                let why = "may not specify a duration less than 10 minutes";
                problems.invalid(&field, seconds, why);
            }
            if seconds > TOKEN_SECONDS_MAX {
                let why = "may not specify a duration larger than 2^32 seconds";
                problems.invalid(&field, seconds, why);
            }
        }
        if let Some(secret) = &one.secret {
            let field = field.name("secret");
            if secret.name.is_empty() {
                problems.required(&field.name("name"), "");
            }
            items(&field.name("items"), secret.items.as_deref(), problems);
        }
        if let Some(map) = &one.config_map {
            let field = field.name("configMap");
            if map.name.is_empty() {
                problems.required(&field.name("name"), "");
            }
            items(&field.name("items"), map.items.as_deref(), problems);
        }
        if let Some(downward) = &one.downward_api {
            let field = field.name("downwardAPI");
            downward_items(&field.name("items"), downward.items.as_deref(), problems);
        }
    }
}

fn items(field: &Field<'_>, items: Option<&[KeyToPath]>, problems: &mut Problems) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let field = field.index(index);
        problems.name(&field.name("key"), &item.key, names::config_key(&item.key));
        path(&field.name("path"), &item.path, problems);
        mode(&field.name("mode"), item.mode, problems);
    }
}

fn downward_items(
    field: &Field<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    problems: &mut Problems,
) {
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        let field = field.index(index);
        path(&field.name("path"), &item.path, problems);
        mode(&field.name("mode"), item.mode, problems);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(source), None) => {
                let path = source.field_path.as_str();
                let in_map = ["metadata.labels['", "metadata.annotations['"].iter().any(|prefix| {
                    path.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("']"))
                });
                if !in_map {
                    let field = field.name("fieldRef");
                    problems.one_of(&field.name("fieldPath"), path, DOWNWARD_FIELDS);
                }
            }
            (None, Some(source)) => {
                let field = field.name("resourceFieldRef");
                if source.container_name.as_deref().unwrap_or_default().is_empty() {
                    problems.required(&field.name("containerName"), "");
                }
                problems.one_of(&field.name("resource"), &source.resource, &RESOURCES);
            }
            _ => problems.required(&field, "one of fieldRef and resourceFieldRef"),
        }
    }
}

fn path(field: &Field<'_>, path: &str, problems: &mut Problems) {
    if path.is_empty() {
        problems.required(field, "");
    } else if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        problems.invalid(field, path, "must be a relative path without '..'");
    } else if path.starts_with("..") {
        problems.invalid(field, path, "must not start with '..'");
    }
}

fn mode(field: &Field<'_>, mode: Option<i32>, problems: &mut Problems) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        problems.invalid(
            field,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

pub fn config_map(map: &ConfigMap, problems: &mut Problems) {
    let (data, binary) = (Field::root("data"), Field::root("binaryData"));
    let mut bytes = 0;
    for (key, value) in map.data.iter().flatten() {
        bytes += value.len();
        problems.name(&data.key(key), key, names::config_key(key));
    }
    for (key, value) in map.binary_data.iter().flatten() {
        bytes += value.0.len();
        problems.name(&binary.key(key), key, names::config_key(key));
        if map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            problems.invalid(&binary.key(key), key, "duplicate of key present in data");
        }
    }
    if bytes > CONFIG_MAP_BYTES_MAX {
        problems.forbidden(
            &data,
            format_args!("Too long: may not be more than {CONFIG_MAP_BYTES_MAX} bytes"),
        );
    }
}
