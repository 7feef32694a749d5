//! The lab's masters: the first one makes the cluster, the others join it, each on the next port.

use std::path::Path;
use std::time::Duration;

use timonier_identity::JoinRole;
use tokio::time::Instant;

use super::process::{self, Record};
use super::{Lab, MASTER, State};
use crate::client::Client;
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::output::progress::Spinner;
use crate::verbs::token;

/// Raft's groups are not larger.
pub const MASTERS_MAX: usize = 5;
/// A master that joins catches up within this time.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// In the first master's data folder.
const TOKEN_FILE: &str = "master-token";

/// `master`, `master-2`, `master-3`.
pub fn name(index: usize) -> String {
    if index == 0 { MASTER.to_owned() } else { format!("{MASTER}-{}", index + 1) }
}

impl State {
    /// How many masters the lab has.
    pub fn master_count(&self) -> usize {
        self.masters.max(1)
    }

    /// Where they answer.
    pub fn addresses(&self) -> Vec<String> {
        let port = |index: usize| usize::from(self.port) + index;
        (0..self.master_count()).map(|index| format!("127.0.0.1:{}", port(index))).collect()
    }
}

impl Lab {
    /// The masters that there are, or were to be.
    pub fn masters(&self) -> Vec<String> {
        let count = self.state.as_ref().map_or(1, State::master_count);
        let left = (count..MASTERS_MAX).filter(|index| {
            let name = name(*index);
            self.data(&name).exists() || self.record(&name).exists()
        });
        (0..count).chain(left).map(name).collect()
    }
}

/// How many the lab gets: a master more joins, one less would have to be removed.
pub fn wanted(ctx: &Ctx, lab: &Lab, asked: Option<usize>) -> Outcome<usize> {
    let present = lab.state.as_ref().map_or(0, State::master_count);
    let masters = asked.unwrap_or(present.max(1));
    if masters == 0 || masters > MASTERS_MAX {
        return Err(fail(format!("a lab has 1 to {MASTERS_MAX} masters, not {masters}")));
    }
    if masters < present {
        ctx.out.note(format!(
            "the lab has {present} masters already and keeps them; timonctl lab down first makes a \
             smaller one"
        ));
    }
    Ok(masters.max(present))
}

/// What each is started with.
pub fn args(lab: &Lab, state: &State, index: usize) -> Vec<String> {
    let addresses = state.addresses();
    let name = name(index);
    let mut args = vec!["--data-dir".into(), lab.data(&name).display().to_string()];
    args.extend(["--listen".into(), addresses[index].clone(), "--name".into(), name]);
    if index > 0 {
        args.extend(["--join".into(), addresses[0].clone()]);
        let token = lab.data(MASTER).join(TOKEN_FILE);
        args.extend(["--token".into(), format!("@{}", token.display())]);
    }
    args.extend(state.master_args.clone());
    args
}

/// Starts the second to the last, one after the other, once the first answers.
pub async fn start_others(
    lab: &Lab,
    state: &State,
    client: &Client,
    program: &Path,
    spinner: &Spinner,
) -> Outcome {
    // Those that belong to the cluster already: without them the first may have no majority.
    for index in 1..state.master_count() {
        if is_member(lab, index) {
            start(lab, state, program, index)?;
        }
    }
    for index in 1..state.master_count() {
        let name = name(index);
        spinner.say(format!("starting {name}"));
        if !is_member(lab, index) {
            // The first may have run for longer than the token that it wrote lets in.
            let token = lab.data(MASTER).join(TOKEN_FILE);
            token::keep_good(client, &token, JoinRole::Master).await?;
        }
        let record = start(lab, state, program, index)?;
        await_voter(lab, client, &name, &record).await?;
    }
    Ok(())
}

fn is_member(lab: &Lab, index: usize) -> bool {
    lab.data(&name(index)).join("cluster.json").exists()
}

fn start(lab: &Lab, state: &State, program: &Path, index: usize) -> Outcome<Record> {
    let name = name(index);
    match process::find(lab, &name) {
        Some(record) => Ok(record),
        None => process::start(lab, &name, program, &args(lab, state, index)),
    }
}

async fn await_voter(lab: &Lab, client: &Client, name: &str, record: &Record) -> Outcome {
    let deadline = Instant::now() + JOIN_DEADLINE;
    loop {
        let reply = client.masters().await?;
        let votes = |master: &timonier_proto::v1::MasterStatus| {
            master.name == name && master.voter && master.answers
        };
        if reply.leader != 0 && reply.masters.iter().any(votes) {
            return Ok(());
        }
        let why = match (record.alive(), Instant::now() > deadline) {
            (false, _) => "ended".to_owned(),
            (true, true) => format!("does not vote after {} s", JOIN_DEADLINE.as_secs()),
            (true, false) => {
                tokio::time::sleep(LOOK_INTERVAL).await;
                continue;
            }
        };
        return Err(fail(format!("{name} {why}; its log ends in\n{}", lab.log_tail(name)))
            .hint(format!("timonctl lab logs {name} shows all of it")));
    }
}
