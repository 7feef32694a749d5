//! `master`: who the masters are, and what changes among them.

use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::{Value, json};
use timonier_identity::JoinRole;
use timonier_proto::v1::change_masters_request::Change;
use timonier_proto::v1::{ListMastersReply, MasterStatus};

use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::output::objects::Format;
use crate::output::table::Table;
use crate::output::{age, yaml};
use crate::verbs::token;

const EXAMPLES: &str = "\
Examples:
  timonctl master list                 who leads, who answers, how many may fail
  timonctl master add --name m4        the command that starts one more
  timonctl master transfer-leader m2   before the leader's host goes down
  timonctl master remove m3            its place is free for another one";

/// Stands for what a person has to fill in.
const HOST: &str = "HOST:7443";
/// How long the token in the command that `add` prints lets masters join.
const JOIN_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the masters and how each is doing
    #[command(visible_alias = "ls")]
    List {
        /// wide, yaml, json or name
        #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
        output: Format,
        /// Rows only
        #[arg(long)]
        no_headers: bool,
    },
    /// Print the command that starts one more master; it votes by itself once it has everything
    Add {
        /// Of the new master; two of one name are refused
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Where the others will reach it
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Of the new master; must be empty
        #[arg(long, value_name = "FOLDER", default_value = "/var/lib/timonier/master")]
        data_dir: String,
    },
    /// Take a master out of the cluster, unless too few would be left
    #[command(visible_alias = "rm")]
    Remove {
        /// Name or id
        #[arg(value_name = "MASTER")]
        master: String,
    },
    /// Make another master lead; writes wait for about a second
    TransferLeader {
        /// Name or id; default: the one that is furthest
        #[arg(value_name = "MASTER")]
        master: Option<String>,
    },
    /// Let a master vote that has caught up; it happens by itself
    Promote {
        /// Name or id
        #[arg(value_name = "MASTER")]
        master: String,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.action {
        Action::List { output, no_headers } => list(ctx, &output, no_headers).await,
        Action::Add { name, address, data_dir } => {
            add(ctx, name.as_deref(), address.as_deref(), &data_dir).await
        }
        Action::Remove { master } => remove(ctx, &master).await,
        Action::TransferLeader { master } => transfer(ctx, master.as_deref()).await,
        Action::Promote { master } => promote(ctx, &master).await,
    }
}

async fn list(ctx: &Ctx, format: &Format, no_headers: bool) -> Outcome {
    let reply = ctx.client.masters().await?;
    match format {
        Format::Json => return ctx.out.bytes(yaml::json(&tree(&reply))?.as_bytes()),
        Format::Yaml => return ctx.out.bytes(yaml::yaml(&tree(&reply))?.as_bytes()),
        Format::Name => {
            return reply.masters.iter().try_for_each(|master| ctx.out.line(title(master)));
        }
        Format::Table | Format::Wide => {}
        Format::JsonPath(_) | Format::Columns(_) => {
            return Err(fail("master list prints wide, yaml, json or name")
                .hint("-o json, and take from it what is needed"));
        }
    }
    let mut table = table(&reply, *format == Format::Wide);
    let paint = |header: &str, cell: String| ctx.out.paint_cell(header, cell);
    table.take_lines(!no_headers, paint).iter().try_for_each(|line| ctx.out.line(line))?;
    if no_headers { Ok(()) } else { ctx.out.line(format!("\n{}", quorum(&reply))) }
}

fn title(master: &MasterStatus) -> String {
    match master.name.as_str() {
        "" => format!("master/{}", master.id),
        name => format!("master/{name}"),
    }
}

fn role(master: &MasterStatus) -> &'static str {
    match (master.leader, master.voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    }
}

fn state(master: &MasterStatus) -> &'static str {
    if !master.answers {
        "NotReady"
    } else if !master.trouble.is_empty() {
        "RefusingWrites"
    } else if !master.voter {
        "CatchingUp"
    } else {
        "Ready"
    }
}

fn table(reply: &ListMastersReply, is_wide: bool) -> Table {
    let mut headers =
        vec!["NAME", "ID", "ADDRESS", "ROLE", "STATE", "MATCH", "LAG", "UP", "VERSION"];
    if is_wide {
        headers.extend(["REVISION", "LOG", "MESSAGE"]);
    }
    let mut table = Table::new(headers.into_iter().map(str::to_owned).collect());
    for master in &reply.masters {
        let known = |text: String| if master.answers { text } else { "-".to_owned() };
        let seconds = Duration::from_millis(master.uptime_ms).as_secs();
        let mut row = vec![
            master.name.clone(),
            master.id.to_string(),
            master.address.clone(),
            role(master).to_owned(),
            state(master).to_owned(),
            known(master.last_index.to_string()),
            known(master.lag.to_string()),
            known(age::human(i64::try_from(seconds).unwrap_or(i64::MAX))),
            known(master.version.clone()),
        ];
        if is_wide {
            let mib = master.log_bytes as f64 / f64::from(1 << 20);
            row.push(known(master.revision.to_string()));
            row.push(known(format!("{mib:.1} MiB")));
            row.push(master.trouble.clone());
        }
        table.row(row);
    }
    table
}

/// How many may still fail, in one line.
fn quorum(reply: &ListMastersReply) -> String {
    let ListMastersReply { voters, quorum, answering, .. } = *reply;
    let failures = |further: &str, count: u32| match count {
        0 => format!("no {further}failure"),
        1 => format!("1 {further}failure"),
        count => format!("{count} {further}failures"),
    };
    if answering < quorum {
        let answer = if answering == 1 { "answers" } else { "answer" };
        return format!(
            "quorum {quorum} of {voters} is lost, only {answering} {answer}: nothing is written\n\
             hint: bring the others back; if that cannot be, timonctl recover"
        );
    }
    let spare = answering - quorum;
    let leader = if reply.leader == 0 { "; no leader is elected yet" } else { "" };
    if answering < voters {
        let away = voters - answering;
        let spare = failures("further ", spare);
        return format!("quorum {quorum} of {voters}, {away} away, tolerates {spare}{leader}");
    }
    format!("quorum {quorum} of {voters}, tolerates {}{leader}", failures("", spare))
}

fn tree(reply: &ListMastersReply) -> Value {
    let masters = reply.masters.iter().map(|master| {
        json!({
            "name": master.name, "id": master.id, "address": master.address,
            "role": role(master), "state": state(master), "message": master.trouble,
            "match": master.last_index, "applied": master.applied_index, "lag": master.lag,
            "revision": master.revision, "logBytes": master.log_bytes,
            "uptimeMs": master.uptime_ms, "version": master.version,
        })
    });
    let spare = reply.answering.checked_sub(reply.quorum);
    json!({
        "clusterId": reply.cluster_id, "leader": reply.leader, "term": reply.term,
        "answeredBy": reply.answered_by, "voters": reply.voters, "answering": reply.answering,
        "quorum": reply.quorum, "tolerates": spare, "masters": masters.collect::<Vec<_>>(),
    })
}

/// By name, else by id.
async fn find(ctx: &Ctx, wanted: &str) -> Outcome<(MasterStatus, ListMastersReply)> {
    let reply = ctx.client.masters().await?;
    let bare = wanted.strip_prefix("master/").unwrap_or(wanted);
    let by_name = reply.masters.iter().find(|master| master.name == bare);
    let id = bare.parse::<u64>().ok();
    let found = by_name.or_else(|| reply.masters.iter().find(|master| Some(master.id) == id));
    match found.cloned() {
        Some(master) => Ok((master, reply)),
        None => {
            let known: Vec<&str> = reply.masters.iter().map(|m| m.name.as_str()).collect();
            Err(fail(format!("there is no master {bare:?}"))
                .hint(format!("there are: {}", known.join(", "))))
        }
    }
}

async fn add(ctx: &Ctx, name: Option<&str>, address: Option<&str>, data_dir: &str) -> Outcome {
    let reply = ctx.client.masters().await?;
    if let Some(taken) = reply.masters.iter().find(|master| name == Some(master.name.as_str())) {
        return Err(fail(format!(
            "a master named {:?} is there already, at {}",
            taken.name, taken.address
        ))
        .hint("another --name; or timonctl master remove, if it is lost for good"));
    }
    let address = address.unwrap_or(HOST);
    let port = address.rsplit_once(':').map_or("7443", |(_, port)| port);
    let masters: Vec<&str> = reply.masters.iter().map(|m| m.address.as_str()).collect();
    let mut command = format!(
        "timonier-master --data-dir {data_dir} --listen 0.0.0.0:{port} --advertise {address} \
         --name {} --join {}",
        name.unwrap_or("$(hostname)"),
        masters.join(","),
    );
    let token = token::make(&ctx.client, JoinRole::Master, JOIN_TOKEN_TTL).await?;
    command += &format!(" --token {token}");
    ctx.out.line(command)?;
    ctx.out.note(
        "hint: the token lets masters join for a day, and brings the cluster's keys; timonctl token \
         revoke ends it before",
    );
    if address == HOST {
        ctx.out
            .note("hint: HOST is where the other masters reach the new one; --address fills it in");
    }
    let voters = reply.voters + 1;
    if voters.is_multiple_of(2) {
        ctx.out.note(format!(
            "hint: {voters} masters survive no more failures than {}; add two",
            voters - 1
        ));
    }
    Ok(())
}

async fn remove(ctx: &Ctx, wanted: &str) -> Outcome {
    let (master, _) = find(ctx, wanted).await?;
    ctx.client.change_masters(Change::Remove(master.id)).await?;
    ctx.out.line(format!("{} removed", title(&master)))?;
    ctx.out.note(format!(
        "hint: stop it; to come back it joins anew, with an empty data folder (id {} is not given \
         again)",
        master.id
    ));
    Ok(())
}

async fn transfer(ctx: &Ctx, wanted: Option<&str>) -> Outcome {
    let id = match wanted {
        Some(wanted) => {
            let (master, _) = find(ctx, wanted).await?;
            if master.leader {
                return ctx.out.line(format!("{} leads already", title(&master)));
            }
            master.id
        }
        None => 0,
    };
    let begun = Instant::now();
    ctx.client.change_masters(Change::TransferTo(id)).await?;
    let took = begun.elapsed().as_secs_f64();
    let reply = ctx.client.masters().await?;
    let leader = reply.masters.iter().find(|master| master.leader || master.id == id);
    let leader = leader.map_or_else(|| "another master".to_owned(), title);
    ctx.out.line(format!("{leader} leads, handed over in {took:.1} s"))
}

async fn promote(ctx: &Ctx, wanted: &str) -> Outcome {
    let (master, _) = find(ctx, wanted).await?;
    if master.voter {
        return ctx.out.line(format!("{} votes already", title(&master)));
    }
    ctx.client.change_masters(Change::Promote(master.id)).await?;
    ctx.out.line(format!("{} votes", title(&master)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(voters: u32, answering: u32) -> ListMastersReply {
        ListMastersReply {
            voters,
            answering,
            quorum: voters / 2 + 1,
            leader: 1,
            ..Default::default()
        }
    }

    #[test]
    fn the_quorum_is_told() {
        for (voters, answering, text) in [
            (1, 1, "quorum 1 of 1, tolerates no failure"),
            (3, 3, "quorum 2 of 3, tolerates 1 failure"),
            (5, 5, "quorum 3 of 5, tolerates 2 failures"),
            (3, 2, "quorum 2 of 3, 1 away, tolerates no further failure"),
        ] {
            assert_eq!(quorum(&reply(voters, answering)), text);
        }
        assert!(quorum(&reply(3, 1)).contains("is lost, only 1 answers"));
    }
}
