//! `lab`: a whole cluster on this machine. The work is done in [`crate::lab`].

use std::path::PathBuf;

use clap::Subcommand;

use crate::context::Ctx;
use crate::error::Outcome;
use crate::lab::{self, Lab};

const EXAMPLES: &str = "\
Examples:
  timonctl lab up --agents 3       a master and three nodes on this machine
  timonctl lab status              what runs
  timonctl lab logs -f             follow what the master and the agents say
  timonctl lab logs lab-2          one of them
  timonctl lab down                stop it all and remove what it made";

/// Nodes of a lab unless --agents says otherwise.
pub const AGENTS_DEFAULT: usize = 3;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
    /// Where data and logs are kept; default: $TIMONIER_LAB_DIR, else ~/.local/share/timonier/lab
    #[arg(long, global = true, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Start masters and agents, wait until all nodes are Ready, and use them from now on
    #[command(after_help = "\
Examples:
  timonctl lab up                  three nodes
  timonctl lab up --agents 5       started again with more nodes, it adds them
  timonctl lab up --masters 3      three masters: one may be killed, and all goes on

Flags that are left out are as they were at the last up.
Needs root: agents make network interfaces and containers.")]
    Up {
        /// Nodes; default: as many as the lab has, else 3
        #[arg(long, value_name = "N")]
        agents: Option<usize>,
        /// Masters; default: as many as the lab has, else 1
        #[arg(long, value_name = "N")]
        masters: Option<usize>,
        /// Port of the first master (7443); others have the next ones
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// Pods that each node takes (250)
        #[arg(long, value_name = "N")]
        max_pods: Option<u32>,
        /// A further flag for each master, as --master-arg=--log-fsync-delay=20
        #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
        master_arg: Vec<String>,
        /// A further flag for each agent
        #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
        agent_arg: Vec<String>,
    },
    /// Show which parts of the lab run
    Status,
    /// Print what the masters and the agents say
    Logs {
        /// master, master-2, lab-1, lab-2, …; default: all
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Go on printing
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines; -1 is all
        #[arg(long, value_name = "LINES", default_value_t = 100, allow_negative_numbers = true)]
        tail: i64,
    },
    /// Stop the lab and remove its containers, network and data
    Down {
        /// Keep the masters' data, so that the next up goes on with the same objects
        #[arg(long)]
        keep_data: bool,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let lab = Lab::open(args.dir)?;
    match args.action {
        Action::Up { agents, masters, port, max_pods, master_arg, agent_arg } => {
            let wanted = lab::up::Wanted { agents, masters, port, max_pods, master_arg, agent_arg };
            lab::up::up(ctx, lab, wanted).await
        }
        Action::Status => lab::show::status(ctx, &lab).await,
        Action::Logs { names, follow, tail } => {
            lab::show::logs(ctx, &lab, &names, follow, tail).await
        }
        Action::Down { keep_data } => lab::down::down(ctx, lab, keep_data).await,
    }
}
