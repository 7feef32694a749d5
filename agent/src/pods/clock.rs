//! The time that the lifecycle gets: the host's clock, or one that follows tokio's so that tests
//! can pause it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// The wall clock may be ahead by so much before it is followed.
const AHEAD_MAX: SignedDuration = SignedDuration::from_secs(1);

/// The wall clock, but that it never goes back and no wait becomes longer: where the wall clock is
/// set back, this one goes on as the monotonic clock does until the wall clock has caught up.
#[derive(Debug, Default)]
pub struct SteadyClock {
    /// What it showed when.
    anchor: Mutex<Option<(Timestamp, Instant)>>,
}

impl SteadyClock {
    pub fn now(&self) -> Timestamp {
        self.at(Timestamp::now(), Instant::now())
    }

    fn at(&self, wall: Timestamp, now: Instant) -> Timestamp {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let steady = anchor.map(|(shown, at)| {
            let elapsed = SignedDuration::try_from(now.saturating_duration_since(at));
            shown.checked_add(elapsed.unwrap_or_default()).unwrap_or(shown)
        });
        match steady {
            Some(steady) if wall.duration_since(steady) <= AHEAD_MAX => steady,
            _ => {
                *anchor = Some((wall, now));
                wall
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Clock {
    Host(Arc<SteadyClock>),
    #[cfg(test)]
    Tokio {
        base: Timestamp,
        start: tokio::time::Instant,
    },
}

impl Clock {
    pub(super) fn now(&self) -> Timestamp {
        match self {
            Self::Host(clock) => clock.now(),
            #[cfg(test)]
            Self::Tokio { base, start } => {
                *base + SignedDuration::try_from(start.elapsed()).expect("tests are short")
            }
        }
    }

    /// How long until `at`; nothing if that is past.
    pub(super) fn until(&self, at: Timestamp) -> Duration {
        // Rounded up: waking too early would only mean waking again.
        let left = at.duration_since(self.now()) + SignedDuration::from_micros(999);
        let millis = left.as_millis().max(0);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

#[test]
fn it_follows_a_clock_that_is_set_ahead_and_not_one_that_is_set_back() {
    let clock = SteadyClock::default();
    let (wall, begun) = (Timestamp::UNIX_EPOCH, Instant::now());
    let at = |wall_s: i64, after_s: u64| {
        let wall = wall + SignedDuration::from_secs(wall_s);
        clock.at(wall, begun + Duration::from_secs(after_s)).as_second()
    };
    assert_eq!(at(1000, 0), 1000);
    assert_eq!(at(1010, 10), 1010);
    assert_eq!(at(8210, 10), 8210, "set ahead by two hours");
    assert_eq!(at(1020, 20), 8220, "and back");
    assert_eq!(at(8231, 31), 8231);
}
