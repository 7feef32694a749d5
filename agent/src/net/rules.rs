//! Keeps the node's nftables table as it is wanted: takes the latest wish, compiles it, and has
//! nft apply the difference to what it programmed last.

use std::sync::Arc;
use std::time::Duration;

use timonier_agent_core::net::{DesiredNet, NodeRanges, Ruleset};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::program::{self, Failure};

/// Between two changes of the table; what is wanted meanwhile is merged into the next one.
const CHANGE_INTERVAL_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(500);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);

/// The latest wish.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// Counts wishes, so that one can wait for its own.
    pub(super) generation: u64,
    /// Counts the times the table was found missing, which calls for a full programming.
    pub(super) resets: u64,
    /// None: leave the table as it is.
    pub(super) desired: Option<Arc<DesiredNet>>,
}

/// How far the table has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The wish the table fulfils.
    pub(super) generation: u64,
    /// Why it has come no further, if it failed.
    pub(super) failure: Option<String>,
}

/// Makes `table` exist: as it is, where there is one (the pods of an agent that restarts keep
/// their services until the new wish is known), else with no services.
pub(super) async fn ensure_table(ranges: &NodeRanges, table: &str) -> Result<(), String> {
    if table_exists(table).await? {
        return Ok(());
    }
    let script = Ruleset::compile(ranges, &DesiredNet::default()).full_script(table);
    apply(&script).await
}

/// Whether the kernel has `table`.
pub(super) async fn table_exists(table: &str) -> Result<bool, String> {
    let tables = program::run("nft", &["list", "tables", "ip"], "").await.map_err(describe)?;
    let line = format!("table ip {table}");
    Ok(tables.lines().any(|other| other.trim() == line))
}

/// Removes `table`; no error if there is none.
pub(super) async fn remove_table(table: &str) -> Result<(), String> {
    apply(&Ruleset::removal_script(table)).await
}

/// Follows the wishes until nobody can have one any more.
pub(super) async fn follow(
    ranges: NodeRanges,
    table: String,
    mut wanted: watch::Receiver<Wanted>,
    progress: watch::Sender<Progress>,
) {
    let mut programmed: Option<Ruleset> = None;
    let mut resets = 0;
    let mut retry_delay = RETRY_DELAY_MIN;
    loop {
        let failed = progress.borrow().failure.is_some();
        let retry = sleep_until(Instant::now() + retry_delay);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = retry, if failed => retry_delay = (retry_delay * 2).min(RETRY_DELAY_MAX),
        }
        let wish = wanted.borrow_and_update().clone();
        if wish.resets != resets {
            resets = wish.resets;
            programmed = None;
        }
        let started = Instant::now();
        let failure = match &wish.desired {
            Some(desired) => change(&ranges, &table, desired, &mut programmed).await.err(),
            None => ensure_table(&ranges, &table).await.err(),
        };
        match &failure {
            Some(reason) => tracing::warn!(table, reason, "cannot program the nftables table"),
            None => retry_delay = RETRY_DELAY_MIN,
        }
        progress.send_modify(|progress| {
            if failure.is_none() {
                progress.generation = wish.generation;
            }
            progress.failure = failure;
        });
        sleep_until(started + CHANGE_INTERVAL_MIN).await;
    }
}

async fn change(
    ranges: &NodeRanges,
    table: &str,
    desired: &DesiredNet,
    programmed: &mut Option<Ruleset>,
) -> Result<(), String> {
    let ruleset = Ruleset::compile(ranges, desired);
    let started = Instant::now();
    // Unknown while nft runs: if this is cancelled or fails, the next change writes all of it.
    if let Some(known) = programmed.take() {
        let script = ruleset.script_from(&known, table);
        if script.is_empty() {
            *programmed = Some(known);
            return Ok(());
        }
        match apply(&script).await {
            Ok(()) => {
                let lines = script.lines().count();
                tracing::debug!(table, lines, elapsed = ?started.elapsed(), "changed the table");
                *programmed = Some(ruleset);
                return Ok(());
            }
            Err(reason) => {
                tracing::warn!(table, reason, "cannot change the nftables table, rewriting it");
            }
        }
    }
    apply(&ruleset.full_script(table)).await?;
    tracing::debug!(table, elapsed = ?started.elapsed(), "wrote the whole table");
    *programmed = Some(ruleset);
    Ok(())
}

async fn apply(script: &str) -> Result<(), String> {
    program::run("nft", &["-f", "-"], script).await.map(drop).map_err(describe)
}

fn describe(failure: Failure) -> String {
    failure.describe("nft", "nftables")
}
