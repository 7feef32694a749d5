//! `describe`: objects in detail. The pages themselves are made in [`crate::describe`].

use crate::context::Ctx;
use crate::describe::{self, Related};
use crate::error::Outcome;
use crate::fields::Fields;
use crate::resolve::{self, Item, Target};

const EXAMPLES: &str = "\
Examples:
  timonctl describe pod web-1            one pod, its containers and events
  timonctl describe deploy/web           a deployment
  timonctl describe node lab-1           capacity, pods, and measured use of a node
  timonctl describe pods -l app=web      all pods with a label
  timonctl describe pod web              all pods whose names start so";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND, KIND NAME…, KIND NAME-PREFIX or KIND/NAME…
    #[arg(value_name = "OBJECTS", required = true)]
    pub words: Vec<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// With the objects' events
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub show_events: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let targets = resolve::targets(&args.words)?;
    resolve::check_names(&targets, args.all_namespaces, &args.selector)?;
    resolve::check_selector(&args.selector)?;
    let filter = ctx.filter(args.all_namespaces).labels(args.selector.clone());
    let mut first = true;
    let mut failed = false;
    for target in &targets {
        let (mut items, mut failures) =
            resolve::fetch(ctx, std::slice::from_ref(target), &filter).await?;
        if let (Target::Named(kind, prefix), false) = (target, failures.is_empty()) {
            let all = ctx.client.list(*kind, &filter).await?;
            items = all
                .into_iter()
                .filter(|value| value.name().starts_with(prefix.as_str()))
                .map(|value| Item { kind: *kind, value })
                .collect();
            if !items.is_empty() {
                failures.clear();
            }
        }
        for failure in failures {
            ctx.out.failure(&failure);
            failed = true;
        }
        for item in &items {
            let related = Related::fetch(ctx, item, args.show_events).await?;
            if !std::mem::replace(&mut first, false) {
                ctx.out.line("\n")?;
            }
            ctx.out.bytes(describe::page(item, &related, jiff::Timestamp::now()).as_bytes())?;
        }
    }
    if first && !failed {
        ctx.out.note(format!("No resources found in {} namespace.", ctx.namespace()));
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}
