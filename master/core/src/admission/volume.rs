//! Volumes of a pod, and the config maps that they show.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Volume};
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
const SUPPORTED: [&str; 3] = ["emptyDir", "hostPath", "configMap"];

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
            problems.not_supported(&field.name(one), "use emptyDir, hostPath or configMap");
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
        let items = field.name("items");
        for (index, item) in map.items.iter().flatten().enumerate() {
            let field = items.index(index);
            problems.name(&field.name("key"), &item.key, names::config_key(&item.key));
            if item.path.is_empty() {
                problems.required(&field.name("path"), "");
            } else if item.path.starts_with('/') || item.path.split('/').any(|part| part == "..") {
                let why = "must be a relative path without '..'";
                problems.invalid(&field.name("path"), &item.path, why);
            }
            mode(&field.name("mode"), item.mode, problems);
        }
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
