//! `version`: of timonctl and of the master.

use serde_json::json;

use crate::context::Ctx;
use crate::error::Outcome;
use crate::output::objects::Format;
use crate::output::yaml;

const EXAMPLES: &str = "\
Examples:
  timonctl version             both versions
  timonctl version --client    without asking a master";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only timonctl's own
    #[arg(long)]
    pub client: bool,
    /// yaml or json
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: Format,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let master = if args.client { None } else { Some(ctx.client.cluster_info().await) };
    let (version, failure) = match master {
        None => (None, None),
        Some(Ok(info)) => (Some(info.version), None),
        Some(Err(failure)) => (None, Some(failure)),
    };
    let mut value = json!({"clientVersion": own});
    if let Some(version) = &version {
        value["serverVersion"] = version.as_str().into();
    }
    match args.output {
        Format::Json => ctx.out.bytes(yaml::json(&value)?.as_bytes())?,
        Format::Yaml => ctx.out.bytes(yaml::yaml(&value)?.as_bytes())?,
        _ => {
            ctx.out.line(format!("Client Version: {own}"))?;
            if let Some(version) = &version {
                ctx.out.line(format!("Server Version: {version}"))?;
            }
        }
    }
    failure.map_or(Ok(()), Err)
}
