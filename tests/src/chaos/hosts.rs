//! Hosts on one machine: a network namespace each, all on one bridge, so that the network between
//! any two of them can be cut, each direction by itself.
//!
//! Only the network is apart: processes share the machine's files, its mounts and its Docker.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::claim::{Claim, NAMESPACES};

/// The host's side of its link to the bridge.
const LINK: &str = "eth0";
/// nftables' name of what is cut. Tables of other names are the processes'.
const TABLE: &str = "cut";

/// Links, namespaces and rules go with the claim.
pub struct Hosts {
    number: u8,
    bridge: String,
    count: usize,
}

/// Which packets of a host are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

/// Whom a host is cut off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Other masters, agents, and people.
    Everyone,
    Host(usize),
}

impl Hosts {
    pub fn make(claim: &Claim, count: usize) -> Result<Self> {
        let (number, bridge) = (claim.number(), claim.name());
        run("ip", &["link", "add", &bridge, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("10.98.{number}.1/24"), "dev", &bridge])?;
        run("ip", &["link", "set", &bridge, "up"])?;
        // Docker lets nothing pass that it does not know.
        for side in ["-i", "-o"] {
            run("iptables", &["-I", "FORWARD", side, &bridge, "-j", "ACCEPT"])?;
        }
        let made = Self { number, bridge, count };
        for host in 0..count {
            made.add(host)?;
        }
        Ok(made)
    }

    fn add(&self, host: usize) -> Result<()> {
        let (namespace, outer) = (self.namespace(host), format!("{}{host}", self.bridge));
        run("ip", &["netns", "add", &namespace])?;
        run("ip", &["link", "add", &outer, "type", "veth", "peer", LINK, "netns", &namespace])?;
        run("ip", &["link", "set", &outer, "master", &self.bridge, "up"])?;
        let within = |args: &[&str]| run("ip", &[&["-n", namespace.as_str()], args].concat());
        within(&["addr", "add", &format!("{}/24", self.address(host)), "dev", LINK])?;
        within(&["link", "set", LINK, "up"])?;
        within(&["link", "set", "lo", "up"])?;
        // An agent takes the address by which its host reaches the world for the host's.
        within(&["route", "add", "default", "via", &format!("10.98.{}.1", self.number)])
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.bridge)
    }

    pub fn address(&self, host: usize) -> String {
        format!("10.98.{}.{}", self.number, host + 10)
    }

    /// What starts a program on that host; it becomes the program. Not `ip netns exec`, which would
    /// give an agent mounts of its own, and Docker must have what it mounts.
    pub fn within(&self, host: usize) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={NAMESPACES}/{}", self.namespace(host))]
    }

    /// Drops what a host gets from some, or sends to them.
    pub fn cut(&self, host: usize, from: &[From], directions: &[Direction]) -> Result<()> {
        let pairs =
            directions.iter().flat_map(|direction| from.iter().map(|who| (*direction, *who)));
        let rules: String = pairs.map(|(direction, who)| self.rule(direction, who)).collect();
        let namespace = self.namespace(host);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("start nft")?;
        child.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft refused the rules of {namespace}");
        Ok(())
    }

    fn rule(&self, direction: Direction, from: From) -> String {
        let (hook, link, end) = match direction {
            Direction::In => ("input", "iifname", "saddr"),
            Direction::Out => ("output", "oifname", "daddr"),
        };
        let whom = match from {
            From::Everyone => String::new(),
            From::Host(other) => format!("ip {end} {} ", self.address(other)),
        };
        format!(
            "add table inet {TABLE}\n\
             add chain inet {TABLE} {hook} {{ type filter hook {hook} priority 0; policy accept; }}\n\
             add rule inet {TABLE} {hook} {link} {LINK} {whom}drop\n"
        )
    }

    /// Joins all that was cut.
    pub fn heal(&self) -> Result<()> {
        for host in 0..self.count {
            // Added first: where nothing was cut there is no table.
            let all = format!("add table inet {TABLE}; delete table inet {TABLE}");
            run("ip", &["netns", "exec", &self.namespace(host), "nft", &all])?;
        }
        Ok(())
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("run {program} {}", args.join(" ")))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), complaint.trim());
    Ok(())
}

/// A small file system of its own in memory, so that it can be filled.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(folder: PathBuf, mib: u64) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let target = folder.to_string_lossy().into_owned();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &target])?;
        Ok(Self(folder))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes what is left of the space.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler())?;
        let block = vec![0; 1 << 16];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
    }

    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.filler()).context("free the disk")
    }
}
