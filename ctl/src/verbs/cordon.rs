//! `cordon`, and what `uncordon` and `drain` share with it.

use serde_json::json;
use timonier_proto::Kind;

use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::resolve::{self, Item, Target};

const EXAMPLES: &str = "\
Examples:
  timonctl cordon lab-2            no new pods on a node; those that run stay
  timonctl cordon -l disk=hdd      all nodes with a label";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub nodes: Nodes,
}

#[derive(Debug, clap::Args)]
pub struct Nodes {
    /// Names of nodes
    #[arg(value_name = "NODE")]
    pub names: Vec<String>,
    /// All nodes with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
}

impl Nodes {
    pub async fn fetch(&self, ctx: &Ctx) -> Outcome<Vec<Item>> {
        if self.names.is_empty() && self.selector.is_empty() {
            return Err(fail("no node was named").hint("timonctl get nodes lists them"));
        }
        let bare = |name: &String| match name.split_once('/') {
            Some((_, name)) => name.to_owned(),
            None => name.clone(),
        };
        let targets: Vec<Target> = match self.names.is_empty() {
            true => vec![Target::All(Kind::Node)],
            false => self.names.iter().map(|n| Target::Named(Kind::Node, bare(n))).collect(),
        };
        resolve::check_names(&targets, false, &self.selector)?;
        let filter = ctx.filter(true).labels(self.selector.clone());
        let (items, failures) = resolve::fetch(ctx, &targets, &filter).await?;
        match failures.into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(items),
        }
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    for node in args.nodes.fetch(ctx).await? {
        set(ctx, &node, true).await?;
    }
    Ok(())
}

/// Sets whether the node takes new pods, and says so.
pub async fn set(ctx: &Ctx, node: &Item, cordoned: bool) -> Outcome {
    let word = if cordoned { "cordoned" } else { "uncordoned" };
    if node.value.flag("spec.unschedulable") == cordoned {
        return ctx.out.line(format!("{} already {word}", node.title()));
    }
    let value = if cordoned { json!(true) } else { json!(null) };
    ctx.client.merge_patch(&node.key(), &json!({"spec": {"unschedulable": value}})).await?;
    ctx.out.line(format!("{} {word}", node.title()))
}
