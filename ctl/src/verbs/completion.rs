//! `completion`: scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::context::Ctx;
use crate::error::Outcome;

const EXAMPLES: &str = "\
Examples:
  source <(timonctl completion bash)                    for this shell
  timonctl completion bash > /etc/bash_completion.d/timonctl
  timonctl completion fish > ~/.config/fish/completions/timonctl.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Which shell
    pub shell: Shell,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "timonctl", &mut script);
    ctx.out.bytes(&script)
}
