//! `monitor`: the exercise's table of CPU and memory, as the agents push it; full screen on request.
//!
//! Nothing is asked of the nodes: the master sends what it has been told last, one frame an
//! interval. A figure nobody has reported lately is said to be missing, never shown as zero.

mod tui;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use timonier_proto::v1::{MonitorFrame, MonitorRequest, NodeSample};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Streaming;

use crate::cli::duration::{Span, bare_is_s};
use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};

const EXAMPLES: &str = "\
Examples:
  timonctl monitor                           all nodes, every 5 s, until Ctrl-C
  timonctl monitor 10.0.0.1,10.0.0.2         these nodes, by address or name
  timonctl monitor lab-1 lab-2 --interval 1  two nodes, every second
  timonctl monitor --once -o json            one reading, for a script
  timonctl monitor --tui                     full screen: curves of the nodes, and their pods

CPU is of all cores and MEM of all memory of the host, in percent. Keys of the full screen: up and
down choose a node, Enter shows its pods, Esc goes back, q ends.";

/// Shown as it is, a figure older than this would be a lie.
const FIGURE_AGE_MS_MAX: u32 = 10_000;
/// Interval of the table, and of the full screen, when none is given.
const TABLE_INTERVAL: Duration = Duration::from_secs(5);
const SCREEN_INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL_MIN: Duration = Duration::from_millis(50);
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
/// A stream is given up when a frame is later than this.
const FRAME_DELAY_MAX: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Nodes by name or address, separated by commas or blanks; all when none is named
    #[arg(value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Time between two tables; a bare number is seconds (5s; 1s with --tui)
    #[arg(long, value_name = "TIME", value_parser = bare_is_s)]
    pub interval: Option<Span>,
    /// Print one table and end
    #[arg(long, conflicts_with = "tui")]
    pub once: bool,
    /// What stands for a node; default: its address, or its name where nodes share an address
    #[arg(long, value_name = "WHAT")]
    pub by: Option<By>,
    /// json: one object a table, in one line
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"], conflicts_with = "tui")]
    pub output: Option<String>,
    /// Full screen, with curves and pods
    #[arg(long)]
    pub tui: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    Name,
    Address,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let default = if args.tui { SCREEN_INTERVAL } else { TABLE_INTERVAL };
    let interval = args.interval.map_or(default, |span| span.0).clamp(INTERVAL_MIN, INTERVAL_MAX);
    let nodes: Vec<String> = args
        .nodes
        .iter()
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let mut feed = Feed::new(ctx, nodes.clone(), interval, args.tui);
    if args.tui {
        return tui::run(ctx, feed).await;
    }
    let json = args.output.is_some();
    if args.once {
        let frame = ctx.client.usage(&nodes, false).await?;
        let table = Table::of(&frame, &nodes, args.by);
        table.notes.values().for_each(|note| ctx.out.note(note));
        ctx.out.bytes(if json { json_line(&frame) } else { table.text() }.as_bytes())?;
        let known_none = frame.nodes.is_empty() && !frame.unknown_nodes.is_empty();
        return if known_none { Err(crate::told(1)) } else { Ok(()) };
    }
    tokio::select! {
        ended = follow(&mut feed, ctx, &nodes, args.by, json) => ended,
        stop = crate::interrupted() => stop,
    }
}

async fn follow(
    feed: &mut Feed,
    ctx: &Ctx,
    nodes: &[String],
    by: Option<By>,
    json: bool,
) -> Outcome {
    let mut told = BTreeMap::new();
    loop {
        match feed.next().await? {
            News::Frame(frame) => {
                let table = Table::of(&frame, nodes, by);
                for (about, note) in &table.notes {
                    if !told.contains_key(about) {
                        ctx.out.note(note);
                    }
                }
                for (label, ..) in &table.rows {
                    if told.contains_key(label) && !table.notes.contains_key(label) {
                        ctx.out.note(format!("{label}: all is well again"));
                    }
                }
                ctx.out.bytes(if json { json_line(&frame) } else { table.text() }.as_bytes())?;
                told = table.notes;
            }
            News::Lost(why) => ctx.out.note(format!("{why}; trying again")),
            News::Back => ctx.out.note("the master answers again"),
        }
    }
}

/// What a feed has to say.
enum News {
    Frame(MonitorFrame),
    /// The master went away; said once.
    Lost(String),
    Back,
}

/// Frames from whichever master answers, with a back-off while none does.
struct Feed {
    client: crate::client::Client,
    request: MonitorRequest,
    patience: Duration,
    stream: Option<Streaming<MonitorFrame>>,
    /// Whether a frame has ever come: before that a failure is the caller's mistake, not a gap.
    has_begun: bool,
    is_lost: bool,
    /// The first frame after a gap, while the end of the gap is being told.
    held: Option<MonitorFrame>,
    pause: Duration,
    not_before: Instant,
}

impl Feed {
    fn new(ctx: &Ctx, nodes: Vec<String>, interval: Duration, with_pods: bool) -> Self {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        Self {
            client: ctx.client.clone(),
            request: MonitorRequest { nodes, interval_ms, with_pods },
            patience: interval + FRAME_DELAY_MAX,
            stream: None,
            has_begun: false,
            is_lost: false,
            held: None,
            pause: BACKOFF_FIRST,
            not_before: Instant::now(),
        }
    }

    /// Dropping the future loses nothing.
    async fn next(&mut self) -> Outcome<News> {
        if let Some(frame) = self.held.take() {
            return Ok(News::Frame(frame));
        }
        loop {
            let why = match &mut self.stream {
                None => {
                    sleep_until(self.not_before).await;
                    match self.client.monitor(self.request.clone()).await {
                        Ok(stream) => {
                            self.stream = Some(stream);
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
                Some(stream) => match timeout(self.patience, stream.message()).await {
                    Ok(Ok(Some(frame))) => {
                        self.has_begun = true;
                        self.pause = BACKOFF_FIRST;
                        if std::mem::take(&mut self.is_lost) {
                            self.held = Some(frame);
                            return Ok(News::Back);
                        }
                        return Ok(News::Frame(frame));
                    }
                    Ok(Ok(None)) => fail("the master ended the stream"),
                    Ok(Err(status)) if status.details().is_empty() && self.has_begun => {
                        fail("the connection to the master broke")
                    }
                    Ok(Err(status)) => self.client.explained(status),
                    Err(_) => fail("the master sends nothing any more"),
                },
            };
            self.stream = None;
            if !self.has_begun {
                return Err(why);
            }
            self.not_before = Instant::now() + self.pause;
            self.pause = (self.pause * 2).min(BACKOFF_MAX);
            if !std::mem::replace(&mut self.is_lost, true) {
                return Ok(News::Lost(first_line(&why)));
            }
        }
    }
}

/// A failure in one line, without its first word and its hint.
fn first_line(failure: &Failure) -> String {
    let text = failure.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// One frame as the exercise wants it.
struct Table {
    /// Label, CPU and memory.
    rows: Vec<(String, f32, f32)>,
    /// What has no row and why, by what it is about.
    notes: BTreeMap<String, String>,
}

impl Table {
    fn of(frame: &MonitorFrame, asked: &[String], by: Option<By>) -> Self {
        let mut table = Self { rows: Vec::new(), notes: BTreeMap::new() };
        if frame.nodes.is_empty() && frame.unknown_nodes.is_empty() {
            let note = "no node has joined the cluster yet".to_owned();
            table.notes.insert("the cluster".to_owned(), note);
        }
        for word in &frame.unknown_nodes {
            table.notes.insert(
                word.clone(),
                format!(
                    "no node is named {word} or has that address; timonctl get nodes lists them"
                ),
            );
        }
        for node in &frame.nodes {
            let label = label(node, frame, asked, by);
            if let Some(usage) = node.usage.filter(|_| is_fresh(node)) {
                table.rows.push((label.clone(), usage.cpu_percent, usage.memory_percent));
            }
            if let Some(why) = trouble(node) {
                table.notes.insert(label.clone(), format!("{label}: {why}"));
            }
        }
        table
    }

    fn text(&self) -> String {
        let mut text = String::from("ips CPU(%) MEM(%)\n");
        for (label, cpu, memory) in &self.rows {
            text.push_str(&format!("{label} {:.1}  {:.1}\n", percent(*cpu), percent(*memory)));
        }
        text
    }
}

/// What is measured can be a hair beyond its range.
fn percent(value: f32) -> f32 {
    if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 }
}

fn is_fresh(node: &NodeSample) -> bool {
    node.usage.is_some() && node.age_ms <= FIGURE_AGE_MS_MAX
}

fn trouble(node: &NodeSample) -> Option<String> {
    let seconds = f64::from(node.age_ms) / 1000.0;
    match (node.usage.is_some(), is_fresh(node), node.ready) {
        (false, ..) => Some("has reported no figures yet".into()),
        (true, false, _) => Some(format!("is not ready, and silent for {seconds:.0} s")),
        (true, true, false) => Some("is not ready, but reports its figures".into()),
        (true, true, true) => None,
    }
}

/// The word that was typed, else the address, else the name where addresses do not tell apart.
fn label(node: &NodeSample, frame: &MonitorFrame, asked: &[String], by: Option<By>) -> String {
    let shared = || frame.nodes.iter().filter(|other| other.address == node.address).count() > 1;
    let by_name = match by {
        Some(by) => by == By::Name,
        None => asked.contains(&node.name) || shared(),
    };
    if by_name || node.address.is_empty() { &node.name } else { &node.address }.clone()
}

fn json_line(frame: &MonitorFrame) -> String {
    let nodes: Vec<Value> = frame
        .nodes
        .iter()
        .map(|node| {
            let usage = node.usage.filter(|_| is_fresh(node));
            json!({
                "name": node.name,
                "address": node.address,
                "ready": node.ready,
                "age_ms": node.age_ms,
                "cpu_percent": usage.map(|u| rounded(percent(u.cpu_percent))),
                "memory_percent": usage.map(|u| rounded(percent(u.memory_percent))),
                "memory_used_bytes": usage.map(|u| u.memory_used_bytes),
                "memory_total_bytes": usage.map(|u| u.memory_total_bytes),
                "cores": usage.map(|u| u.cores),
                "load1": usage.map(|u| rounded(u.load1)),
                "pods": node.pod_count,
            })
        })
        .collect();
    let line = json!({
        "at_unix_ms": frame.at_unix_ms,
        "nodes": nodes,
        "unknown_nodes": frame.unknown_nodes,
    });
    format!("{line}\n")
}

/// One decimal.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use timonier_proto::v1::HostUsage;

    use super::*;
    use crate::exercise::script::{Script, ctx_of};

    fn node(name: &str, address: &str, figures: Option<(f32, f32)>) -> NodeSample {
        NodeSample {
            name: name.into(),
            address: address.into(),
            ready: figures.is_some(),
            age_ms: 400,
            usage: figures.map(|(cpu_percent, memory_percent)| HostUsage {
                cpu_percent,
                memory_percent,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn frame(nodes: Vec<NodeSample>) -> MonitorFrame {
        MonitorFrame { nodes, ..Default::default() }
    }

    #[test]
    fn the_table_is_the_exercises() {
        let mut silent = node("d", "10.0.0.4", Some((1.0, 1.0)));
        (silent.ready, silent.age_ms) = (false, 65_000);
        let frame = MonitorFrame {
            unknown_nodes: vec!["10.9.9.9".into()],
            ..frame(vec![
                node("a", "10.0.0.1", Some((75.2, 32.1))),
                node("b", "10.0.0.2", Some((23.06, 8.3))),
                node("c", "10.0.0.3", None),
                silent,
            ])
        };
        let table = Table::of(&frame, &[], None);
        let notes: Vec<&str> = table.notes.values().map(String::as_str).collect();
        expect![[r#"
            ips CPU(%) MEM(%)
            10.0.0.1 75.2  32.1
            10.0.0.2 23.1  8.3
            --
            10.0.0.3: has reported no figures yet
            10.0.0.4: is not ready, and silent for 65 s
            no node is named 10.9.9.9 or has that address; timonctl get nodes lists them"#]]
        .assert_eq(&format!("{}--\n{}", table.text(), notes.join("\n")));
    }

    #[test]
    fn nodes_that_share_an_address_go_by_name() {
        let lab = || {
            vec![
                node("lab-1", "127.0.0.1", Some((1.0, 2.0))),
                node("lab-2", "127.0.0.1", Some((1.0, 2.0))),
            ]
        };
        let first = |nodes, asked: &[&str], by| {
            let asked: Vec<String> = asked.iter().map(|word| (*word).to_owned()).collect();
            Table::of(&frame(nodes), &asked, by).rows[0].0.clone()
        };
        assert_eq!(first(lab(), &[], None), "lab-1");
        assert_eq!(first(lab(), &[], Some(By::Address)), "127.0.0.1");
        assert_eq!(first(lab()[..1].to_vec(), &["lab-1"], None), "lab-1");
        assert_eq!(first(lab()[..1].to_vec(), &[], None), "127.0.0.1");
        assert_eq!(first(lab()[..1].to_vec(), &[], Some(By::Name)), "lab-1");
    }

    #[tokio::test]
    async fn a_lost_master_is_told_once_and_found_again() {
        let first = frame(vec![node("a", "10.0.0.1", Some((1.0, 2.0)))]);
        let second = frame(vec![node("a", "10.0.0.1", Some((3.0, 4.0)))]);
        let script =
            Script { monitor: vec![vec![first], vec![], vec![second]], ..Script::default() };
        let master = script.serve().await;
        let (ctx, _) = ctx_of(&master);
        let mut feed = Feed::new(&ctx, Vec::new(), Duration::from_secs(1), false);
        let mut story = Vec::new();
        while story.len() < 4 {
            story.push(match feed.next().await.unwrap() {
                News::Frame(frame) => format!("{}", frame.nodes[0].usage.unwrap().cpu_percent),
                News::Lost(why) => why,
                News::Back => "back".into(),
            });
        }
        assert_eq!(story, ["1", "the master ended the stream", "back", "3"]);
    }
}
