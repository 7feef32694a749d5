//! `image`: brings images to the nodes without a registry.
//!
//! An image comes from the local Docker or from an archive, and goes through the master to the
//! nodes' engines; layers that every node has are left out.

mod archive;
mod load;
mod source;

use crate::context::Ctx;
use crate::error::Outcome;

const EXAMPLES: &str = "\
Examples:
  timonctl image load timonier/web:v1            from the local Docker to all nodes
  timonctl image load web.tar --nodes lab-1      from `docker save`, to one node";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send an image to the nodes' engines
    Load(load::Args),
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.command {
        Command::Load(args) => load::run(args, ctx).await,
    }
}
