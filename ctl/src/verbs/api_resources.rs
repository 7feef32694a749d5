//! `api-resources`: the kinds table.

use timonier_proto::kinds::KINDS;

use crate::context::Ctx;
use crate::error::Outcome;
use crate::output::table::Table;

const EXAMPLES: &str = "\
Examples:
  timonctl api-resources            all kinds with their short names
  timonctl api-resources -o name    only their names";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only kinds that live in namespaces, or only those that do not
    #[arg(long, value_name = "BOOL")]
    pub namespaced: Option<bool>,
    /// "name"
    #[arg(short, long, value_name = "FORMAT", value_parser = ["name", "wide"])]
    pub output: Option<String>,
    /// No header line
    #[arg(long)]
    pub no_headers: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let mut rows: Vec<_> = KINDS
        .iter()
        .filter(|info| args.namespaced.is_none_or(|wanted| wanted == info.namespaced))
        .collect();
    rows.sort_by_key(|info| (info.group, info.plural));
    if args.output.as_deref() == Some("name") {
        return rows.iter().try_for_each(|info| {
            let group =
                if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
            ctx.out.line(format!("{}{group}", info.plural))
        });
    }
    let headers = ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    for info in rows {
        table.row(vec![
            info.plural.into(),
            info.short.join(","),
            info.api_version(),
            info.namespaced.to_string(),
            info.name.into(),
        ]);
    }
    let lines = table.take_lines(!args.no_headers, |_, cell| cell);
    lines.iter().try_for_each(|line| ctx.out.line(line))
}
