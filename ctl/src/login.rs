//! [`Login`]: what a command shows to a master, and by which CA it knows one.
//!
//! From the context of the configuration. Where that has none, the administrator's files of a lab
//! or a master on this machine are looked at.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use timonier_identity::{Credentials, Identity, Trust};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::config::{Config, Context, with_port};
use crate::error::{Outcome, fail};
use crate::lab::{Lab, MASTER};

/// In a master's data folder.
pub const ADMIN_FILE: &str = "admin.yaml";
/// Where the systemd unit's master keeps its data.
const SYSTEM_DATA: &str = "/var/lib/timonier/master";

/// What is shown to a master, and by which CA it is known.
#[derive(Debug, Clone)]
pub struct Login {
    pub identity: Identity,
    pub bearer: Bearer,
}

/// Adds to each request the bearer token and in whose name it is, where there are such.
#[derive(Debug, Clone, Default)]
pub struct Bearer {
    authorization: Option<Text>,
    as_user: Option<Text>,
    as_groups: Vec<Text>,
}

type Text = MetadataValue<Ascii>;

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(value) = &self.authorization {
            metadata.insert("authorization", value.clone());
        }
        if let Some(user) = &self.as_user {
            metadata.insert("impersonate-user", user.clone());
        }
        for group in &self.as_groups {
            metadata.append("impersonate-group", group.clone());
        }
        Ok(request)
    }
}

impl Login {
    /// In the name of another user, and of groups beside him.
    pub fn acting(mut self, user: Option<&str>, groups: &[String]) -> Outcome<Self> {
        let text = |name: &str| {
            name.parse::<Text>().map_err(|_| fail(format!("act as {name:?}: it is no name")))
        };
        if user.is_none() && !groups.is_empty() {
            return Err(fail("--as-group goes with --as"));
        }
        self.bearer.as_user = user.map(text).transpose()?;
        self.bearer.as_groups = groups.iter().map(|group| text(group)).collect::<Outcome<_>>()?;
        Ok(self)
    }
}

/// Of the context, else of an administrator's file for the same server.
pub fn login(config: &Config, context: Option<&Context>, servers: &[String]) -> Outcome<Login> {
    if let Some(login) = context.and_then(|context| of_context(config, context).transpose()) {
        return login;
    }
    for (path, admin) in administrators() {
        let same = |known: &String| servers.iter().any(|server| with_port(known) == *server);
        let Some(context) = admin.chosen(None).ok().flatten() else { continue };
        if !admin.servers(context).iter().any(same) {
            continue;
        }
        return match of_context(&admin, context)? {
            Some(login) => Ok(login),
            None => Err(fail(format!("{} names no CA", path.display()))),
        };
    }
    let servers = servers.join(", ");
    Err(fail(format!("connect to master {servers}: no CA is known to check its certificate with"))
        .hint(
            "is the lab up? timonctl lab up; for another cluster, copy admin.yaml out of a master's data folder and set TIMONIER_CONFIG to it",
        ))
}

/// The administrator's configuration of a lab or a master on this machine, to stand in for an own
/// one.
pub fn stand_in() -> Option<Config> {
    administrators().into_iter().map(|(_, config)| config).next()
}

fn administrators() -> Vec<(PathBuf, Config)> {
    let lab = Lab::open(None).ok().map(|lab| lab.data(MASTER));
    let folders = lab.into_iter().chain([PathBuf::from(SYSTEM_DATA)]);
    let files = folders.map(|folder| folder.join(ADMIN_FILE)).filter(|path| readable(path));
    files.filter_map(|path| Some((path.clone(), Config::load(&path).ok()?))).collect()
}

fn readable(path: &Path) -> bool {
    std::fs::File::open(path).is_ok()
}

/// `None` where the context names no CA.
fn of_context(config: &Config, context: &Context) -> Outcome<Option<Login>> {
    let wrong =
        |what: &str, why: String| fail(format!("read {what} of context {:?}: {why}", context.name));
    let text = |what: &str, data: &str| {
        let bytes = STANDARD.decode(data.trim()).map_err(|error| wrong(what, error.to_string()))?;
        String::from_utf8(bytes).map_err(|error| wrong(what, error.to_string()))
    };
    let cluster = context.cluster.as_deref().and_then(|name| config.cluster(name));
    let Some(ca) = cluster.and_then(|c| c.certificate_authority_data.as_deref()) else {
        return Ok(None);
    };
    let bundle = text("certificate-authority-data", ca)?;
    let user = context.user.as_deref().and_then(|name| config.user(name));
    let mut bearer = Bearer::default();
    let mut credentials = None;
    if let Some(user) = user {
        credentials = match (&user.client_certificate_data, &user.client_key_data) {
            (Some(chain), Some(key)) => Some(Credentials {
                chain_pem: text("client-certificate-data", chain)?,
                key_pem: text("client-key-data", key)?,
            }),
            (None, None) => None,
            _ => {
                let why = "certificate and key go together; one is missing".to_owned();
                return Err(wrong("the certificate", why));
            }
        };
        if let Some(token) = &user.token {
            let value = format!("Bearer {}", token.trim()).parse();
            bearer.authorization = Some(
                value.map_err(|_| wrong("the token", "it has characters that none has".into()))?,
            );
            // As in kubectl: who has a token is who the token says.
            credentials = None;
        }
    }
    let identity = Identity::new(credentials, Trust::Bundle(bundle))
        .map_err(|error| wrong("the certificates", error.to_string()))?;
    Ok(Some(Login { identity, bearer }))
}
