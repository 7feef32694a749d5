//! The arithmetic of a rolling update: how many pods more, and how many fewer, than asked for.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Kubernetes' default for both bounds.
const DEFAULT_BOUND: &str = "25%";

/// How far a rolling update may stray from the number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub max_surge: i32,
    pub max_unavailable: i32,
}

/// A number, or a percentage of `total`. `None` for what is neither.
pub fn scaled_value(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some((*number).max(0)),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent.max(0).checked_mul(i64::from(total))?;
            let value = product / 100 + i64::from(round_up && product % 100 != 0);
            i32::try_from(value).ok()
        }
    }
}

impl Bounds {
    /// Surge rounds up and unavailable rounds down; when both come to 0 nothing could move, so one
    /// may be unavailable.
    pub fn resolve(
        max_surge: Option<&IntOrString>,
        max_unavailable: Option<&IntOrString>,
        replicas: i32,
    ) -> Self {
        let default = IntOrString::String(DEFAULT_BOUND.to_owned());
        let max_surge =
            scaled_value(max_surge.unwrap_or(&default), replicas, true).unwrap_or_default();
        let mut max_unavailable =
            scaled_value(max_unavailable.unwrap_or(&default), replicas, false).unwrap_or_default();
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { max_surge, max_unavailable: max_unavailable.min(replicas) }
    }

    /// Those of a deployment: none for Recreate.
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = replicas_of(deployment);
        if is_recreate(deployment) {
            return Self { max_surge: 0, max_unavailable: 0 };
        }
        let rolling = deployment
            .spec
            .as_ref()
            .and_then(|s| s.strategy.as_ref())
            .and_then(|s| s.rolling_update.as_ref());
        Self::resolve(
            rolling.and_then(|r| r.max_surge.as_ref()),
            rolling.and_then(|r| r.max_unavailable.as_ref()),
            replicas,
        )
    }
}

pub fn is_recreate(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .is_some_and(|s| s.type_.as_deref() == Some("Recreate"))
}

/// Replicas asked for; 1 where the spec names none.
pub fn replicas_of(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> IntOrString {
        text.parse().map_or_else(|_| IntOrString::String(text.to_owned()), IntOrString::Int)
    }

    #[test]
    fn bounds_are_rounded_as_in_kubernetes() {
        for (surge, unavailable, replicas, expected) in [
            ("25%", "25%", 3, (1, 0)),
            ("25%", "25%", 4, (1, 1)),
            ("25%", "25%", 10, (3, 2)),
            ("25%", "25%", 1, (1, 0)),
            ("0", "0", 3, (0, 1)),
            ("0%", "10%", 3, (0, 1)),
            ("1", "0", 3, (1, 0)),
            ("100%", "0", 3, (3, 0)),
            ("200%", "100%", 3, (6, 3)),
            ("2", "5", 3, (2, 3)),
            ("0", "0", 0, (0, 0)),
        ] {
            let bounds = Bounds::resolve(Some(&value(surge)), Some(&value(unavailable)), replicas);
            assert_eq!(
                (bounds.max_surge, bounds.max_unavailable),
                expected,
                "surge {surge}, unavailable {unavailable}, replicas {replicas}"
            );
        }
        let default = Bounds::resolve(None, None, 8);
        assert_eq!((default.max_surge, default.max_unavailable), (2, 2));
    }

    #[test]
    fn what_is_no_percentage_is_no_value() {
        for text in ["x", "%", "1.5%", ""] {
            assert_eq!(
                scaled_value(&IntOrString::String(text.to_owned()), 10, true),
                None,
                "{text}"
            );
        }
    }
}
