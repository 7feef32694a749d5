//! Durations as kubectl takes them: `30s`, `5m`, `1h30m`, `250ms`; `0` is none.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration from the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span(pub Duration);

const UNITS_US: &[(&str, f64)] =
    &[("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6), ("h", 3600e6), ("d", 86_400e6)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, None)
    }
}

/// A duration whose bare number is in milliseconds: `10` is `10ms`.
pub fn bare_is_ms(text: &str) -> Result<Span, String> {
    parse(text, Some(1e3))
}

/// A duration whose bare number is in seconds: `30` is `30s`.
pub fn bare_is_s(text: &str) -> Result<Span, String> {
    parse(text, Some(1e6))
}

fn parse(text: &str, bare_us: Option<f64>) -> Result<Span, String> {
    let wrong = || format!("{text:?} is not a duration such as 30s, 5m or 250ms");
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" if number == 0.0 => 0.0,
            "" => bare_us.ok_or_else(|| format!("{} (the unit is missing)", wrong()))?,
            name => UNITS_US.iter().find(|u| u.0 == name).map(|u| u.1).ok_or_else(wrong)?,
        };
        total += number * unit;
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(total / 1e6).map(Span).map_err(|_| wrong())
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 1.0 { write!(f, "{}ms", self.0.as_millis()) } else { write!(f, "{seconds}s") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_understood() {
        for (text, ms) in
            [("30s", 30_000), ("1m30s", 90_000), ("250ms", 250), ("1.5h", 5_400_000), ("0", 0)]
        {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), ms, "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "1e400s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert_eq!(bare_is_ms("10").unwrap().0.as_millis(), 10);
        assert_eq!(bare_is_s("10").unwrap().0.as_secs(), 10);
    }
}
