//! How the host as a whole is used.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::{MemoryRefreshKind, System};
use timonier_proto::v1::HostUsage;

/// A file system fills slowly.
const DISK_INTERVAL: Duration = Duration::from_secs(10);
/// First letters of links that only carry what another link carries too: loopback, pods' links,
/// bridges and what else is made in software.
const INNER_LINKS: [&str; 13] = [
    "lo", "veth", "tv", "tim-", "docker", "br-", "virbr", "cni", "ifb", "dummy", "tunl", "vxlan",
    "sit",
];

/// Reads how the host is used since it was last asked. Cheap enough for every heartbeat, but it
/// reads files: not for an async task that must not block at all.
pub struct HostSampler {
    proc: PathBuf,
    data_dir: PathBuf,
    system: Option<System>,
    disk: Option<(Instant, Disk)>,
    traffic: Option<(Instant, Traffic)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) used: u64,
    pub(super) total: u64,
}

/// Bytes since the links are up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Traffic {
    received: u64,
    sent: u64,
}

impl HostSampler {
    /// Disk usage will be that of the file system with `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self::with_proc("/proc".into(), data_dir.into())
    }

    pub(super) fn with_proc(proc: PathBuf, data_dir: PathBuf) -> Self {
        let mut system = System::new()
            .inspect_err(|error| tracing::warn!(%error, "cannot read how the host is used"))
            .ok();
        // What the first sample is compared with.
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let traffic = read_traffic(&proc).map(|traffic| (Instant::now(), traffic));
        Self { proc, data_dir, system, disk: None, traffic }
    }

    pub fn sample(&mut self) -> HostUsage {
        self.sample_at(Instant::now())
    }

    fn sample_at(&mut self, now: Instant) -> HostUsage {
        let mut usage = HostUsage::default();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            let (used, total) = (system.used_memory(), system.total_memory());
            usage.cpu_percent = system.global_cpu_usage();
            usage.cores = u32::try_from(system.cpus().len()).unwrap_or(u32::MAX);
            usage.memory_used_bytes = used;
            usage.memory_total_bytes = total;
            usage.memory_percent = percent(used, total);
        }
        if let Ok(load) = System::load_average() {
            usage.load1 = load.one as f32;
            usage.load5 = load.five as f32;
            usage.load15 = load.fifteen as f32;
        }
        if let Some(disk) = self.disk_at(now) {
            usage.disk_used_bytes = disk.used;
            usage.disk_total_bytes = disk.total;
        }
        (usage.net_rx_bytes_per_s, usage.net_tx_bytes_per_s) = self.rates_at(now);
        usage
    }

    fn disk_at(&mut self, now: Instant) -> Option<Disk> {
        if let Some((read, disk)) = self.disk
            && now.saturating_duration_since(read) < DISK_INTERVAL
        {
            return Some(disk);
        }
        let disk = disk_bytes(&self.data_dir)?;
        self.disk = Some((now, disk));
        Some(disk)
    }

    /// Received and sent, in bytes a second.
    pub(super) fn rates_at(&mut self, now: Instant) -> (u64, u64) {
        let Some(traffic) = read_traffic(&self.proc) else { return (0, 0) };
        let Some((then, before)) = self.traffic.replace((now, traffic)) else { return (0, 0) };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds <= 0.0 {
            return (0, 0);
        }
        // A link that is gone takes its count along.
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds) as u64;
        (rate(traffic.received, before.received), rate(traffic.sent, before.sent))
    }
}

fn percent(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { (part as f64 * 100.0 / whole as f64) as f32 }
}

/// As `df` counts: used is what is not free, be it for root only.
pub(super) fn disk_bytes(path: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Disk {
        used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        total: bytes(found.f_blocks),
    })
}

pub(super) fn is_uplink(name: &str) -> bool {
    !INNER_LINKS.iter().any(|prefix| name.starts_with(prefix))
}

fn read_traffic(proc: &Path) -> Option<Traffic> {
    let text = std::fs::read_to_string(proc.join("net/dev")).ok()?;
    Some(traffic(&text))
}

/// The sum over the links to elsewhere. After a link's name come 8 numbers of what it received,
/// then 8 of what it sent, bytes first.
fn traffic(net_dev: &str) -> Traffic {
    let mut sum = Traffic::default();
    for line in net_dev.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        if !is_uplink(name.trim()) {
            continue;
        }
        let mut numbers = numbers.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0));
        sum.received = sum.received.saturating_add(numbers.next().unwrap_or(0));
        sum.sent = sum.sent.saturating_add(numbers.nth(7).unwrap_or(0));
    }
    sum
}
