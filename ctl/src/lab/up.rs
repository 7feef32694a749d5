//! `lab up`: starts what does not run yet and waits until all nodes are Ready.

use std::net::TcpListener;
use std::time::Duration;

use timonier_identity::JoinRole;
use timonier_proto::{DEFAULT_MASTER_PORT, Kind};
use tokio::time::Instant;

use super::masters;
use super::process::{self, Record};
use super::{CONTEXT, Lab, MASTER, State, bridge_name, need_root, node_name};
use crate::client::Client;
use crate::client::calls::Filter;
use crate::config::{Cluster, User};
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::output::printers::node_status;
use crate::output::progress::Spinner;
use crate::verbs::lab::AGENTS_DEFAULT;
use crate::verbs::token;

/// In the master's data folder.
const NODE_TOKEN_FILE: &str = "node-token";
const MASTER_DEADLINE: Duration = Duration::from_secs(30);
const NODES_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pods that each node takes: its range of addresses holds no more.
const MAX_PODS_DEFAULT: u32 = 250;
/// Nodes that fit the default pod range on one machine without asking for trouble.
const AGENTS_MAX: usize = 200;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub agents: Option<usize>,
    pub masters: Option<usize>,
    pub port: Option<u16>,
    pub max_pods: Option<u32>,
    pub master_arg: Vec<String>,
    pub agent_arg: Vec<String>,
}

pub async fn up(ctx: &Ctx, mut lab: Lab, wanted: Wanted) -> Outcome {
    need_root("up")?;
    let agents = agents(ctx, &lab, &wanted)?;
    let (master, agent) =
        (process::program("timonier-master")?, process::program("timonier-agent")?);
    let running = process::find(&lab, MASTER);
    let state = state(&lab, &wanted, agents, masters::wanted(ctx, &lab, wanted.masters)?);
    check_ports(&lab, &state)?;
    for folder in ["", "logs", "run"] {
        let path = lab.dir.join(folder);
        std::fs::create_dir_all(&path)
            .map_err(|error| fail(format!("make folder {}: {error}", path.display())))?;
    }
    lab.save(state.clone())?;
    let started = Instant::now();
    let spinner = Spinner::start(&ctx.out);
    spinner.say("starting the master");
    let record = match running {
        Some(record) => record,
        None => process::start(&lab, MASTER, &master, &masters::args(&lab, &state, 0))?,
    };
    let client = await_master(&lab, &state.addresses(), &record).await?;
    masters::start_others(&lab, &state, &client, &master, &spinner).await?;
    let addresses = state.addresses();
    use_context(ctx, &lab, &addresses)?;

    // The master may have run for longer than the token that it wrote lets in.
    let token = lab.data(MASTER).join(NODE_TOKEN_FILE);
    token::keep_good(&client, &token, JoinRole::Node).await?;
    spinner.say(format!("starting {agents} agents"));
    let mut records = Vec::new();
    for number in 1..=agents {
        let name = node_name(number);
        let record = match process::find(&lab, &name) {
            Some(record) => record,
            None => process::start(&lab, &name, &agent, &agent_args(&lab, &name, &state))?,
        };
        records.push((name, record));
    }
    await_nodes(&lab, &client, &records, &spinner).await?;
    drop(spinner);
    ctx.out.line(format!(
        "lab is up: {agents} nodes Ready in {:.1} s, {} {}, data in {}",
        started.elapsed().as_secs_f64(),
        if addresses.len() > 1 { "masters" } else { "master" },
        addresses.join(", "),
        lab.dir.display()
    ))?;
    ctx.out.line(format!("context {CONTEXT:?} is now the current one; try: timonctl get nodes"))
}

fn agents(ctx: &Ctx, lab: &Lab, wanted: &Wanted) -> Outcome<usize> {
    let present = lab.nodes().len();
    let agents = wanted.agents.unwrap_or(if present > 0 { present } else { AGENTS_DEFAULT });
    if agents == 0 || agents > AGENTS_MAX {
        return Err(fail(format!("a lab has 1 to {AGENTS_MAX} agents, not {agents}")));
    }
    if agents < present {
        ctx.out.note(format!("the lab has {present} nodes already and keeps them; timonctl lab down first makes a smaller one"));
    }
    Ok(agents.max(present))
}

/// What was asked for now, else what the lab was started with, else the defaults.
fn state(lab: &Lab, wanted: &Wanted, agents: usize, masters: usize) -> State {
    let before = lab.state.clone().unwrap_or_default();
    let given = |now: &[String], before: Vec<String>| match now {
        [] => before,
        now => now.to_vec(),
    };
    let or = |before: u32, default: u32| if before > 0 { before } else { default };
    let port = wanted.port.map_or(or(before.port.into(), DEFAULT_MASTER_PORT.into()), u32::from);
    State {
        port: u16::try_from(port).unwrap_or(DEFAULT_MASTER_PORT),
        agents,
        masters,
        max_pods: wanted.max_pods.unwrap_or(or(before.max_pods, MAX_PODS_DEFAULT)),
        master_args: given(&wanted.master_arg, before.master_args),
        agent_args: given(&wanted.agent_arg, before.agent_args),
    }
}

/// A lab stays on its ports while it runs; one that somebody else has is told before anything
/// starts.
fn check_ports(lab: &Lab, state: &State) -> Outcome {
    let running = process::find(lab, MASTER).is_some();
    if let Some(before) = lab.state.as_ref().filter(|before| before.port != state.port)
        && running
    {
        return Err(fail(format!("the lab runs on port {}, not {}", before.port, state.port))
            .hint("timonctl lab down first"));
    }
    for (index, address) in state.addresses().iter().enumerate() {
        if process::find(lab, &masters::name(index)).is_some() {
            continue;
        }
        TcpListener::bind(address).map_err(|error| {
            fail(format!("{address} cannot be used: {}", crate::client::plain_io(&error))).hint(
                "--port chooses another one, the first of as many as there are masters; another \
                 lab may be up in another folder",
            )
        })?;
    }
    Ok(())
}

fn agent_args(lab: &Lab, name: &str, state: &State) -> Vec<String> {
    let mut args: Vec<String> =
        ["--master", &state.addresses().join(","), "--node-name", name].map(str::to_owned).to_vec();
    args.extend(["--data-dir".into(), lab.data(name).display().to_string()]);
    args.extend(["--bridge".into(), bridge_name(name)]);
    let token = lab.data(MASTER).join(NODE_TOKEN_FILE);
    args.extend(["--token".into(), format!("@{}", token.display())]);
    args.extend(["--max-pods".into(), state.max_pods.to_string()]);
    args.extend(state.agent_args.clone());
    args
}

/// A client of the lab's administrator, once the master answers it.
async fn await_master(lab: &Lab, addresses: &[String], record: &Record) -> Outcome<Client> {
    let deadline = Instant::now() + MASTER_DEADLINE;
    loop {
        // The administrator's file is there before the master answers.
        let client = lab.client(addresses, None);
        let Err(failure) = client.cluster_info().await else { return Ok(client) };
        if !record.alive() {
            return Err(fail(format!(
                "the master ended; its log ends in\n{}",
                lab.log_tail(MASTER)
            ))
            .hint("timonctl lab logs master shows all of it"));
        }
        if Instant::now() > deadline {
            let why = failure.to_string();
            let why = why.lines().next().unwrap_or_default();
            return Err(fail(format!(
                "the master does not answer after {} s ({why}); its log ends in\n{}",
                MASTER_DEADLINE.as_secs(),
                lab.log_tail(MASTER)
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn await_nodes(
    lab: &Lab,
    client: &Client,
    records: &[(String, Record)],
    spinner: &Spinner,
) -> Outcome {
    let deadline = Instant::now() + NODES_DEADLINE;
    loop {
        let nodes = client.list(Kind::Node, &Filter::default()).await?;
        let status = |name: &str| nodes.iter().find(|n| n.name() == name).map(node_status);
        let ready = |name: &str| status(name).is_some_and(|s| s.starts_with("Ready"));
        let waiting: Vec<&str> =
            records.iter().map(|(name, _)| name.as_str()).filter(|name| !ready(name)).collect();
        spinner.say(format!(
            "{} of {} nodes are Ready",
            records.len() - waiting.len(),
            records.len()
        ));
        // A node whose agent was killed a moment ago still counts as Ready, but not as connected.
        let connected = client.cluster_info().await?.agents_connected as usize;
        if waiting.is_empty() && connected >= records.len() {
            return Ok(());
        }
        if let Some((name, _)) = records.iter().find(|(_, record)| !record.alive()) {
            return Err(fail(format!(
                "agent {name} ended; its log ends in\n{}",
                lab.log_tail(name)
            ))
            .hint(format!(
                "timonctl lab logs {name} shows all of it; timonctl lab down clears up"
            )));
        }
        if Instant::now() > deadline {
            let Some(first) = waiting.first() else {
                let agents = records.len();
                return Err(fail(format!("only {connected} of {agents} agents are connected"))
                    .hint("timonctl lab logs tells why"));
            };
            let node = nodes.iter().find(|n| n.name() == *first);
            let why = node
                .map(|n| n.condition("Ready").text("message"))
                .unwrap_or("it has not registered");
            return Err(fail(format!(
                "node {first} is not Ready after {} s: {why}; its agent's log ends in\n{}",
                NODES_DEADLINE.as_secs(),
                lab.log_tail(first)
            ))
            .hint("timonctl lab up goes on waiting; timonctl lab down clears up"));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn use_context(ctx: &Ctx, lab: &Lab, addresses: &[String]) -> Outcome {
    let mut config = ctx.config.clone();
    let admin = lab.administrator()?;
    if let (Some(cluster), Some(user)) = (admin.clusters.first(), admin.users.first()) {
        *config.cluster_mut(CONTEXT) = Cluster { name: CONTEXT.to_owned(), ..cluster.clone() };
        *config.user_mut(CONTEXT) = User { name: CONTEXT.to_owned(), ..user.clone() };
    }
    let context = config.context_mut(CONTEXT);
    context.servers = addresses.to_vec();
    context.cluster = Some(CONTEXT.to_owned());
    context.user = Some(CONTEXT.to_owned());
    config.current_context = Some(CONTEXT.to_owned());
    if config == ctx.config { Ok(()) } else { config.save(&ctx.config_path) }
}
