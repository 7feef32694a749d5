//! Lets the bridge's packets pass the host's iptables FORWARD chain, which Docker closes.
//!
//! The rules go into DOCKER-USER, which Docker keeps for others, and where there is none into
//! FORWARD itself. A host without iptables has no such chain to pass.

use super::program::{self, Failure};

const DOCKER_CHAIN: &str = "DOCKER-USER";
const PLAIN_CHAIN: &str = "FORWARD";
/// Copies of one rule that are removed at most.
const COPIES_MAX: usize = 16;

/// Puts the rules where they are missing.
pub(super) async fn ensure(bridge: &str, node: &str) -> Result<(), String> {
    let (chain, other) = match iptables(&["-n", "-L", DOCKER_CHAIN]).await {
        Ok(()) => (DOCKER_CHAIN, Some(PLAIN_CHAIN)),
        Err(Failure::Refused(_)) => (PLAIN_CHAIN, None),
        Err(Failure::Missing) => return Ok(()),
        Err(failure) => return Err(describe(failure)),
    };
    for direction in ["-i", "-o"] {
        let comment = comment(node);
        let rule = rule(direction, bridge, &comment);
        match iptables(&[&["-C", chain], rule.as_slice()].concat()).await {
            Ok(()) => continue,
            Err(Failure::Refused(_)) => {}
            Err(failure) => return Err(describe(failure)),
        }
        iptables(&[&["-I", chain], rule.as_slice()].concat()).await.map_err(describe)?;
        tracing::info!(bridge, chain, direction, "let the bridge pass the host's firewall");
        if let Some(other) = other {
            remove_from(other, &rule).await?;
        }
    }
    Ok(())
}

/// Removes the rules from wherever they were put.
pub(super) async fn remove(bridge: &str, node: &str) -> Result<(), String> {
    for chain in [DOCKER_CHAIN, PLAIN_CHAIN] {
        for direction in ["-i", "-o"] {
            remove_from(chain, &rule(direction, bridge, &comment(node))).await?;
        }
    }
    Ok(())
}

async fn remove_from(chain: &str, rule: &[&str]) -> Result<(), String> {
    for _ in 0..COPIES_MAX {
        match iptables(&[&["-D", chain], rule].concat()).await {
            Ok(()) => {}
            // No such rule, or no such chain.
            Err(Failure::Refused(_) | Failure::Missing) => return Ok(()),
            Err(failure) => return Err(describe(failure)),
        }
    }
    Ok(())
}

fn comment(node: &str) -> String {
    format!("timonier agent {node}")
}

fn rule<'a>(direction: &'a str, bridge: &'a str, comment: &'a str) -> [&'a str; 8] {
    [direction, bridge, "-m", "comment", "--comment", comment, "-j", "ACCEPT"]
}

async fn iptables(args: &[&str]) -> Result<(), Failure> {
    let args = [&["-w", "5"], args].concat();
    program::run("iptables", &args, "").await.map(drop)
}

fn describe(failure: Failure) -> String {
    failure.describe("iptables", "iptables")
}
