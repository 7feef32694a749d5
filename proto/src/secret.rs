//! What is said of secrets where their values must not be: in logs and errors; and the registry
//! credentials that one may hold.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use serde::{Deserialize, Serialize};

pub const OPAQUE: &str = "Opaque";
pub const TLS: &str = "kubernetes.io/tls";
pub const DOCKER_CONFIG_JSON: &str = "kubernetes.io/dockerconfigjson";
pub const BASIC_AUTH: &str = "kubernetes.io/basic-auth";
pub const SSH_AUTH: &str = "kubernetes.io/ssh-auth";
pub const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
/// The key in which a secret of type [`DOCKER_CONFIG_JSON`] keeps its credentials.
pub const DOCKER_CONFIG_JSON_KEY: &str = ".dockerconfigjson";

/// A secret as it may be printed: its name, type and keys, and how long the values are.
pub struct Redacted<'a>(pub &'a Secret);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Secret { metadata, type_, data, string_data, .. } = self.0;
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        sizes.extend(data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.len())));
        sizes.extend(string_data.iter().flatten().map(|(key, value)| (key.as_str(), value.len())));
        f.debug_struct("Secret")
            .field("namespace", &metadata.namespace)
            .field("name", &metadata.name)
            .field("resource_version", &metadata.resource_version)
            .field("type", type_)
            .field("bytes", &sizes)
            .finish_non_exhaustive()
    }
}

/// What a registry is told to hand out an image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    /// Host, with a port and the begin of a path where it has them; `docker.io` for Docker Hub.
    pub server: String,
    pub username: String,
    pub password: String,
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredentials")
            .field("server", &self.server)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    /// Base64 of `username:password`.
    #[serde(default)]
    auth: k8s_openapi::ByteString,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The credentials in a `.dockerconfigjson`; `None` when it is not one.
pub fn registry_credentials(json: &[u8]) -> Option<Vec<RegistryCredentials>> {
    let config: DockerConfig = serde_json::from_slice(json).ok()?;
    let one = |(server, auth): (String, DockerAuth)| {
        let (username, password) = if auth.username.is_empty() {
            let pair = String::from_utf8(auth.auth.0).ok()?;
            let (username, password) = pair.split_once(':')?;
            (username.to_owned(), password.to_owned())
        } else {
            (auth.username, auth.password)
        };
        Some(RegistryCredentials { server: server_of(&server), username, password })
    };
    config.auths.into_iter().map(one).collect()
}

/// `https://index.docker.io/v1/` becomes `docker.io`, `https://r:5000/v2/` becomes `r:5000`.
fn server_of(text: &str) -> String {
    let text = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or(text);
    let text = text.trim_end_matches('/');
    let text = text.strip_suffix("/v1").or(text.strip_suffix("/v2")).unwrap_or(text);
    match text {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => text.to_owned(),
    }
}

/// Those that are meant for the image, the most specific first.
pub fn matching<'a>(
    credentials: &'a [RegistryCredentials],
    image: &str,
) -> Vec<&'a RegistryCredentials> {
    let first = image.split('/').next().unwrap_or_default();
    let has_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = if has_host { image.to_owned() } else { format!("docker.io/{image}") };
    let mut found: Vec<_> = credentials
        .iter()
        .filter(|one| {
            let rest = full.strip_prefix(one.server.as_str());
            !one.server.is_empty() && rest.is_some_and(|rest| rest.starts_with('/'))
        })
        .collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.server.len()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_printed_without_its_values() {
        let json = br#"{"metadata":{"name":"s"},"data":{"k":"aHVudGVyMg=="},"stringData":{"l":"hunter2"}}"#;
        let object = crate::Object::from_json(crate::Kind::Secret, json).unwrap();
        let text = format!("{object:?}");
        assert!(text.contains("\"k\": 7") && !text.contains("hunter2"), "{text}");
        assert!(!text.contains("104, 117"), "{text}");
    }

    #[test]
    fn credentials_find_their_images() {
        let json = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.example:5000": {"username": "a", "password": "b"},
            "r.example:5000/team": {"username": "team", "password": "c:d"}
        }}"#;
        let all = registry_credentials(json).unwrap();
        let users = |image: &str| {
            matching(&all, image).iter().map(|one| one.username.clone()).collect::<Vec<_>>()
        };
        assert_eq!(users("nginx:1"), ["hub"]);
        assert_eq!(users("library/nginx"), ["hub"]);
        assert_eq!(users("r.example:5000/x:1"), ["a"]);
        assert_eq!(users("r.example:5000/team/x"), ["team", "a"]);
        assert_eq!(users("r.example:5000/teams/x"), ["a"]);
        assert_eq!(users("r.example.evil/x"), Vec::<String>::new());
        assert!(!format!("{all:?}").contains("c:d"));
        assert_eq!(registry_credentials(b"{\"auths\": {\"a\": {\"auth\": \"???\"}}}"), None);
    }
}
