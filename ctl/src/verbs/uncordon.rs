//! `uncordon`: let a node take pods again.

use crate::context::Ctx;
use crate::error::Outcome;
use crate::verbs::cordon::{self, Nodes};

const EXAMPLES: &str = "\
Examples:
  timonctl uncordon lab-2          after maintenance; pods do not move back by themselves";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub nodes: Nodes,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    for node in args.nodes.fetch(ctx).await? {
        cordon::set(ctx, &node, false).await?;
    }
    Ok(())
}
