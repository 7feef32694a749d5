//! Secrets: Kubernetes' types and what each must hold. No message quotes a value.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use timonier_proto::{names, secret as kinds};

use super::field::{Field, Problems};

/// Bytes of all values of a secret together, as in Kubernetes.
const SECRET_BYTES_MAX: usize = 1 << 20;
const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

/// `stringData` is for writers only: it becomes `data`, and wins over it.
pub fn fill(secret: &mut Arc<Secret>) {
    let untyped = secret.type_.as_deref().unwrap_or_default().is_empty();
    if !untyped && secret.string_data.is_none() {
        return;
    }
    let secret = Arc::make_mut(secret);
    if untyped {
        secret.type_ = Some(kinds::OPAQUE.to_owned());
    }
    let texts = secret.string_data.take().unwrap_or_default();
    if !texts.is_empty() {
        let values = texts.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes())));
        secret.data.get_or_insert_default().extend(values);
    }
}

pub fn check(secret: &Secret, problems: &mut Problems) {
    let data = Field::root("data");
    let mut bytes = 0;
    for (key, value) in secret.data.iter().flatten() {
        bytes += value.0.len();
        problems.name(&data.key(key), key, names::config_key(key));
    }
    if bytes > SECRET_BYTES_MAX {
        let why = format_args!("Too long: may not be more than {SECRET_BYTES_MAX} bytes");
        problems.forbidden(&data, why);
    }
    let value = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let mut need = |keys: &[&str]| {
        for key in keys.iter().filter(|key| value(key).is_none()) {
            problems.required(&data.key(key), "");
        }
    };
    match secret.type_.as_deref().unwrap_or_default() {
        kinds::TLS => need(&["tls.crt", "tls.key"]),
        kinds::SSH_AUTH => need(&["ssh-privatekey"]),
        kinds::BASIC_AUTH if value("username").is_none() && value("password").is_none() => {
            need(&["username", "password"]);
        }
        kinds::DOCKER_CONFIG_JSON => {
            need(&[kinds::DOCKER_CONFIG_JSON_KEY]);
            let json = value(kinds::DOCKER_CONFIG_JSON_KEY);
            if json.is_some_and(|json| kinds::registry_credentials(&json.0).is_none()) {
                let field = data.key(kinds::DOCKER_CONFIG_JSON_KEY);
                problems.invalid(&field, "<secret contents redacted>", "it is not as Docker's config.json: {\"auths\": {SERVER: {\"username\": …, \"password\": …}}}");
            }
        }
        kinds::SERVICE_ACCOUNT_TOKEN => {
            let annotations = secret.metadata.annotations.as_ref();
            if annotations.and_then(|a| a.get(ACCOUNT_ANNOTATION)).is_none_or(String::is_empty) {
                let metadata = Field::root("metadata");
                problems.required(&metadata.name("annotations").key(ACCOUNT_ANNOTATION), "");
            }
        }
        _ => {}
    }
}

/// What an update may not change.
pub fn check_change(old: &Secret, new: &Secret, problems: &mut Problems) {
    if old.type_ != new.type_ {
        let type_ = new.type_.clone().unwrap_or_default();
        problems.invalid(&Field::root("type"), type_, "field is immutable");
    }
    if old.immutable == Some(true) {
        let why = "field is immutable when `immutable` is set";
        if new.immutable != Some(true) {
            problems.forbidden(&Field::root("immutable"), why);
        }
        if new.data != old.data {
            problems.forbidden(&Field::root("data"), why);
        }
    }
}
