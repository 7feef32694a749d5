//! `create secret`: kubectl's three kinds, from texts and files. No message quotes a value.

use std::collections::BTreeMap;

use clap::Subcommand;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use timonier_proto::secret::{DOCKER_CONFIG_JSON, DOCKER_CONFIG_JSON_KEY, OPAQUE, TLS};

use super::{How, keyed_files};
use crate::error::{Outcome, bail, fail};

/// Bytes that a secret may hold.
const SECRET_BYTES_MAX: usize = 1 << 20;
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// From texts, files and folders
    Generic {
        name: String,
        /// KEY=VALUE
        #[arg(long, value_name = "KEY=VALUE")]
        from_literal: Vec<String>,
        /// FILE, KEY=FILE, or a folder
        #[arg(long, value_name = "FILE")]
        from_file: Vec<String>,
        /// A file with a KEY=VALUE on each line
        #[arg(long, value_name = "FILE")]
        from_env_file: Vec<String>,
        /// Kubernetes' type of the secret
        #[arg(long = "type", value_name = "TYPE", default_value = OPAQUE)]
        type_: String,
        #[command(flatten)]
        how: How,
    },
    /// A certificate and its private key
    Tls {
        name: String,
        /// PEM file of the certificate, or of its chain
        #[arg(long, value_name = "FILE")]
        cert: String,
        /// PEM file of the private key
        #[arg(long, value_name = "FILE")]
        key: String,
        #[command(flatten)]
        how: How,
    },
    /// Credentials of a registry, for imagePullSecrets
    DockerRegistry {
        name: String,
        #[arg(long, value_name = "SERVER", default_value = DOCKER_HUB)]
        docker_server: String,
        #[arg(long, value_name = "NAME", required_unless_present = "from_file")]
        docker_username: Option<String>,
        #[arg(long, value_name = "PASSWORD", required_unless_present = "from_file")]
        docker_password: Option<String>,
        #[arg(long, value_name = "ADDRESS")]
        docker_email: Option<String>,
        /// Docker's config.json instead, as FILE or .dockerconfigjson=FILE
        #[arg(long, value_name = "FILE", conflicts_with_all = ["docker_username", "docker_password"])]
        from_file: Option<String>,
        #[command(flatten)]
        how: How,
    },
}

type Data = BTreeMap<String, ByteString>;

impl Secret {
    pub fn object(self) -> Outcome<(Value, How)> {
        match self {
            Self::Generic { name, from_literal, from_file, from_env_file, type_, how } => {
                let data = generic(&from_literal, &from_file, &from_env_file)?;
                Ok((secret(&name, &type_, &data)?, how))
            }
            Self::Tls { name, cert, key, how } => {
                let (certificate, private) = (read(&cert)?, read(&key)?);
                expect_pem(&cert, &certificate, "CERTIFICATE")?;
                expect_pem(&key, &private, "PRIVATE KEY")?;
                let data = [("tls.crt", certificate), ("tls.key", private)];
                let data = data.map(|(key, bytes)| (key.to_owned(), ByteString(bytes)));
                Ok((secret(&name, TLS, &data.into())?, how))
            }
            Self::DockerRegistry {
                name,
                docker_server,
                docker_username,
                docker_password,
                docker_email,
                from_file,
                how,
            } => {
                let config = match from_file {
                    Some(file) => {
                        let path = file.split_once('=').map_or(file.as_str(), |(_, path)| path);
                        read(path)?
                    }
                    None => docker_config(
                        &docker_server,
                        &docker_username.unwrap_or_default(),
                        &docker_password.unwrap_or_default(),
                        docker_email.as_deref(),
                    )?,
                };
                let data = Data::from([(DOCKER_CONFIG_JSON_KEY.to_owned(), ByteString(config))]);
                Ok((secret(&name, DOCKER_CONFIG_JSON, &data)?, how))
            }
        }
    }
}

fn secret(name: &str, type_: &str, data: &Data) -> Outcome<Value> {
    let size: usize = data.values().map(|value| value.0.len()).sum();
    if size > SECRET_BYTES_MAX {
        return bail(format!(
            "secret {name:?} would hold {size} bytes, at most {SECRET_BYTES_MAX} fit"
        ));
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_,
    });
    if !data.is_empty() {
        object["data"] = serde_json::to_value(data)
            .map_err(|error| fail(format!("encode secret {name:?}: {error}")))?;
    }
    Ok(object)
}

fn generic(literals: &[String], files: &[String], env_files: &[String]) -> Outcome<Data> {
    let mut data = Data::new();
    for (number, literal) in literals.iter().enumerate() {
        let (key, value) = literal.split_once('=').ok_or_else(|| {
            fail(format!("--from-literal number {} is not KEY=VALUE", number + 1))
        })?;
        add(&mut data, key, value.as_bytes().to_vec())?;
    }
    for typed in files {
        for (key, path) in keyed_files(typed)? {
            let bytes = read(&path)?;
            add(&mut data, &key, bytes)?;
        }
    }
    for path in env_files {
        let text = String::from_utf8(read(path)?)
            .map_err(|_| fail(format!("read {path}: it is not a text")))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| {
                fail(format!("read {path}: line {} is not KEY=VALUE", number + 1))
            })?;
            add(&mut data, key.trim(), value.as_bytes().to_vec())?;
        }
    }
    Ok(data)
}

fn add(data: &mut Data, key: &str, value: Vec<u8>) -> Outcome {
    if key.is_empty() {
        return bail("a key is empty");
    }
    match data.insert(key.to_owned(), ByteString(value)) {
        None => Ok(()),
        Some(_) => bail(format!("cannot add key {key:?}, another key by that name already exists")),
    }
}

fn read(path: &str) -> Outcome<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| fail(format!("read {path}: {}", crate::client::plain_io(&error))))
}

fn expect_pem(path: &str, bytes: &[u8], label: &str) -> Outcome {
    let text = String::from_utf8_lossy(bytes);
    if text.contains("-----BEGIN ") && text.contains(&format!("{label}-----")) {
        return Ok(());
    }
    bail(format!("read {path}: there is no {} in PEM form in it", label.to_ascii_lowercase()))
}

fn docker_config(
    server: &str,
    username: &str,
    password: &str,
    email: Option<&str>,
) -> Outcome<Vec<u8>> {
    let pair = ByteString(format!("{username}:{password}").into_bytes());
    let mut auth = json!({"username": username, "password": password, "auth": pair});
    if let Some(email) = email {
        auth["email"] = email.into();
    }
    serde_json::to_vec(&json!({"auths": {server: auth}}))
        .map_err(|error| fail(format!("encode the credentials: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_secrets_take_texts_files_and_env_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("key.bin"), [0xff, 0]).unwrap();
        std::fs::write(path("env"), "# comment\nA=1=2\n\nB=\n").unwrap();
        let data = generic(&["pass=hun=ter".into()], &[path("key.bin")], &[path("env")]).unwrap();
        let object = secret("s", OPAQUE, &data).unwrap();
        assert_eq!(
            object["data"],
            json!({"A": "MT0y", "B": "", "key.bin": "/wA=", "pass": "aHVuPXRlcg=="})
        );
        let error = generic(&["hunter2".into()], &[], &[]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn registry_credentials_are_as_docker_writes_them() {
        let json = docker_config("r.example:5000", "me", "p:w", None).unwrap();
        let read = timonier_proto::secret::registry_credentials(&json).unwrap();
        assert_eq!(
            (read[0].server.as_str(), read[0].username.as_str(), read[0].password.as_str()),
            ("r.example:5000", "me", "p:w")
        );
    }
}
