//! `config`: the configuration file.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;

use crate::config::{self, Config};
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::output::table::Table;

const EXAMPLES: &str = "\
Examples:
  timonctl config set-server 10.0.0.1:7443,10.0.0.2:7443   masters of the current context
  timonctl config set-server lab2:7443 --name second       make or change another context
  timonctl config use-context second                       switch to it
  timonctl config set-context --current --namespace team   default namespace
  timonctl config get-contexts
  timonctl config view";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Print the file, without its keys and tokens
    View {
        /// With its keys and tokens
        #[arg(long)]
        raw: bool,
    },
    /// Make or change a cluster: its masters and the CA by which they are known
    SetCluster {
        name: String,
        /// HOST:PORT, several separated by commas
        #[arg(long, value_name = "LIST")]
        server: Option<String>,
        /// File with the CA's certificate, as a master has it in pki/ca.crt
        #[arg(long, value_name = "FILE")]
        certificate_authority: Option<PathBuf>,
    },
    /// Make or change a user: a certificate with its key, or a bearer token
    SetCredentials {
        name: String,
        /// File with the certificate
        #[arg(long, value_name = "FILE", requires = "client_key")]
        client_certificate: Option<PathBuf>,
        /// File with the certificate's key
        #[arg(long, value_name = "FILE", requires = "client_certificate")]
        client_key: Option<PathBuf>,
        /// The token's text, or @ and a file that has it
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
    },
    /// Set the masters of a context
    SetServer {
        /// HOST:PORT, several separated by commas
        servers: String,
        /// The context; default: the current one, else "default"
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Set the cluster, user or namespace of a context
    SetContext {
        /// The context's name
        #[arg(required_unless_present = "current")]
        name: Option<String>,
        /// The current context
        #[arg(long, conflicts_with = "name")]
        current: bool,
        /// One of the clusters of the file
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// One of the users of the file
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Switch to a context
    UseContext { name: String },
    /// Remove a context
    DeleteContext { name: String },
    /// List the contexts
    GetContexts {
        /// "name": only their names
        #[arg(short, long, value_parser = ["name"])]
        output: Option<String>,
    },
    /// Print the current context's name
    CurrentContext,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let mut config = ctx.config.clone();
    match args.action {
        Action::View { raw } => {
            let text = serde_saphyr::to_string(&if raw { config } else { config.redacted() })
                .map_err(|error| fail(format!("write yaml: {error}")))?;
            ctx.out.bytes(text.as_bytes())
        }
        Action::SetCluster { name, server, certificate_authority } => {
            let cluster = config.cluster_mut(&name);
            if let Some(list) = server {
                cluster.servers = list.split(',').map(str::trim).map(config::with_port).collect();
            }
            if let Some(path) = certificate_authority {
                cluster.certificate_authority_data = Some(encoded(&path)?);
            }
            config.save(&ctx.config_path)?;
            ctx.out.line(format!("Cluster {name:?} set."))
        }
        Action::SetCredentials { name, client_certificate, client_key, token } => {
            let user = config.user_mut(&name);
            if let (Some(certificate), Some(key)) = (client_certificate, client_key) {
                user.client_certificate_data = Some(encoded(&certificate)?);
                user.client_key_data = Some(encoded(&key)?);
                user.token = None;
            }
            if let Some(text) = token {
                let text = match text.strip_prefix('@') {
                    Some(path) => read(path.as_ref())?,
                    None => text,
                };
                user.token = Some(text.trim().to_owned());
            }
            config.save(&ctx.config_path)?;
            ctx.out.line(format!("User {name:?} set."))
        }
        Action::SetServer { servers, name } => {
            let name = name.or(config.current_context.clone()).unwrap_or_else(|| "default".into());
            let list: Vec<String> = servers
                .split(',')
                .filter(|s| !s.trim().is_empty())
                .map(|s| config::with_port(s.trim()))
                .collect();
            if list.is_empty() {
                return bail("no server was named; give HOST:PORT");
            }
            ctx.out.line(format!("Context {name:?} uses {}.", list.join(", ")))?;
            let context = config.context_mut(&name);
            context.servers = list;
            // Those of another cluster, perhaps.
            context.masters.clear();
            config.current_context.get_or_insert(name);
            config.save(&ctx.config_path)
        }
        Action::SetContext { name, cluster, user, .. } => {
            let name = name.or(config.current_context.clone()).ok_or_else(|| {
                fail("no current context is set").hint("timonctl config use-context NAME")
            })?;
            if !ctx.target.namespace_typed && cluster.is_none() && user.is_none() {
                return bail("nothing to set; give --cluster, --user or --namespace NAME");
            }
            if let Some(cluster) = cluster.as_deref().filter(|c| config.cluster(c).is_none()) {
                return bail(format!("the configuration has no cluster {cluster:?}"));
            }
            if let Some(user) = user.as_deref().filter(|user| config.user(user).is_none()) {
                return bail(format!("the configuration has no user {user:?}"));
            }
            let existed = config.context(&name).is_some();
            let context = config.context_mut(&name);
            context.cluster = cluster.or(context.cluster.take());
            context.user = user.or(context.user.take());
            if ctx.target.namespace_typed {
                context.namespace = Some(ctx.namespace().to_owned());
            }
            config.save(&ctx.config_path)?;
            let done = if existed { "modified" } else { "created" };
            ctx.out.line(format!("Context {name:?} {done}."))
        }
        Action::UseContext { name } => {
            config.chosen(Some(&name))?;
            config.current_context = Some(name.clone());
            config.save(&ctx.config_path)?;
            ctx.out.line(format!("Switched to context {name:?}."))
        }
        Action::DeleteContext { name } => {
            config.chosen(Some(&name))?;
            config.contexts.retain(|context| context.name != name);
            if config.current_context.as_deref() == Some(&name) {
                config.current_context = None;
            }
            config.save(&ctx.config_path)?;
            ctx.out.line(format!("deleted context {name:?} from {}", ctx.config_path.display()))
        }
        Action::GetContexts { output } => list(ctx, &config, output.is_some()),
        Action::CurrentContext => match &config.current_context {
            Some(name) => ctx.out.line(name),
            None => bail("current-context is not set"),
        },
    }
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|error| fail(format!("read {}: {error}", path.display())))
}

/// A file's text as the configuration keeps it.
fn encoded(path: &Path) -> Outcome<String> {
    read(path).map(|text| STANDARD.encode(text))
}

fn list(ctx: &Ctx, config: &Config, only_names: bool) -> Outcome {
    if only_names {
        return config.contexts.iter().try_for_each(|context| ctx.out.line(&context.name));
    }
    let headers = ["CURRENT", "NAME", "SERVERS", "NAMESPACE"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    for context in &config.contexts {
        let current = config.current_context.as_deref() == Some(&context.name);
        table.row(vec![
            if current { "*" } else { "" }.into(),
            context.name.clone(),
            config.servers(context).join(","),
            context.namespace.clone().unwrap_or_default(),
        ]);
    }
    table.take_lines(true, |_, cell| cell).iter().try_for_each(|line| ctx.out.line(line))
}
