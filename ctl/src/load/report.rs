//! What came of the requests: counts, latencies, causes and servers, as text or JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::send::Answer;

/// Latencies are kept to three digits, up to ten minutes, in microseconds.
const DIGITS: u8 = 3;
const LATENCY_US_MAX: u64 = 600_000_000;
/// Longest bar of the histogram, in characters.
const BAR_WIDTH: u64 = 40;
/// Kinds of failures, and servers, that are told apart; the rest goes by `others`.
const NAMES_MAX: usize = 1000;

pub struct Report {
    latencies: Histogram<u64>,
    ok: u64,
    errors: BTreeMap<String, u64>,
    servers: BTreeMap<String, u64>,
    duration: Duration,
}

impl Report {
    pub fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS);
        Self {
            latencies: latencies.expect("the bounds are in order"),
            ok: 0,
            errors: BTreeMap::new(),
            servers: BTreeMap::new(),
            duration: Duration::ZERO,
        }
    }

    /// Latencies count for all requests that were answered, with an error or without.
    pub fn add(&mut self, answer: Answer, latency: Duration) {
        if !matches!(answer, Answer::None { .. }) {
            let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(latency_us.max(1));
        }
        match answer {
            Answer::Good { server } => {
                self.ok += 1;
                if let Some(server) = server {
                    count(&mut self.servers, server);
                }
            }
            Answer::Refused { why } | Answer::None { why } => count(&mut self.errors, why),
        }
    }

    pub fn finish(&mut self, duration: Duration) {
        self.duration = duration;
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Those whose end is known.
    pub fn requests(&self) -> u64 {
        self.ok + self.failed()
    }

    /// One line for those who wait.
    pub fn progress(&self, total: u64, passed: Duration) -> String {
        format!(
            "{} of {total} requests after {:.0} s, {} failed, p50 {}",
            self.requests(),
            passed.as_secs_f64(),
            self.failed(),
            milliseconds(self.quantile_ms(0.5)),
        )
    }

    /// None when nothing was answered.
    fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let any = !self.latencies.is_empty();
        any.then(|| self.latencies.value_at_quantile(quantile) as f64 / 1000.0)
    }

    fn max_ms(&self) -> Option<f64> {
        (!self.latencies.is_empty()).then(|| self.latencies.max() as f64 / 1000.0)
    }

    fn rate_per_s(&self) -> f64 {
        let seconds = self.duration.as_secs_f64();
        if seconds > 0.0 { self.requests() as f64 / seconds } else { 0.0 }
    }

    pub fn json(&self) -> String {
        let ms = |value: Option<f64>| value.map_or(Value::Null, |ms| json!(rounded(ms, 1000.0)));
        let report = json!({
            "requests": self.requests(),
            "ok": self.ok,
            "failed": self.failed(),
            "rate_per_s": rounded(self.rate_per_s(), 10.0),
            "p50_ms": ms(self.quantile_ms(0.50)),
            "p90_ms": ms(self.quantile_ms(0.90)),
            "p95_ms": ms(self.quantile_ms(0.95)),
            "p99_ms": ms(self.quantile_ms(0.99)),
            "max_ms": ms(self.max_ms()),
            "duration_s": rounded(self.duration.as_secs_f64(), 1000.0),
            "errors": self.errors,
            "servers": self.servers,
        });
        format!("{report:#}\n")
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "requests  {} in {:.1} s, {:.1} a second",
            self.requests(),
            self.duration.as_secs_f64(),
            self.rate_per_s()
        )?;
        writeln!(text, "ok        {}", self.ok)?;
        writeln!(text, "failed    {}", self.failed())?;
        for (why, count) in &self.errors {
            writeln!(text, "  {count:>6}  {why}")?;
        }
        if self.latencies.is_empty() {
            return Ok(());
        }
        write!(text, "latency  ")?;
        for (name, quantile) in [("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99)] {
            write!(text, " {name} {}  ", milliseconds(self.quantile_ms(quantile)))?;
        }
        writeln!(text, " max {}", milliseconds(self.max_ms()))?;
        self.write_histogram(text)?;
        if !self.servers.is_empty() {
            writeln!(text, "answers by server")?;
            for (server, count) in &self.servers {
                writeln!(text, "  {count:>6}  {server}")?;
            }
        }
        Ok(())
    }

    /// One row for each step of 1, 2, 5, 10, … ms, from the first to the last that has any.
    fn write_histogram(&self, text: &mut String) -> std::fmt::Result {
        let mut rows: Vec<(u64, u64)> = Vec::new();
        let mut low_us = 0;
        for high_us in steps_us() {
            let count = self.latencies.count_between(low_us, high_us - 1);
            if count > 0 || !rows.is_empty() {
                rows.push((high_us, count));
            }
            low_us = high_us;
            if self.latencies.max() < high_us {
                break;
            }
        }
        let most = rows.iter().map(|row| row.1).max().unwrap_or(1).max(1);
        for (high_us, count) in rows {
            let width = (count * BAR_WIDTH).div_ceil(most);
            let bar = "#".repeat(usize::try_from(width).unwrap_or(0));
            let below = format!("{}", high_us as f64 / 1000.0);
            let row = format!("  < {below:>7} ms {count:>7}  {bar}");
            writeln!(text, "{}", row.trim_end())?;
        }
        Ok(())
    }
}

/// 0.1, 0.2, 0.5, 1, 2, 5, … ms, beyond the longest latency that is kept.
fn steps_us() -> impl Iterator<Item = u64> {
    let decades = std::iter::successors(Some(100), |step| Some(step * 10));
    decades
        .flat_map(|step: u64| [step, step * 2, step * 5])
        .take_while(|step| *step < LATENCY_US_MAX * 20)
}

fn count(counts: &mut BTreeMap<String, u64>, name: String) {
    let known = counts.len() < NAMES_MAX || counts.contains_key(&name);
    *counts.entry(if known { name } else { "others".into() }).or_default() += 1;
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn milliseconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(ms) if ms < 10.0 => format!("{ms:.2} ms"),
        Some(ms) if ms < 1000.0 => format!("{ms:.1} ms"),
        Some(ms) => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn report() -> Report {
        let mut report = Report::new();
        for index in 1..=100_u64 {
            let server = Some(format!("web-{}", index % 2));
            report.add(Answer::Good { server }, Duration::from_micros(index * 150));
        }
        report.add(Answer::Refused { why: "status 503".into() }, Duration::from_millis(300));
        for _ in 0..2 {
            let why = "connection refused".into();
            report.add(Answer::None { why }, Duration::from_secs(9));
        }
        report.finish(Duration::from_secs(2));
        report
    }

    #[test]
    fn the_text_tells_all() {
        expect![[r#"
            requests  103 in 2.0 s, 51.5 a second
            ok        100
            failed    3
                   2  connection refused
                   1  status 503
            latency   p50 7.65 ms   p90 13.7 ms   p95 14.4 ms   p99 15.0 ms   max 300.0 ms
              <     0.2 ms       1  ##
              <     0.5 ms       2  ###
              <       1 ms       3  ####
              <       2 ms       7  #########
              <       5 ms      20  ########################
              <      10 ms      33  #######################################
              <      20 ms      34  ########################################
              <      50 ms       0
              <     100 ms       0
              <     200 ms       0
              <     500 ms       1  ##
            answers by server
                  50  web-0
                  50  web-1
        "#]]
        .assert_eq(&report().text());
    }

    #[test]
    fn the_json_has_its_keys() {
        expect![[r#"
            {
              "requests": 103,
              "ok": 100,
              "failed": 3,
              "rate_per_s": 51.5,
              "p50_ms": 7.651,
              "p90_ms": 13.655,
              "p95_ms": 14.407,
              "p99_ms": 15.007,
              "max_ms": 300.031,
              "duration_s": 2.0,
              "errors": {
                "connection refused": 2,
                "status 503": 1
              },
              "servers": {
                "web-0": 50,
                "web-1": 50
              }
            }
        "#]]
        .assert_eq(&report().json());
    }

    #[test]
    fn nothing_answered_is_no_latency_of_zero() {
        let mut report = Report::new();
        report.add(Answer::None { why: "timed out".into() }, Duration::from_secs(10));
        report.finish(Duration::from_secs(10));
        assert!(report.json().contains("\"p50_ms\": null"));
        assert!(!report.text().contains("latency"));
        assert!(report.progress(5, Duration::from_secs(1)).ends_with("p50 -"));
    }
}
