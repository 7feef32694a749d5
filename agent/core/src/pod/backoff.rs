//! Delays that double from one failure to the next, as the kubelet's.

use jiff::{SignedDuration, Timestamp};

/// The first delay that is not nothing, in seconds.
pub const BACKOFF_FIRST_S: i64 = 10;
/// The longest delay, in seconds.
pub const BACKOFF_MAX_S: i64 = 300;
/// A container that ran this long is healthy again, in seconds.
pub const BACKOFF_RESET_S: i64 = 600;

/// How long to wait before the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    next_s: i64,
    free: bool,
}

impl Backoff {
    /// For containers: the first restart is at once.
    pub fn first_free() -> Self {
        Self { next_s: BACKOFF_FIRST_S, free: true }
    }

    /// For pulls: also the first retry waits.
    pub fn first_waits() -> Self {
        Self { next_s: BACKOFF_FIRST_S, free: false }
    }

    /// The delay before the next try, which counts as one failure more.
    pub fn next_delay(&mut self) -> SignedDuration {
        if std::mem::take(&mut self.free) {
            return SignedDuration::ZERO;
        }
        let delay = self.next_s;
        self.next_s = (delay * 2).min(BACKOFF_MAX_S);
        SignedDuration::from_secs(delay)
    }

    /// Whether a run from `started` to `finished` was long enough to start anew.
    pub fn is_reset_by(started: Timestamp, finished: Timestamp) -> bool {
        finished.duration_since(started) >= SignedDuration::from_secs(BACKOFF_RESET_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes() {
        let mut restarts = Backoff::first_free();
        let delays: Vec<i64> = (0..8).map(|_| restarts.next_delay().as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(Backoff::first_waits().next_delay().as_secs(), 10);
    }
}
