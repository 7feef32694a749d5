//! The configuration file: named contexts, each a list of masters and a namespace.
//!
//! `$TIMONIER_CONFIG`, else `~/.config/timonier/config.yaml`. The file is rewritten whole, through a
//! temporary file, so that a reader never sees half of it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use timonier_proto::{DEFAULT_MASTER_PORT, DEFAULT_NAMESPACE};

use crate::error::{Outcome, fail};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_context: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<Cluster>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    #[serde(default)]
    pub contexts: Vec<Context>,
}

/// The masters of a cluster and the CA by which they are known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cluster {
    pub name: String,
    /// Masters as `host:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// PEM, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
}

/// What is shown to the masters: a certificate with its key, or a bearer token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct User {
    pub name: String,
    /// PEM, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// PEM, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Context {
    pub name: String,
    /// Of the clusters above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Of the users above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Masters as `host:port`, tried in turn, before those of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// All masters, as one of them told at the last command; tried after `servers`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masters: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Where the file is: `$TIMONIER_CONFIG`, `$XDG_CONFIG_HOME`, or under the home folder.
pub fn default_path() -> PathBuf {
    if let Some(path) = std::env::var_os("TIMONIER_CONFIG").filter(|p| !p.is_empty()) {
        return path.into();
    }
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .unwrap_or_else(|| home().join(".config"));
    base.join("timonier/config.yaml")
}

/// The person's home folder; `/root` where none is told.
pub fn home() -> PathBuf {
    std::env::var_os("HOME").filter(|p| !p.is_empty()).map_or_else(|| "/root".into(), PathBuf::from)
}

impl Config {
    /// An absent file is an empty configuration.
    pub fn load(path: &Path) -> Outcome<Config> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(fail(format!("read configuration {}: {error}", path.display())));
            }
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| {
            let place = error.location().map(|l| format!(":{}:{}", l.line(), l.column()));
            fail(format!(
                "read configuration {}{}: {}",
                path.display(),
                place.unwrap_or_default(),
                crate::manifest::cause(&error)
            ))
            .hint("correct the file, or move it away and run timonctl config set-server HOST:PORT")
        })
    }

    pub fn save(&self, path: &Path) -> Outcome {
        let wrong = |error: std::io::Error| {
            fail(format!("write configuration {}: {error}", path.display()))
        };
        let text = serde_saphyr::to_string(self)
            .map_err(|error| fail(format!("write configuration {}: {error}", path.display())))?;
        timonier_identity::write_private(path, &text).map_err(wrong)
    }

    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The cluster of this name, made when there is none.
    pub fn cluster_mut(&mut self, name: &str) -> &mut Cluster {
        let index = self.clusters.iter().position(|cluster| cluster.name == name);
        let index = index.unwrap_or_else(|| {
            self.clusters.push(Cluster { name: name.to_owned(), ..Default::default() });
            self.clusters.len() - 1
        });
        &mut self.clusters[index]
    }

    /// The user of this name, made when there is none.
    pub fn user_mut(&mut self, name: &str) -> &mut User {
        let index = self.users.iter().position(|user| user.name == name);
        let index = index.unwrap_or_else(|| {
            self.users.push(User { name: name.to_owned(), ..Default::default() });
            self.users.len() - 1
        });
        &mut self.users[index]
    }

    /// Without what nobody should read over a shoulder.
    pub fn redacted(&self) -> Self {
        let hide = |secret: &mut Option<String>| {
            if let Some(secret) = secret {
                *secret = "REDACTED".to_owned();
            }
        };
        let mut config = self.clone();
        for user in &mut config.users {
            hide(&mut user.client_key_data);
            hide(&mut user.token);
        }
        config
    }

    /// All masters that a context knows, in the order in which they are tried.
    pub fn servers(&self, context: &Context) -> Vec<String> {
        let cluster = context.cluster.as_deref().and_then(|name| self.cluster(name));
        let of_cluster = cluster.into_iter().flat_map(|cluster| &cluster.servers);
        let mut servers: Vec<String> = Vec::new();
        for server in context.servers.iter().chain(of_cluster).chain(&context.masters) {
            let server = with_port(server);
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }

    pub fn context(&self, name: &str) -> Option<&Context> {
        self.contexts.iter().find(|context| context.name == name)
    }

    /// The context of this name, made when there is none.
    pub fn context_mut(&mut self, name: &str) -> &mut Context {
        let index = match self.contexts.iter().position(|context| context.name == name) {
            Some(index) => index,
            None => {
                self.contexts.push(Context { name: name.to_owned(), ..Default::default() });
                self.contexts.len() - 1
            }
        };
        &mut self.contexts[index]
    }

    /// The named context, or the current one. Naming one that does not exist is a failure.
    pub fn chosen(&self, name: Option<&str>) -> Outcome<Option<&Context>> {
        let Some(wanted) = name.or(self.current_context.as_deref()) else { return Ok(None) };
        self.context(wanted).map(Some).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.iter().map(|c| c.name.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            fail(format!("context {wanted:?} does not exist"))
                .hint(format!("contexts in the configuration: {known}"))
        })
    }
}

/// What a command runs against.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub servers: Vec<String>,
    pub namespace: String,
    /// The namespace was typed, not taken from the context.
    pub namespace_typed: bool,
}

/// Flags first, then the context, then the defaults.
pub fn target(
    config: &Config,
    context: Option<&str>,
    server: Option<&str>,
    namespace: Option<&str>,
) -> Outcome<Target> {
    let context = match server {
        // With a server typed, a stale current context is no reason to stop.
        Some(_) if context.is_none() => config.chosen(None).unwrap_or(None),
        _ => config.chosen(context)?,
    };
    let typed = server.map(|list| list.split(',').map(str::trim).map(with_port).collect());
    let servers = typed
        .or_else(|| {
            let servers = config.servers(context?);
            (!servers.is_empty()).then_some(servers)
        })
        .unwrap_or_else(|| vec![format!("127.0.0.1:{DEFAULT_MASTER_PORT}")]);
    let from_context = context.and_then(|c| c.namespace.clone());
    Ok(Target {
        servers,
        namespace_typed: namespace.is_some(),
        namespace: namespace
            .map(str::to_owned)
            .or(from_context)
            .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
    })
}

/// `host` → `host:7443`; a scheme in front is dropped.
pub fn with_port(server: &str) -> String {
    let bare = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
    let has_port = match bare.rsplit_once(':') {
        Some((host, port)) => {
            port.chars().all(|c| c.is_ascii_digit())
                && !port.is_empty()
                && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match (has_port, bare.contains(':') && !bare.starts_with('[')) {
        (true, _) => bare.to_owned(),
        (false, true) => format!("[{bare}]:{DEFAULT_MASTER_PORT}"),
        (false, false) => format!("{bare}:{DEFAULT_MASTER_PORT}"),
    }
}

/// Keeps what was learned of the masters in the context that was used, for when its servers are
/// away. Best effort: a command that has done its work does not fail for this.
pub fn keep_masters(path: &Path, context: Option<&str>, told: &[String]) {
    if told.is_empty() {
        return;
    }
    // Read again: another command may have changed it meanwhile.
    let Ok(mut config) = Config::load(path) else { return };
    let Some(name) = context.map(str::to_owned).or_else(|| config.current_context.clone()) else {
        return;
    };
    let Some(context) = config.contexts.iter_mut().find(|context| context.name == name) else {
        return;
    };
    if context.masters != told {
        context.masters = told.to_vec();
        let _ = config.save(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_get_their_port() {
        for (typed, full) in [
            ("master", "master:7443"),
            ("https://10.0.0.1:80/", "10.0.0.1:80"),
            ("fd00::1", "[fd00::1]:7443"),
            ("[fd00::1]:1", "[fd00::1]:1"),
            ("[fd00::1]", "[fd00::1]:7443"),
        ] {
            assert_eq!(with_port(typed), full);
        }
    }

    #[test]
    fn a_file_survives_and_a_wrong_one_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/config.yaml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        let mut config = Config { current_context: Some("lab".into()), ..Default::default() };
        config.context_mut("lab").servers = vec!["127.0.0.1:7443".into()];
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);

        std::fs::write(&path, "contexts:\n- name: a\n  server: x\n").unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("config.yaml:3:"), "{error}");
        assert!(error.contains("unknown field"), "{error}");
    }

    #[test]
    fn flags_win_over_the_context() {
        let mut config = Config { current_context: Some("lab".into()), ..Default::default() };
        *config.context_mut("lab") = Context {
            name: "lab".into(),
            servers: vec!["a:1".into(), "b".into()],
            masters: vec!["b:7443".into(), "c:7443".into()],
            namespace: Some("team".into()),
            ..Default::default()
        };
        let plain = target(&config, None, None, None).unwrap();
        assert_eq!(plain.servers, ["a:1", "b:7443", "c:7443"]);
        assert_eq!((plain.namespace.as_str(), plain.namespace_typed), ("team", false));
        let typed = target(&config, None, Some("c,d:2"), Some("x")).unwrap();
        assert_eq!(typed.servers, ["c:7443", "d:2"]);
        assert_eq!(typed.namespace, "x");
        assert!(target(&config, Some("nope"), None, None).is_err());
    }
}
