//! The time that the lifecycle gets: the host's clock, or one that follows tokio's so that tests
//! can pause it.

use std::time::Duration;

use jiff::Timestamp;
#[cfg(test)]
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    Host,
    #[cfg(test)]
    Tokio {
        base: Timestamp,
        start: Instant,
    },
}

impl Clock {
    pub(super) fn now(&self) -> Timestamp {
        match self {
            Self::Host => Timestamp::now(),
            #[cfg(test)]
            Self::Tokio { base, start } => {
                *base + jiff::SignedDuration::try_from(start.elapsed()).expect("tests are short")
            }
        }
    }

    /// How long until `at`; nothing if that is past.
    pub(super) fn until(&self, at: Timestamp) -> Duration {
        // Rounded up: waking too early would only mean waking again.
        let left = at.duration_since(self.now()) + jiff::SignedDuration::from_micros(999);
        let millis = left.as_millis().max(0);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}
