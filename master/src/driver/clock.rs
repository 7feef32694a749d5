//! The time that the control loops decide by.
//!
//! It goes on as the monotonic clock does, from what the wall clock showed when this leadership
//! began: nothing that this leader measures becomes longer or shorter because a clock is set. Once
//! the wall clock shows another time than this, the loops begin anew, as if another master had
//! written down all times so far.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// A wall clock that differs by more was set.
const APART_MAX: SignedDuration = SignedDuration::from_millis(500);

pub(super) struct Clock {
    wall: Timestamp,
    began: Instant,
}

impl Clock {
    pub fn begin() -> Self {
        Self { wall: Timestamp::now(), began: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.began.elapsed());
        let elapsed = elapsed.unwrap_or(SignedDuration::MAX);
        self.wall.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// By how much the wall clock was set since, if it was.
    pub fn was_set(&self) -> Option<SignedDuration> {
        let by = Timestamp::now().duration_since(self.now());
        (by.abs() > APART_MAX).then_some(by)
    }
}
