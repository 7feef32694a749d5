//! Ages as kubectl writes them: `45s`, `5m12s`, `3h7m`, `2d4h`, `34d`, `2y10d`.

use jiff::Timestamp;

/// Kubernetes' `HumanDuration`; seconds in, never negative out (clocks differ a little).
pub fn human(seconds: i64) -> String {
    let s = if seconds < -1 { return "<invalid>".into() } else { seconds.max(0) };
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    let two = |big: i64, unit: char, small: i64, sub: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{sub}") }
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => two(minutes, 'm', s % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// Age at `now` of what happened at `since`; `<unknown>` without a time.
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    match since {
        Some(since) => human(now.as_second() - since.as_second()),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubernetes_ages() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (135, "2m15s"),
            (3599, "59m"),
            (10_800, "3h"),
            (11_220, "3h7m"),
            (90_000, "25h"),
            (187_200, "2d4h"),
            (864_000, "10d"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
