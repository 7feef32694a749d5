//! What does not change while the host runs.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, Networks, RefreshKind, System};
use timonier_proto::v1::NodeCapacity;

use super::host::disk_bytes;

/// Kubernetes' default too.
pub const PODS_MAX_DEFAULT: u32 = 110;
/// An address that nobody has (RFC 5737): what a packet to it would carry is the default route's.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// What is said of the host's capacity in place of what is found, and what is kept back from pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapacityOptions {
    /// `None`: the host's.
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    /// `None`: [`PODS_MAX_DEFAULT`].
    pub pods: Option<u32>,
    pub reserved_cpu_millis: u64,
    pub reserved_memory_bytes: u64,
}

/// What this host can give to pods; storage is that of the file system with `data_dir`.
pub fn capacity(options: &CapacityOptions, data_dir: &Path) -> NodeCapacity {
    let kinds = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing().with_usage())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let (cores, memory) = match System::new_with_specifics(kinds) {
        Ok(system) => (system.cpus().len(), system.total_memory()),
        Err(error) => {
            tracing::warn!(%error, "cannot read the host's memory; hint: set it by --memory");
            (0, 0)
        }
    };
    // Also where there is no /proc.
    let cores = match cores {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        cores => cores,
    };
    NodeCapacity {
        cpu_millis: options.cpu_millis.unwrap_or(cores as u64 * 1000),
        memory_bytes: options.memory_bytes.unwrap_or(memory),
        ephemeral_storage_bytes: disk_bytes(data_dir).map_or(0, |disk| disk.total),
        pods: options.pods.unwrap_or(PODS_MAX_DEFAULT),
        reserved_cpu_millis: options.reserved_cpu_millis,
        reserved_memory_bytes: options.reserved_memory_bytes,
    }
}

/// What a node says of itself once, in its hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Changes when the host restarts.
    pub boot_id: String,
    /// As `uname -r`.
    pub kernel: String,
    /// As in `/etc/os-release`: `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// Kubernetes' name: `amd64`, `arm64`.
    pub architecture: String,
    /// The source address of packets by the default route; without one an interface's, and only
    /// then the loopback's.
    pub address: Option<IpAddr>,
}

impl HostFacts {
    pub fn read() -> Self {
        let line = |path: &str| {
            std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        let os_release = line("/etc/os-release");
        Self {
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&os_release).unwrap_or_else(|| "Linux".to_owned()),
            architecture: architecture().to_owned(),
            address: primary_address(),
        }
    }
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn primary_address() -> Option<IpAddr> {
    by_default_route().or_else(of_an_interface)
}

/// Connecting a datagram socket sends nothing: the kernel only chooses route and source.
fn by_default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

fn of_an_interface() -> Option<IpAddr> {
    let networks = Networks::new_with_refreshed_list().ok()?;
    let mut found: Vec<(String, IpAddr)> = networks
        .iter()
        .map(|(name, data)| (name.to_string_lossy().into_owned(), data))
        .filter(|(name, _)| super::host::is_uplink(name))
        .flat_map(|(name, data)| data.ip_networks().iter().map(move |n| (name.clone(), n.addr)))
        .filter(|(_, address)| address.is_ipv4() && !address.is_loopback())
        .collect();
    found.sort();
    let address = found.into_iter().next().map(|(_, address)| address);
    address.or(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_system_is_read_with_and_without_quotes() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(text).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(pretty_name("PRETTY_NAME=Alpine").as_deref(), Some("Alpine"));
        assert_eq!(pretty_name(""), None);
    }

    #[test]
    fn this_host_is_known() {
        let facts = HostFacts::read();
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(!facts.kernel.is_empty() && facts.address.is_some(), "{facts:?}");

        let found = capacity(&CapacityOptions::default(), Path::new("/"));
        assert!(found.cpu_millis >= 1000 && found.memory_bytes > 1 << 20, "{found:?}");
        assert!(found.ephemeral_storage_bytes > 1 << 20, "{found:?}");
        assert_eq!(found.pods, PODS_MAX_DEFAULT);

        let said = CapacityOptions {
            cpu_millis: Some(64_000),
            memory_bytes: Some(1 << 36),
            pods: Some(500),
            reserved_cpu_millis: 100,
            reserved_memory_bytes: 1 << 28,
        };
        let found = capacity(&said, Path::new("/does-not-exist"));
        assert_eq!((found.cpu_millis, found.memory_bytes, found.pods), (64_000, 1 << 36, 500));
        assert_eq!((found.reserved_cpu_millis, found.reserved_memory_bytes), (100, 1 << 28));
        assert_eq!(found.ephemeral_storage_bytes, 0);
    }
}
