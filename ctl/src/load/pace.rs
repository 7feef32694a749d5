//! When each request is due.
//!
//! Tokio's timer has a resolution of a millisecond and rounds up, which would be counted as latency
//! of the server; a thread of its own that waits on a channel is exact to some 60 µs.

use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// Moments that are due and not yet taken. Full, the clock waits; the moments stay as they are.
const DUE_QUEUED_MAX: usize = 1024;
/// Longest single wait, after which it is seen whether anyone still listens.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The moments `start + i × interval` for `count` values of `i`, each when it has come.
pub fn start(start: Instant, interval: Duration, count: u64) -> mpsc::Receiver<Instant> {
    let (sender, receiver) = mpsc::channel(DUE_QUEUED_MAX);
    tokio::task::spawn_blocking(move || {
        // Nothing is ever sent here: waiting for it is how to wait exactly.
        let (_never, clock) = blocking::sync_channel::<()>(0);
        for index in 0..count {
            let offset = interval.as_nanos().saturating_mul(u128::from(index));
            let offset = Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX));
            let Some(due) = start.checked_add(offset) else { return };
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                if sender.is_closed() {
                    return;
                }
                let _ = clock.recv_timeout(left.min(WAIT_MAX));
            }
            if sender.blocking_send(due).is_err() {
                return;
            }
        }
    });
    receiver
}
