//! The policy alone: from what was measured and what was done before, to what to do now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use timonier_proto::latency::{LatencyAutoscalerSpec, LatencyAutoscalerStatus};

use crate::object::after_seconds;

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    To {
        replicas: i32,
        why: String,
    },
    /// It is weak, and may not grow.
    Refused {
        why: String,
    },
}

/// `now` in whole seconds, as the times of the status are. Those are rounded down, so a wait is
/// over only when a second more has passed: it is never shorter than asked for.
pub(super) fn decide(
    spec: &LatencyAutoscalerSpec,
    stored: &LatencyAutoscalerStatus,
    replicas: i32,
    median_us: u32,
    now: Time,
) -> (LatencyAutoscalerStatus, Step) {
    let base = stored.base_replicas.unwrap_or(replicas);
    let min = spec.min_replicas.unwrap_or(base).max(0);
    let max = spec.max_replicas().max(min);
    let has_passed = |since: &Option<Time>, seconds: i32| {
        since.as_ref().is_none_or(|t| after_seconds(t.0, i64::from(seconds)) < now.0)
    };
    let is_weak = u64::from(median_us) > u64::from(spec.latency_milliseconds) * 1_000;
    let mut status = LatencyAutoscalerStatus {
        state: Some(if is_weak { "Weak" } else { "Good" }.to_owned()),
        latency_microseconds: Some(i64::from(median_us)),
        measured_at: Some(now.clone()),
        current_replicas: Some(replicas),
        desired_replicas: Some(replicas),
        last_scale_time: stored.last_scale_time.clone(),
        good_since: None,
        base_replicas: Some(base),
    };
    let measured = format!("latency {} ms", tenths(median_us));
    let threshold = spec.latency_milliseconds;
    let step = if is_weak {
        let wanted = replicas.saturating_add(spec.step().max(1)).min(max);
        if replicas >= max {
            let why = format!("latency is above {threshold} ms, and {max} replicas is the maximum");
            Step::Refused { why }
        } else if has_passed(&stored.last_scale_time, spec.cooldown_seconds()) {
            Step::To { replicas: wanted, why: format!("{measured} above {threshold} ms") }
        } else {
            Step::Stay
        }
    } else {
        status.good_since = stored.good_since.clone().or_else(|| Some(now.clone()));
        let wanted = (replicas - spec.step().max(1)).max(min);
        if replicas > min && has_passed(&status.good_since, spec.scale_down_seconds()) {
            let why =
                format!("{measured}, not above {threshold} ms for {} s", spec.scale_down_seconds());
            // The next step back takes as long again.
            status.good_since = Some(now.clone());
            Step::To { replicas: wanted, why }
        } else {
            Step::Stay
        }
    };
    if let Step::To { replicas, .. } = &step {
        status.desired_replicas = Some(*replicas);
        status.last_scale_time = Some(now);
    }
    (status, step)
}

/// Milliseconds with one digit after the point.
fn tenths(us: u32) -> String {
    format!("{}.{}", us / 1_000, us % 1_000 / 100)
}
