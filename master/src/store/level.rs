//! Raising the cluster's level: once each master has said that its build knows a higher one.

use std::sync::Weak;
use std::time::Duration;

use timonier_master_core::level::Level;
use timonier_master_core::op::{Mark, Txn};
use tokio_util::sync::CancellationToken;

use super::{Member, Shared, Store, members};

/// How often the leader looks whether all masters know a higher level.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Until the store is closed, or the level is the highest that this master knows.
pub(super) async fn raise(shared: Weak<Shared>, closing: CancellationToken) {
    let mut told = String::new();
    loop {
        let Some(mut leader) = shared.upgrade().map(|shared| shared.leader.subscribe()) else {
            return;
        };
        let leads = *leader.borrow_and_update();
        if leads && let Some(shared) = shared.upgrade() {
            let store = Store { shared };
            let looked = tokio::select! {
                () = closing.cancelled() => return,
                looked = look(&store) => looked,
            };
            match looked {
                Ok(level) if level >= store.shared.level_max => return,
                Ok(_) => {}
                Err(why) if why == told => {}
                Err(why) => {
                    tracing::info!("the cluster's level stays as it is: {why}");
                    told = why;
                }
            }
        }
        tokio::select! {
            () = closing.cancelled() => return,
            changed = leader.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL), if leads => {}
        }
    }
}

/// Raises the level as far as all masters know it; answers what it is then, or why it is not the
/// highest.
async fn look(store: &Store) -> Result<Level, String> {
    let level = store.snapshot().level;
    if level >= store.shared.level_max {
        return Ok(level);
    }
    // A master that joins meanwhile would not be asked.
    let Ok(_alone) = store.shared.changing.try_lock() else { return Ok(level) };
    let (known, slowest) = known_to_all(store)?;
    if known > level {
        let raised = store.commit_leading(Txn::marking(Mark::Level(known))).await;
        raised.map_err(|error| error.to_string())?;
        tracing::info!(level = %known, "all masters know this level: the cluster goes by it");
    }
    match slowest {
        Some(member) => Err(format!(
            "{} is of an older build, which knows level {known}; hint: upgrade it",
            members::named(&member)
        )),
        None => Ok(known),
    }
}

/// The highest level that every master knows, and who knows none higher.
fn known_to_all(store: &Store) -> Result<(Level, Option<Member>), String> {
    let lately = store.shared.election_timeout * 2;
    let mut lowest = (store.shared.level_max, None);
    for member in store.members().into_iter().filter(|member| member.id != store.id()) {
        let Some(level) = store.shared.links.level(member.id, lately) else {
            return Err(format!("{} does not answer", members::named(&member)));
        };
        // One that this build does not know is higher than all that it does.
        let level = Level::try_from(level).unwrap_or(Level::NEWEST);
        if level < lowest.0 {
            lowest = (level, Some(member));
        }
    }
    Ok(lowest)
}
