//! `recover`: what is left of a cluster when most of its masters are lost for good.

use crate::context::Ctx;
use crate::error::Outcome;
use crate::verbs::backup::{At, offline};

const EXAMPLES: &str = "\
Examples:
  timonctl recover --from-this-master --data-dir /var/lib/timonier/master

Run it on the host of a master that is left, and stop that master before. It says what it costs, and
asks. As long as more than half of the masters can be brought back, bring them back instead.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Make the master with this data folder the only one, with what its disk holds
    #[arg(long, required = true)]
    pub from_this_master: bool,
    #[command(flatten)]
    pub at: At,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

pub async fn run(args: Args, _: &Ctx) -> Outcome {
    let mut words = vec!["recover".into(), "--from-this-master".into()];
    if args.yes {
        words.push("--yes".into());
    }
    offline(words, args.at).await
}
