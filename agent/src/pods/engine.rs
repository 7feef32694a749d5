//! Following the engine: its events as they come, everything anew after they may have been
//! missed, and whether it answers at all.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::NotReady;
use super::shared::Shared;
use super::supervisor::Command;
use crate::runtime::RuntimeError;

/// An engine that hangs is noticed after this at most.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Delays between attempts to reach an engine that is away.
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// The whole is looked at again now and then, in case an event was lost all the same.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until the supervisor is gone.
pub(super) async fn follow(shared: Arc<Shared>, commands: mpsc::Sender<Command>) {
    let mut delay = RECONNECT_FIRST;
    while !commands.is_closed() {
        let error = match follow_once(&shared, &commands).await {
            Ok(()) => {
                delay = RECONNECT_FIRST;
                continue;
            }
            Err(error) => error,
        };
        // A stream may end without the engine being gone.
        match shared.runtime.ping().await {
            Ok(()) => delay = RECONNECT_FIRST,
            Err(ping) => tell_not_ready(&shared, &ping),
        }
        tracing::debug!(%error, "following the engine again");
        sleep(delay).await;
        delay = (delay * 2).min(RECONNECT_MAX);
    }
}

fn tell_not_ready(shared: &Shared, error: &RuntimeError) {
    let not_ready = NotReady {
        reason: "ContainerRuntimeDown".to_owned(),
        message: format!("docker is not answering: {error}"),
    };
    shared.not_ready.send_if_modified(|now| {
        let changed = now.is_none();
        if changed {
            tracing::warn!(%error, "the container engine does not answer; pods are left as they are");
        }
        *now = Some(not_ready);
        changed
    });
}

/// Ok: the stream ended in order, or the supervisor is gone.
async fn follow_once(
    shared: &Arc<Shared>,
    commands: &mpsc::Sender<Command>,
) -> Result<(), RuntimeError> {
    let node = &shared.config.node;
    // The events first: what happens during the list is told twice rather than never.
    let mut events = shared.runtime.events(node);
    let found = shared.runtime.list(node).await?;
    if shared.not_ready.send_replace(None).is_some() {
        tracing::info!("the container engine answers again");
        if let Err(error) = shared.network.ensure_forwarding().await {
            tracing::warn!(error, "the network's openings may be missing");
        }
    }
    if commands.send(Command::Listed(found)).await.is_err() {
        return Ok(());
    }
    let mut pings = interval(PING_INTERVAL);
    let mut resyncs = interval(RESYNC_INTERVAL);
    for ticks in [&mut pings, &mut resyncs] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
    }
    loop {
        let command = tokio::select! {
            event = events.next() => match event {
                Some(event) => Command::Runtime(event?),
                None => return Ok(()),
            },
            _ = pings.tick() => {
                shared.runtime.ping().await?;
                continue;
            }
            _ = resyncs.tick() => {
                if let Err(error) = shared.network.ensure_forwarding().await {
                    tracing::warn!(error, "the network's openings may be missing");
                }
                Command::Listed(shared.runtime.list(node).await?)
            }
            () = commands.closed() => return Ok(()),
        };
        if commands.send(command).await.is_err() {
            return Ok(());
        }
    }
}
