//! The files that name a pod on its network: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
//! The caller binds them into the pod's containers.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::NetError;

/// Read first where it is there: behind systemd-resolved, `/etc/resolv.conf` names only a local
/// stub that no pod can reach.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
const HOST_FILE: &str = "/etc/resolv.conf";
/// A resolver configuration larger than this is not one.
const RESOLV_BYTES_MAX: usize = 64 * 1024;

/// Where a pod's `resolv.conf` comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Resolver {
    /// The host's, without name servers on loopback addresses, which are the host's own.
    #[default]
    Host,
    /// These servers and settings only (`dnsPolicy: None`, and the cluster's DNS later).
    Given {
        /// Addresses of name servers.
        servers: Vec<IpAddr>,
        /// Domains to search.
        searches: Vec<String>,
        /// Options such as `ndots:5`.
        options: Vec<String>,
    },
}

/// The files written for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFiles {
    /// For `/etc/hosts`.
    pub hosts: PathBuf,
    /// For `/etc/hostname`.
    pub hostname: PathBuf,
    /// For `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// Writes the pod's files into `dir`, which is made if it is missing. `ip` is none for a pod on
/// the host's network; `aliases` are the pod's `hostAliases`.
pub fn write_pod_files(
    dir: &Path,
    hostname: &str,
    ip: Option<IpAddr>,
    aliases: &[(IpAddr, Vec<String>)],
    resolver: &Resolver,
) -> Result<PodFiles, NetError> {
    let failed = |path: &Path, source| NetError::File { path: path.to_owned(), source };
    fs::create_dir_all(dir).map_err(|source| failed(dir, source))?;
    let write = |name: &str, content: String| -> Result<PathBuf, NetError> {
        let path = dir.join(name);
        // In place: a file that is bound into a container must stay the same file.
        fs::write(&path, content).map_err(|source| failed(&path, source))?;
        Ok(path)
    };
    let resolv_conf = match resolver {
        Resolver::Host => without_loopback(&host_resolv_conf()),
        Resolver::Given { servers, searches, options } => given(servers, searches, options),
    };
    Ok(PodFiles {
        hosts: write("hosts", hosts(hostname, ip, aliases))?,
        hostname: write("hostname", format!("{hostname}\n"))?,
        resolv_conf: write("resolv.conf", resolv_conf)?,
    })
}

fn hosts(hostname: &str, ip: Option<IpAddr>, aliases: &[(IpAddr, Vec<String>)]) -> String {
    let mut text = String::from(
        "# written by timonier\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    if let Some(ip) = ip {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    for (ip, names) in aliases {
        text.push_str(&format!("{ip}\t{}\n", names.join(" ")));
    }
    text
}

fn host_resolv_conf() -> String {
    [RESOLVED_FILE, HOST_FILE]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .filter(|text| text.len() <= RESOLV_BYTES_MAX)
        .unwrap_or_default()
}

/// Drops name servers that only the host can reach, and keeps every other line.
fn without_loopback(text: &str) -> String {
    let reachable = |line: &&str| {
        let mut words = line.split_whitespace();
        let server = words.next() == Some("nameserver");
        let address = words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok());
        !(server && address.is_some_and(|address| address.is_loopback()))
    };
    text.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

fn given(servers: &[IpAddr], searches: &[String], options: &[String]) -> String {
    let mut text: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    for (key, values) in [("search", searches), ("options", options)] {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_name_servers_stay_on_the_host() {
        let host = "# made by hand\nnameserver 127.0.0.53\nsearch example.org\n\
                    nameserver 192.0.2.1\nnameserver ::1\nnameserver fe80::1%eth0\n";
        assert_eq!(
            without_loopback(host),
            "# made by hand\nsearch example.org\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n"
        );
    }

    #[test]
    fn a_pod_finds_itself_and_its_aliases() {
        let dir = tempfile::tempdir().unwrap();
        let ip = Some("10.244.1.7".parse().unwrap());
        let aliases = [("192.0.2.9".parse().unwrap(), vec!["db".into(), "db.local".into()])];
        let resolver = Resolver::Given {
            servers: vec!["10.244.1.1".parse().unwrap()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let files =
            write_pod_files(&dir.path().join("a/b"), "web-1", ip, &aliases, &resolver).unwrap();
        let hosts = fs::read_to_string(files.hosts).unwrap();
        assert!(hosts.ends_with("10.244.1.7\tweb-1\n192.0.2.9\tdb db.local\n"), "{hosts}");
        assert_eq!(fs::read_to_string(files.hostname).unwrap(), "web-1\n");
        assert_eq!(
            fs::read_to_string(files.resolv_conf).unwrap(),
            "nameserver 10.244.1.1\nsearch default.svc.cluster.local svc.cluster.local\n\
             options ndots:5\n"
        );
    }
}
