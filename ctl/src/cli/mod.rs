//! The command line: global flags and the list of verbs. Each verb's own flags stand in its file.

pub mod duration;
pub mod pages;

use clap::{Args, Parser, Subcommand};

use crate::cli::duration::Span;
use crate::context::Ctx;
use crate::error::Outcome;
use crate::verbs::*;

const EXAMPLES: &str = "\
Examples:
  timonctl lab up --agents 3                 a cluster on this machine
  timonctl apply -f web.yaml                 create or change what a file describes
  timonctl get pods -o wide                  what runs, and where
  timonctl logs -f -l app=web                follow the logs of all pods with a label
  timonctl scale web --latency 150 --by 3    more replicas when answers get slow
  timonctl update web timonier/web:v2        move a running workload to a new image
  timonctl monitor                           CPU and memory of the nodes, every 5 s

Every command has examples: timonctl COMMAND --help";

#[derive(Debug, Parser)]
#[command(
    name = "timonctl",
    version,
    about = "Steers a Timonier cluster: containers on many machines, described as Kubernetes describes them",
    after_help = EXAMPLES,
    max_term_width = 110,
    disable_help_subcommand = false
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = pages::GLOBAL_HEADING)]
pub struct Global {
    /// Namespace of the objects; default: the context's, else "default"
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Masters as HOST:PORT, separated by commas and tried in turn
    #[arg(
        long,
        global = true,
        env = "TIMONIER_SERVER",
        hide_env_values = true,
        value_name = "LIST"
    )]
    pub server: Option<String>,
    /// Context of the configuration file to use instead of the current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// How long the master may take to answer one request (20s)
    #[arg(long, global = true, value_name = "TIME")]
    pub request_timeout: Option<Span>,
    /// Act as this user; needs the right to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Act as a member of this group too; may stand several times
    #[arg(long, global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
}

macro_rules! verbs {
    ($($(#[$meta:meta])* $name:ident => $module:ident;)*) => {
        #[derive(Debug, Subcommand)]
        #[allow(clippy::large_enum_variant)]
        pub enum Command {
            $($(#[$meta])* $name($module::Args),)*
            /// Print the reference of all commands in Markdown
            #[command(hide = true, name = "help-pages")]
            HelpPages,
        }

        impl Command {
            pub async fn run(self, ctx: &Ctx) -> Outcome {
                match self {
                    $(Command::$name(args) => Box::pin($module::run(args, ctx)).await,)*
                    Command::HelpPages => ctx.out.bytes(crate::help_pages().as_bytes()),
                }
            }
        }
    };
}

verbs! {
    /// Create objects, or change them to what a manifest says
    Apply => apply;
    /// Delete objects and wait until they are gone
    Delete => delete;
    /// Show one or many objects
    Get => get;
    /// Show objects in detail, with their events
    Describe => describe;
    /// Print the logs of containers
    Logs => logs;
    /// Run a command in a container
    Exec => exec;
    /// Forward local ports to a pod
    PortForward => port_forward;
    /// Set the number of replicas, or scale on measured latency
    Scale => scale;
    /// Change a field of a workload
    Set => set;
    /// Move a running workload to a new image and time it
    Update => update;
    /// Follow, undo, pause or restart a rollout
    Rollout => rollout;
    /// Create an object from flags or a file
    Create => create;
    /// Make a service for a workload
    Expose => expose;
    /// Set or remove labels
    Label => label;
    /// Set or remove annotations
    Annotate => annotate;
    /// Edit an object in an editor
    Edit => edit;
    /// Show what apply would change
    Diff => diff;
    /// Keep new pods off a node
    Cordon => cordon;
    /// Let a node take pods again
    Uncordon => uncordon;
    /// Move all pods off a node, for maintenance
    Drain => drain;
    /// Show measured CPU and memory use
    Top => top;
    /// Show a live table of the nodes' CPU and memory
    Monitor => monitor;
    /// Send requests at a fixed pace and report latencies
    Load => load;
    /// List events, newest last
    Events => events;
    /// Wait for a condition of objects
    Wait => wait;
    /// Bring images to the nodes without a registry
    Image => image;
    /// Run a whole cluster on this machine
    Lab => lab;
    /// Ask what one may do, and who one is
    Auth => auth;
    /// Show the masters and the state of the cluster
    ClusterInfo => cluster_info;
    /// List, add and remove masters, and hand the leadership over
    Master => master;
    /// Save the cluster's state to a file, check one, restore one
    Backup => backup;
    /// Make a master the only one when most are lost for good
    Recover => recover;
    /// Show or rotate the keys that a master's files are encrypted with
    Encryption => encryption;
    /// Make, list and revoke tokens with which hosts join
    Token => token;
    /// Show, renew and revoke certificates
    Certificate => certificate;
    /// Show or change the configuration file
    Config => config;
    /// Print a completion script for a shell
    Completion => completion;
    /// Show the versions of timonctl and the master
    Version => version;
    /// List the kinds of objects
    ApiResources => api_resources;
}
