//! `events`: what happened, oldest first.

use jiff::Timestamp;
use serde_json::Value;
use timonier_proto::Kind;

use crate::client::Seen;
use crate::context::Ctx;
use crate::error::Outcome;
use crate::fields::Fields;
use crate::output::objects::{self, Format, Listing, Show};
use crate::output::printers;
use crate::resolve::{self, Item};

const EXAMPLES: &str = "\
Examples:
  timonctl events                          of the namespace
  timonctl events --for pod/web-1          about one object
  timonctl events --types Warning -A       warnings of all namespaces
  timonctl events -w                       as they happen";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only about this KIND/NAME
    #[arg(long = "for", value_name = "OBJECT")]
    pub object: Option<String>,
    /// Only these types: Normal, Warning
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Go on printing what happens
    #[arg(short, long)]
    pub watch: bool,
    /// No header line
    #[arg(long)]
    pub no_headers: bool,
    /// wide, yaml, json, name or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: Format,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let mut filter = ctx.filter(args.all_namespaces);
    if let Some(word) = &args.object {
        let (kind, name) = resolve::kind_and_name(word, Kind::Pod)?;
        filter.fields =
            format!("involvedObject.kind={},involvedObject.name={name}", kind.info().name);
    }
    let wanted = |event: &Value| {
        args.types.is_empty()
            || args.types.iter().any(|t| t.eq_ignore_ascii_case(event.text("type")))
    };
    let show = Show {
        format: args.output.clone(),
        with_namespace: args.all_namespaces,
        no_headers: args.no_headers,
        ..Default::default()
    };
    if args.watch {
        let mut listing = Listing::new(Kind::Event, &show);
        let mut watch = ctx.client.watch(Kind::Event, &filter).await?;
        loop {
            let seen = tokio::select! {
                seen = watch.next() => seen?,
                stop = crate::interrupted() => return stop,
            };
            if let Seen::Added(event) | Seen::Modified(event) = seen
                && wanted(&event)
            {
                listing.add(&event, Timestamp::now());
                listing.flush(&ctx.out)?;
            }
        }
    }
    let mut events = ctx.client.list(Kind::Event, &filter).await?;
    events.retain(wanted);
    events.sort_by_key(printers::event_time);
    if events.is_empty() && matches!(args.output, Format::Table | Format::Wide) {
        let scope = match args.all_namespaces {
            true => String::new(),
            false => format!(" in {} namespace", ctx.namespace()),
        };
        ctx.out.note(format!("No events found{scope}."));
        return Ok(());
    }
    let items: Vec<Item> =
        events.into_iter().map(|value| Item { kind: Kind::Event, value }).collect();
    objects::show(&ctx.out, &items, &show)
}
