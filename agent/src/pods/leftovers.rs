//! What is left of pods that nobody wants on this node any more, and of whole agents.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use super::shared::Shared;
use super::worker::FENCE_GRACE_S;
use crate::blocking;
use crate::runtime::{ContainerSummary, Runtime, RuntimeError, Signal};
use crate::volumes;

/// Between two looks at whether the containers have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// After a failure, when the engine may be away.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// An engine has done by then what it was asked before.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);
const CONCURRENT_REMOVALS_MAX: usize = 4;

/// Stops a pod with the grace period that its labels name, and removes all of it. Tries until it
/// is done: an engine that is away comes back.
pub(super) async fn stop(shared: &Shared, uid: &str, found: Vec<ContainerSummary>) {
    let running: Vec<&str> =
        found.iter().filter(|one| one.running).map(|one| one.id.as_str()).collect();
    for id in &running {
        if let Err(error) = shared.runtime.signal(id, Signal::Terminate).await {
            tracing::warn!(%error, uid, "a leftover is not told to stop; it will be killed");
        }
    }
    let mut grace_s = found.iter().map(|one| one.labels.grace_s).max().unwrap_or(0);
    if found.iter().any(|one| one.labels.unique) && !shared.config.lease.is_valid() {
        grace_s = grace_s.min(FENCE_GRACE_S);
    }
    let deadline = Instant::now() + Duration::from_secs(u64::from(grace_s));
    while Instant::now() < deadline && any_runs(shared, &running).await {
        sleep(LOOK_INTERVAL).await;
    }
    while let Err(error) = try_remove(shared, uid, &found).await {
        tracing::warn!(error, uid, "a leftover cannot be removed yet");
        sleep(RETRY_INTERVAL).await;
    }
}

async fn any_runs(shared: &Shared, ids: &[&str]) -> bool {
    for id in ids {
        match shared.runtime.inspect(id).await {
            Ok(Some(info)) if info.running => return true,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
    false
}

async fn try_remove(shared: &Shared, uid: &str, found: &[ContainerSummary]) -> Result<(), String> {
    for one in found {
        shared.runtime.remove(&one.id).await.map_err(|error| error.to_string())?;
    }
    shared.network.detach(uid).await?;
    shared.network.release(uid);
    let dir = shared.pod_dir(uid);
    let removed = blocking::run(move || volumes::remove(&dir)).await;
    removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Removes the folders of pods below `pods_dir` that are none of `uids`.
pub(super) async fn remove_folders(pods_dir: PathBuf, uids: BTreeSet<String>) {
    let removing = blocking::run(move || {
        for entry in std::fs::read_dir(pods_dir).into_iter().flatten().flatten() {
            if uids.contains(entry.file_name().to_string_lossy().as_ref()) {
                continue;
            }
            if let Err(error) = volumes::remove(&entry.path()) {
                let path = entry.path().display().to_string();
                tracing::warn!(%error, path, "the folder of a pod that is gone is left");
            }
        }
    });
    if let Err(error) = removing.await {
        tracing::error!(%error, "folders of pods that are gone are left");
    }
}

/// Removes every container of a node, and the pods' folders below `data_dir`; how many
/// containers there were. Nothing may be running the node any more.
pub async fn cleanup(
    runtime: &dyn Runtime,
    node: &str,
    data_dir: &Path,
) -> Result<usize, RuntimeError> {
    let mut count = 0;
    loop {
        let found = runtime.list(node).await?;
        if found.is_empty() {
            break;
        }
        count += found.len();
        futures::stream::iter(found)
            .map(|one| async move { runtime.remove(&one.id).await })
            .buffer_unordered(CONCURRENT_REMOVALS_MAX)
            .try_collect::<()>()
            .await?;
        // An agent that was killed may have left the engine something to make.
        sleep(SETTLE_INTERVAL).await;
    }
    remove_folders(data_dir.join("pods"), BTreeSet::new()).await;
    Ok(count)
}
