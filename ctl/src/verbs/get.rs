//! `get`: one or many objects, as a table or whole, once or as they change.

use std::collections::HashMap;

use jiff::Timestamp;
use timonier_proto::Kind;

use crate::client::Seen;
use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::manifest;
use crate::output::objects::{self, Format, Listing, Show};
use crate::resolve::{self, Item, Target};

const EXAMPLES: &str = "\
Examples:
  timonctl get pods                              pods of the namespace
  timonctl get po,svc -o wide                    several kinds, with more columns
  timonctl get deployment web -o yaml            one object, whole
  timonctl get all -A                            everything, in all namespaces
  timonctl get pods -l app=web -w                follow the pods with a label
  timonctl get pods --field-selector status.phase=Running
  timonctl get pods --sort-by .metadata.creationTimestamp
  timonctl get pod web-1 -o jsonpath='{.status.podIP}'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND, KIND NAME…, KIND/NAME…, KIND,KIND or "all"
    #[arg(value_name = "OBJECTS")]
    pub words: Vec<String>,
    /// The objects that a manifest names
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,
    /// With -f: look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// wide, yaml, json, name, jsonpath=TEMPLATE or custom-columns=NAME:PATH,…
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: Format,
    /// Only objects with these labels: app=web,tier!=db,env in (a,b)
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Only objects with these fields: status.phase=Running,spec.nodeName!=a
    #[arg(long, value_name = "FIELDS", default_value = "", hide_default_value = true)]
    pub field_selector: String,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Go on printing what changes
    #[arg(short, long)]
    pub watch: bool,
    /// As -w, without the objects as they are now
    #[arg(long)]
    pub watch_only: bool,
    /// No header line
    #[arg(long)]
    pub no_headers: bool,
    /// Order by what a JSONPath finds
    #[arg(long, value_name = "PATH")]
    pub sort_by: Option<String>,
    /// A column with all labels
    #[arg(long)]
    pub show_labels: bool,
    /// Objects that do not exist are no error
    #[arg(long)]
    pub ignore_not_found: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let targets = match args.files.is_empty() {
        true => resolve::targets(&args.words)?,
        false => file_targets(&args)?,
    };
    resolve::check_names(&targets, args.all_namespaces, &args.selector)?;
    resolve::check_selector(&args.selector)?;
    let filter = ctx
        .filter(args.all_namespaces)
        .labels(args.selector.clone())
        .fields(args.field_selector.clone());
    if args.watch || args.watch_only {
        return watch(&args, ctx, &targets, filter).await;
    }
    let (mut items, failures) = resolve::fetch(ctx, &targets, &filter).await?;
    if let Some(path) = &args.sort_by {
        objects::sort(&mut items, path)?;
    }
    let tabular = matches!(args.output, Format::Table | Format::Wide | Format::Columns(_));
    match (items.is_empty(), failures.is_empty()) {
        // The failures below say it all.
        (true, false) => {}
        (true, true) if tabular => none_found(ctx, &targets, args.all_namespaces),
        _ => objects::show(&ctx.out, &items, &show(&args, &targets))?,
    }
    if failures.is_empty() || args.ignore_not_found {
        return Ok(());
    }
    failures.iter().for_each(|failure| ctx.out.failure(failure));
    Err(crate::told(1))
}

fn file_targets(args: &Args) -> Outcome<Vec<Target>> {
    if !args.words.is_empty() {
        return bail("name objects or a file, not both");
    }
    let documents = manifest::read(&args.files, args.recursive)?;
    documents
        .iter()
        .map(|d| {
            let kind = resolve::kind_of(&d.value)
                .ok_or_else(|| fail(format!("{}: the kind is not known", d.place())))?;
            Ok(Target::Named(kind, d.value.name().to_owned()))
        })
        .collect()
}

fn show(args: &Args, targets: &[Target]) -> Show {
    let several = targets.windows(2).any(|pair| pair[0].kind() != pair[1].kind());
    Show {
        format: args.output.clone(),
        with_namespace: args.all_namespaces,
        with_kind: several,
        no_headers: args.no_headers,
        show_labels: args.show_labels,
        single: matches!(targets, [Target::Named(..)]),
    }
}

fn none_found(ctx: &Ctx, targets: &[Target], all_namespaces: bool) {
    let namespaced = targets.iter().any(|t| t.kind().info().namespaced);
    if namespaced && !all_namespaces {
        ctx.out.note(format!("No resources found in {} namespace.", ctx.namespace()));
    } else {
        ctx.out.note("No resources found");
    }
}

async fn watch(args: &Args, ctx: &Ctx, targets: &[Target], filter: Filter) -> Outcome {
    let [target] = targets else {
        return bail("you may only specify a single kind, or a single object, to watch");
    };
    let mut filter = filter;
    if let Target::Named(kind, name) = target {
        // So that a wrong name is told rather than waited for.
        ctx.client.get(&ctx.key(*kind, name)).await?;
        filter.fields = format!("metadata.name={name}");
    }
    let kind = target.kind();
    let mut watch = ctx.client.watch(kind, &filter).await?;
    let mut printer = WatchPrinter::new(args, kind, targets);
    loop {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            stop = crate::interrupted() => return stop,
        };
        printer.print(ctx, kind, seen)?;
    }
}

/// Prints each change once; after a new listing, only what differs from what was printed.
struct WatchPrinter {
    show: Show,
    listing: Listing,
    printed: HashMap<String, String>,
    skip_first: bool,
    started: Timestamp,
}

impl WatchPrinter {
    fn new(args: &Args, kind: Kind, targets: &[Target]) -> Self {
        let show = Show { single: true, ..show(args, targets) };
        let listing = Listing::new(kind, &show);
        let skip_first = args.watch_only;
        Self { show, listing, printed: HashMap::new(), skip_first, started: Timestamp::now() }
    }

    fn print(&mut self, ctx: &Ctx, kind: Kind, seen: Seen) -> Outcome {
        let (value, added) = match seen {
            Seen::Reset => return Ok(()),
            Seen::Added(value) => (value, true),
            Seen::Modified(value) | Seen::Deleted(value) => (value, false),
        };
        let version = value.text("metadata.resourceVersion").to_owned();
        let key = format!("{}/{}", value.namespace(), value.name());
        if self.printed.insert(key, version.clone()) == Some(version) && added {
            return Ok(());
        }
        let old = value.time("metadata.creationTimestamp").is_some_and(|t| t < self.started);
        if self.skip_first && added && old {
            return Ok(());
        }
        match self.show.format {
            Format::Table | Format::Wide => {
                self.listing.add(&value, Timestamp::now());
                self.listing.flush(&ctx.out)
            }
            _ => {
                objects::show(&ctx.out, &[Item { kind, value }], &self.show)?;
                if matches!(self.show.format, Format::JsonPath(_)) {
                    ctx.out.bytes(b"\n")
                } else {
                    Ok(())
                }
            }
        }
    }
}
