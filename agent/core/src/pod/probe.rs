//! When a probe is due and what its answers mean.
//!
//! Kubernetes probes at `initialDelaySeconds` and then every `periodSeconds`. Here the first
//! period is also filled with quick looks (after 50, 100, 200 … ms) while the answer is no: a
//! container that comes up shows as ready at once. The quick ones count for success alone, so
//! `failureThreshold` means the same as there.

use jiff::{SignedDuration, Timestamp};

use super::ProbePlan;

/// The first quick look comes this long after the first failure, in milliseconds.
const QUICK_FIRST_MS: i64 = 50;
/// Quick looks are no further apart than this, in milliseconds.
const QUICK_MAX_MS: i64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProbeState {
    plan: ProbePlan,
    due_at: Timestamp,
    in_flight: bool,
    passed: bool,
    successes: u32,
    failures: u32,
    quick: Quick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quick {
    /// Not probed yet.
    Before,
    /// Looks between two regular ones; the next regular one is at `until`.
    Looking {
        until: Timestamp,
        step_ms: i64,
    },
    Over,
}

/// What an answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The failure is worth an event: one that counts, and not the very first look at a container
    /// that is still coming up, unless that one decides.
    pub(super) told: bool,
    /// The failure threshold is reached.
    pub(super) failed: bool,
}

impl ProbeState {
    /// `passed`: what is held to be true before the first answer. A probe that has passed before
    /// has no quick phase.
    pub(super) fn new(plan: ProbePlan, from: Timestamp, passed: bool, quick: bool) -> Self {
        Self {
            plan,
            due_at: from + SignedDuration::from_secs(plan.initial_delay_s),
            in_flight: false,
            passed,
            successes: 0,
            failures: 0,
            quick: if quick && !passed { Quick::Before } else { Quick::Over },
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    pub(super) fn plan(&self) -> ProbePlan {
        self.plan
    }

    pub(super) fn due_at(&self) -> Option<Timestamp> {
        (!self.in_flight).then_some(self.due_at)
    }

    /// True, once, when it is time to probe.
    pub(super) fn take_due(&mut self, now: Timestamp) -> bool {
        let due = !self.in_flight && self.due_at <= now;
        self.in_flight |= due;
        due
    }

    pub(super) fn answer(&mut self, now: Timestamp, ok: bool) -> Verdict {
        self.in_flight = false;
        let none = Verdict { told: false, failed: false };
        let period = SignedDuration::from_secs(self.plan.period_s);
        if ok {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            self.passed |= self.successes >= self.plan.success_threshold;
            self.quick = Quick::Over;
            self.due_at = now + period;
            return none;
        }
        self.successes = 0;
        let first_look = self.quick == Quick::Before;
        match self.quick {
            Quick::Looking { until, step_ms } if now < until => {
                self.look_again(now, until, step_ms);
                return none;
            }
            Quick::Before => self.look_again(now, now + period, QUICK_FIRST_MS),
            Quick::Looking { .. } | Quick::Over => {
                self.quick = Quick::Over;
                self.due_at = now + period;
            }
        }
        self.failures = self.failures.saturating_add(1);
        let failed = self.failures >= self.plan.failure_threshold;
        if failed {
            self.passed = false;
        }
        Verdict { told: !first_look || failed, failed }
    }

    fn look_again(&mut self, now: Timestamp, until: Timestamp, step_ms: i64) {
        self.due_at = (now + SignedDuration::from_millis(step_ms)).min(until);
        self.quick = Quick::Looking { until, step_ms: (step_ms * 2).min(QUICK_MAX_MS) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: ProbePlan = ProbePlan {
        initial_delay_s: 0,
        period_s: 1,
        success_threshold: 1,
        failure_threshold: 3,
        grace_s: None,
    };

    /// Answers no until `ok_after_ms`; the times at which it probed, with what they meant.
    fn run(mut state: ProbeState, ok_after_ms: i64) -> Vec<(i64, bool, bool)> {
        let mut seen = Vec::new();
        for _ in 0..20 {
            let now = state.due_at().unwrap();
            assert!(state.take_due(now));
            assert!(!state.take_due(now), "one at a time");
            let at_ms = now.as_millisecond();
            let verdict = state.answer(now, at_ms >= ok_after_ms);
            seen.push((at_ms, verdict.told, verdict.failed));
            if verdict.failed || state.passed() {
                break;
            }
        }
        seen
    }

    #[test]
    fn quick_looks_fill_the_first_period_and_do_not_count() {
        let state = ProbeState::new(PLAN, Timestamp::UNIX_EPOCH, false, true);
        let seen = run(state, i64::MAX);
        let told: Vec<i64> = seen.iter().filter(|s| s.1).map(|s| s.0).collect();
        assert_eq!(told, [1000, 2000], "the first look counts and is not told");
        let times: Vec<i64> = seen.iter().map(|s| s.0).collect();
        assert_eq!(times, [0, 50, 150, 350, 750, 1000, 2000]);
        assert!(seen.last().unwrap().2);
    }

    #[test]
    fn success_is_seen_at_the_next_quick_look() {
        let state = ProbeState::new(PLAN, Timestamp::UNIX_EPOCH, false, true);
        assert_eq!(run(state, 140).last().unwrap().0, 150);
        let steady = ProbeState::new(PLAN, Timestamp::UNIX_EPOCH, false, false);
        assert_eq!(run(steady, 140).last().unwrap().0, 1000);
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let plan = ProbePlan { success_threshold: 2, ..PLAN };
        let mut state = ProbeState::new(plan, Timestamp::UNIX_EPOCH, true, false);
        for (ok, failed) in
            [(false, false), (false, false), (true, false), (false, false), (false, false)]
        {
            assert_eq!(state.answer(Timestamp::UNIX_EPOCH, ok).failed, failed);
            assert!(state.passed());
        }
        assert!(state.answer(Timestamp::UNIX_EPOCH, false).failed);
        state.answer(Timestamp::UNIX_EPOCH, true);
        assert!(!state.passed(), "it takes two successes");
        state.answer(Timestamp::UNIX_EPOCH, true);
        assert!(state.passed());
    }
}
