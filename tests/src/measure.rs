//! Figures off running processes, and the statistics and the JSON line of a benchmark.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// Resident memory of a process, in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("read the memory of process {pid}"))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .context("no VmRSS line")?;
    Ok(kib / 1024.0)
}

/// CPU time a process has used since its start (user and system, all threads).
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read the CPU time of process {pid}"))?;
    let after_name = stat.rsplit_once(')').context("malformed stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// CPU of a process over a window, in percent of one core.
pub async fn cpu_percent(pid: u32, window: Duration) -> Result<f64> {
    let before = cpu_time(pid)?;
    let start = std::time::Instant::now();
    tokio::time::sleep(window).await;
    let used = cpu_time(pid)? - before;
    Ok(100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Middle value; the mean of the two middle ones for an even count. Empty input answers 0.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The value below which `percent` of the values lie (nearest rank).
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return 0.0;
    }
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The figures of several rounds by key; prints the median of each as one line of JSON.
#[derive(Default)]
pub struct Figures {
    rounds: Vec<Map<String, Value>>,
}

impl Figures {
    pub fn add(&mut self, round: &[(&str, f64)]) {
        let map = round.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        self.rounds.push(map);
    }

    fn values(&self, key: &str) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| round.get(key)?.as_f64()).collect()
    }

    /// Median over the rounds.
    pub fn median(&self, key: &str) -> f64 {
        median(&self.values(key))
    }

    /// `{"name": …, <keys of the first round>: medians, <extra>, "rounds": n, "cores": n}`.
    pub fn line(&self, name: &str, extra: &[(&str, f64)]) -> String {
        let mut line = Map::new();
        line.insert("name".into(), json!(name));
        let keys: Vec<String> =
            self.rounds.first().map(|round| round.keys().cloned().collect()).unwrap_or_default();
        for key in keys {
            let value = self.median(&key);
            line.insert(key, rounded(value));
        }
        for (key, value) in extra {
            line.insert((*key).to_owned(), rounded(*value));
        }
        line.insert("rounds".into(), json!(self.rounds.len()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        line.insert("cores".into(), json!(cores));
        Value::Object(line).to_string()
    }
}

fn rounded(value: f64) -> Value {
    let digits = if value.abs() < 10.0 { 1000.0 } else { 10.0 };
    json!((value * digits).round() / digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 50.0), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 99.0), 4.0);
        let mut figures = Figures::default();
        figures.add(&[("a_s", 1.0)]);
        figures.add(&[("a_s", 3.0)]);
        let line: Value = serde_json::from_str(&figures.line("n", &[("b", 20.04)])).unwrap();
        assert_eq!(
            (&line["a_s"], &line["b"], &line["rounds"]),
            (&json!(2.0), &json!(20.0), &json!(2))
        );
    }
}
