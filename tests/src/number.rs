//! What tells one cluster of processes on this machine from another.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

/// So many clusters may be up at the same time.
const COUNT: u8 = 100;
/// Not where `TMPDIR` says: what carries a number is the machine's, and so is the lock.
const FOLDER: &str = "/tmp";
/// In every node's name, between the cluster's number and its own.
pub const NODE: &str = "-node-";

/// In the names of a cluster's nodes and bridges, and in its ranges. Its own as long as it is held,
/// among all processes.
#[derive(Debug)]
pub struct Number {
    number: u8,
    _lock: File,
}

impl Number {
    /// One that nobody holds, and that nothing carries: a cluster that was killed leaves its bridges.
    /// Begins to look at `first`.
    pub fn take(first: u16) -> Result<Self> {
        let first = u8::try_from(first % u16::from(COUNT))?;
        for number in (first..COUNT).chain(0..first) {
            let path = Path::new(FOLDER).join(format!("timonier-cluster-{number}.lock"));
            let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
            let locked = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
            let taken = Self { number, _lock: lock };
            if locked.is_ok() && !taken.has_bridges()? {
                return Ok(taken);
            }
        }
        anyhow::bail!("{COUNT} clusters are up, or have left their bridges: see `ip link`")
    }

    pub fn get(&self) -> u8 {
        self.number
    }

    /// Of its node so many after the first.
    pub fn node_name(&self, index: usize) -> String {
        format!("{}{}", self.nodes(), index + 1)
    }

    /// What the names of its nodes begin with.
    fn nodes(&self) -> String {
        format!("t{}{NODE}", self.number)
    }

    fn has_bridges(&self) -> Result<bool> {
        let links = fs::read_dir("/sys/class/net").context("list the links")?;
        let names = links.flatten().map(|link| link.file_name());
        let begin = bridge(&self.nodes());
        Ok(names.into_iter().any(|name| name.to_string_lossy().starts_with(&begin)))
    }
}

/// Of a node; a link's name has 15 characters at most.
pub fn bridge(node: &str) -> String {
    format!("t{}", node.replace(NODE, "n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once() {
        let held: Vec<Number> = (0..5).map(|_| Number::take(97).unwrap()).collect();
        let mut numbers: Vec<u8> = held.iter().map(Number::get).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 5, "{held:?}");
    }
}
