//! `annotate`: as `label`, for annotations.

use crate::context::Ctx;
use crate::error::Outcome;
use crate::verbs::label::{self, Change};

const EXAMPLES: &str = "\
Examples:
  timonctl annotate deploy/web owner='team a'                     set an annotation
  timonctl annotate deploy/web owner-                             remove it
  timonctl annotate namespace test timonier.io/network=isolated   a network of its own";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub change: Change,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    label::change(args.change, ctx, "annotations", ["annotated", "annotated", "not annotated"])
        .await
}
