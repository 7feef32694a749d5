//! `top`: measured use, as the agents pushed it last.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use timonier_proto::Kind;
use timonier_proto::v1::PodSample;

use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::output::table::Table;
use crate::resolve;

const EXAMPLES: &str = "\
Examples:
  timonctl top nodes                   CPU and memory of the nodes
  timonctl top pods -A --sort-by cpu   pods of all namespaces, the busiest first
  timonctl top pods -l app=web         pods with a label
  timonctl monitor --tui               the same, live";

const MIB: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// nodes or pods
    #[arg(value_name = "KIND", value_parser = ["node", "nodes", "no", "pod", "pods", "po"])]
    pub kind: String,
    /// Only this one
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The largest first
    #[arg(long, value_name = "WHAT", value_parser = ["cpu", "memory"])]
    pub sort_by: Option<String>,
    /// No header line
    #[arg(long)]
    pub no_headers: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    resolve::check_selector(&args.selector)?;
    if args.kind.starts_with('n') { nodes(&args, ctx).await } else { pods(&args, ctx).await }
}

async fn nodes(args: &Args, ctx: &Ctx) -> Outcome {
    let objects =
        ctx.client.list(Kind::Node, &ctx.filter(true).labels(args.selector.clone())).await?;
    let wanted: Vec<&Value> = objects
        .iter()
        .filter(|n| args.name.as_deref().is_none_or(|name| n.name() == name))
        .collect();
    if let (true, Some(name)) = (wanted.is_empty(), &args.name) {
        return Err(fail(format!("nodes {name:?} not found")).hint("timonctl get nodes lists them"));
    }
    let frame = ctx.client.usage(&[], false).await?;
    let samples: HashMap<&str, _> = frame.nodes.iter().map(|n| (n.name.as_str(), n)).collect();
    let mut rows: Vec<(f64, u64, Vec<String>)> = Vec::new();
    for node in wanted {
        let usage = samples.get(node.name()).and_then(|s| s.usage.as_ref());
        let Some(usage) = usage else {
            let unknown = || "<unknown>".to_owned();
            rows.push((
                -1.0,
                0,
                vec![node.name().into(), unknown(), unknown(), unknown(), unknown()],
            ));
            continue;
        };
        let millis = f64::from(usage.cpu_percent) * f64::from(usage.cores) * 10.0;
        let cells = vec![
            node.name().into(),
            format!("{millis:.0}m"),
            format!("{:.0}%", usage.cpu_percent),
            format!("{}Mi", usage.memory_used_bytes / MIB),
            format!("{:.0}%", usage.memory_percent),
        ];
        rows.push((millis, usage.memory_used_bytes, cells));
    }
    let headers = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];
    print(args, ctx, headers.map(str::to_owned).to_vec(), rows)
}

async fn pods(args: &Args, ctx: &Ctx) -> Outcome {
    let mut filter = ctx.filter(args.all_namespaces).labels(args.selector.clone());
    if let Some(name) = &args.name {
        filter.fields = format!("metadata.name={name}");
    }
    let objects = ctx.client.list(Kind::Pod, &filter).await?;
    if objects.is_empty() {
        let failure = match &args.name {
            Some(name) => fail(format!("pods {name:?} not found")),
            None => {
                ctx.out.note(format!("No resources found in {} namespace.", ctx.namespace()));
                return Ok(());
            }
        };
        return Err(failure);
    }
    let wanted: HashSet<(&str, &str)> = objects.iter().map(|p| (p.namespace(), p.name())).collect();
    let frame = ctx.client.usage(&[], true).await?;
    let mut rows: Vec<(f64, u64, Vec<String>)> = Vec::new();
    let mut samples: Vec<&PodSample> = frame.nodes.iter().flat_map(|n| &n.pods).collect();
    samples.sort_by_key(|p| (&p.namespace, &p.name));
    for sample in samples {
        let Some(usage) = &sample.usage else { continue };
        if !wanted.contains(&(sample.namespace.as_str(), sample.name.as_str())) {
            continue;
        }
        let mut cells = Vec::new();
        if args.all_namespaces {
            cells.push(sample.namespace.clone());
        }
        cells.extend([
            sample.name.clone(),
            format!("{}m", usage.cpu_millis),
            format!("{}Mi", usage.memory_bytes / MIB),
        ]);
        rows.push((f64::from(usage.cpu_millis), usage.memory_bytes, cells));
    }
    if rows.is_empty() {
        return Err(fail("no measured use of these pods yet")
            .hint("agents send it with each heartbeat, ask again in a second"));
    }
    let mut headers = vec!["NAME".to_owned(), "CPU(cores)".into(), "MEMORY(bytes)".into()];
    if args.all_namespaces {
        headers.insert(0, "NAMESPACE".into());
    }
    print(args, ctx, headers, rows)
}

fn print(
    args: &Args,
    ctx: &Ctx,
    headers: Vec<String>,
    mut rows: Vec<(f64, u64, Vec<String>)>,
) -> Outcome {
    match args.sort_by.as_deref() {
        Some("cpu") => rows.sort_by(|a, b| b.0.total_cmp(&a.0)),
        Some(_) => rows.sort_by_key(|row| std::cmp::Reverse(row.1)),
        None => {}
    }
    let mut table = Table::new(headers);
    rows.into_iter().for_each(|row| table.row(row.2));
    table
        .take_lines(!args.no_headers, |_, cell| cell)
        .iter()
        .try_for_each(|line| ctx.out.line(line))
}
