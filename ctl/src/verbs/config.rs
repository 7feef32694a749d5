//! `config`: the configuration file.

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
    /// Print the file
    View,
    /// Set the masters of a context
    SetServer {
        /// HOST:PORT, several separated by commas
        servers: String,
        /// The context; default: the current one, else "default"
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Set the namespace of a context
    SetContext {
        /// The context's name
        #[arg(required_unless_present = "current")]
        name: Option<String>,
        /// The current context
        #[arg(long, conflicts_with = "name")]
        current: bool,
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
        Action::View => {
            let text = serde_saphyr::to_string(&config)
                .map_err(|error| fail(format!("write yaml: {error}")))?;
            ctx.out.bytes(text.as_bytes())
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
        Action::SetContext { name, .. } => {
            let name = name.or(config.current_context.clone()).ok_or_else(|| {
                fail("no current context is set").hint("timonctl config use-context NAME")
            })?;
            if !ctx.target.namespace_typed {
                return bail("nothing to set; give --namespace NAME");
            }
            let existed = config.context(&name).is_some();
            config.context_mut(&name).namespace = Some(ctx.namespace().to_owned());
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
            context.servers.join(","),
            context.namespace.clone().unwrap_or_default(),
        ]);
    }
    table.take_lines(true, |_, cell| cell).iter().try_for_each(|line| ctx.out.line(line))
}
