//! The faults, one a round. Each strikes, lasts, and is over when its function returns: what was
//! killed is started again, what was cut is joined.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::cluster::{ChaosCluster, MASTERS};
use super::hosts::{Direction, From};
use super::writers;
use crate::wait::until;

/// How long a fault lasts: several election timeouts.
const LASTS: Duration = Duration::from_secs(5);
/// An agent is away for longer than the time after which its unique pods are replaced.
const AGENT_LASTS: Duration = Duration::from_secs(8);
/// A master that refuses its damaged log has ended by then.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillLeader,
    KillFollower,
    KillAllMasters,
    /// The one whose node runs the unique pod.
    KillAgent,
    FreezeLeader,
    FreezeFollower,
    FreezeAgent,
    CutLeader,
    /// It hears nobody, but is heard.
    DeafenLeader,
    /// It hears everybody, and is not heard.
    MuteLeader,
    /// People and agents reach it; the other masters do not.
    CutLeaderFromMasters,
    CutFollower,
    /// The leader and one follower do not reach each other; the third reaches both.
    CutOneLink,
    FillLeadersDisk,
    FillFollowersDisk,
    CorruptFollowersLog,
    TruncateFollowersLog,
}

pub const ALL: &[Fault] = &[
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillAllMasters,
    Fault::KillAgent,
    Fault::FreezeLeader,
    Fault::FreezeFollower,
    Fault::FreezeAgent,
    Fault::CutLeader,
    Fault::DeafenLeader,
    Fault::MuteLeader,
    Fault::CutLeaderFromMasters,
    Fault::CutFollower,
    Fault::CutOneLink,
    Fault::FillLeadersDisk,
    Fault::FillFollowersDisk,
    Fault::CorruptFollowersLog,
    Fault::TruncateFollowersLog,
];

impl Fault {
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|fault| format!("{fault:?}") == name)
    }

    /// Answers whom it struck.
    pub async fn strike(
        self,
        chaos: &mut ChaosCluster,
        random: &mut fastrand::Rng,
    ) -> Result<String> {
        let leader = chaos.cluster.leader().await.context("before the fault")?;
        let follower = (leader + 1 + random.usize(..MASTERS - 1)) % MASTERS;
        let both = [Direction::In, Direction::Out];
        let all = [(leader, From::Everyone)];
        let masters = (0..MASTERS).filter(|m| *m != leader).map(|m| (leader, From::Host(m)));
        let whom = match self {
            Self::KillFollower
            | Self::FreezeFollower
            | Self::CutFollower
            | Self::FillFollowersDisk
            | Self::CorruptFollowersLog
            | Self::TruncateFollowersLog => format!("master {follower}"),
            Self::KillAllMasters => "all masters".to_owned(),
            Self::KillAgent | Self::FreezeAgent => "the unique pod's agent".to_owned(),
            Self::CutOneLink => format!("masters {leader} and {follower}"),
            _ => format!("master {leader}"),
        };
        match self {
            Self::KillLeader => kill(chaos, &[leader]).await,
            Self::KillFollower => kill(chaos, &[follower]).await,
            Self::KillAllMasters => kill(chaos, &[0, 1, 2]).await,
            Self::KillAgent => kill_agent(chaos).await,
            Self::FreezeLeader => freeze(chaos, leader).await,
            Self::FreezeFollower => freeze(chaos, follower).await,
            Self::FreezeAgent => freeze_agent(chaos).await,
            Self::CutLeader => cut(chaos, &all, &both).await,
            Self::DeafenLeader => cut(chaos, &all, &both[..1]).await,
            Self::MuteLeader => cut(chaos, &all, &both[1..]).await,
            Self::CutLeaderFromMasters => cut(chaos, &masters.collect::<Vec<_>>(), &both).await,
            Self::CutFollower => cut(chaos, &[(follower, From::Everyone)], &both).await,
            Self::CutOneLink => cut(chaos, &[(leader, From::Host(follower))], &both).await,
            Self::FillLeadersDisk => fill(chaos, leader).await,
            Self::FillFollowersDisk => fill(chaos, follower).await,
            Self::CorruptFollowersLog => damage(chaos, follower, flip_a_byte).await,
            Self::TruncateFollowersLog => damage(chaos, follower, cut_in_half).await,
        }?;
        Ok(whom)
    }
}

async fn kill(chaos: &mut ChaosCluster, masters: &[usize]) -> Result<()> {
    for master in masters {
        chaos.cluster.kill_master_at(*master)?;
    }
    tokio::time::sleep(LASTS).await;
    for master in masters {
        chaos.cluster.run_master(*master)?;
    }
    Ok(())
}

async fn freeze(chaos: &ChaosCluster, master: usize) -> Result<()> {
    chaos.cluster.signal_master(master, Signal::STOP)?;
    tokio::time::sleep(LASTS).await;
    chaos.cluster.signal_master(master, Signal::CONT)
}

async fn kill_agent(chaos: &mut ChaosCluster) -> Result<()> {
    let agent = chaos.agent_of_unique().await?;
    chaos.cluster.kill_agent(agent)?;
    tokio::time::sleep(AGENT_LASTS).await;
    chaos.cluster.start_agent(agent)
}

async fn freeze_agent(chaos: &ChaosCluster) -> Result<()> {
    let agent = chaos.agent_of_unique().await?;
    chaos.signal_agent(agent, Signal::STOP)?;
    tokio::time::sleep(AGENT_LASTS).await;
    chaos.signal_agent(agent, Signal::CONT)
}

async fn cut(
    chaos: &ChaosCluster,
    links: &[(usize, From)],
    directions: &[Direction],
) -> Result<()> {
    for (host, from) in links {
        for direction in directions {
            chaos.hosts.cut(*host, *direction, *from)?;
        }
    }
    tokio::time::sleep(LASTS).await;
    chaos.hosts.heal()
}

async fn fill(chaos: &mut ChaosCluster, master: usize) -> Result<()> {
    chaos.disk(master).fill()?;
    // What is reserved for the log is used up first.
    let admin = chaos.cluster.admin()?;
    let channels =
        (0..MASTERS).map(|m| chaos.cluster.dial_lazily(m, &admin)).collect::<Result<_>>()?;
    let _ = tokio::time::timeout(LASTS, writers::flood(channels)).await;
    chaos.disk(master).free()?;
    // It may have ended: a process supervisor starts it again.
    if chaos.cluster.master_has_ended(master)? {
        chaos.cluster.run_master(master)?;
    }
    Ok(())
}

/// A master whose log is damaged must refuse to start; its operator replaces it: removed from the
/// cluster, its data gone, it joins again.
async fn damage(
    chaos: &mut ChaosCluster,
    master: usize,
    how: fn(&Path) -> Result<()>,
) -> Result<()> {
    chaos.cluster.kill_master_at(master)?;
    how(&newest_segment(&chaos.log_folder(master))?)?;
    chaos.cluster.run_master(master)?;
    let waiting = std::cell::RefCell::new(&mut chaos.cluster);
    until("the master to refuse its damaged log", REFUSAL_DEADLINE, || async {
        let ended = waiting.borrow_mut().master_has_ended(master)?;
        anyhow::ensure!(ended, "master {master} runs on it");
        Ok(())
    })
    .await?;
    chaos.cluster.replace_master(master).await
}

fn newest_segment(folder: &Path) -> Result<PathBuf> {
    let mut segments: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder).context("list the log")? {
        let path = entry?.path();
        // Segments are reserved whole: the one that is written to has bytes in it, spares do not.
        let mut begin = [0; 4];
        let file = std::fs::File::open(&path)?;
        let is_written = (&file).read_exact(&mut begin).is_ok() && begin != [0; 4];
        if path.extension().is_some_and(|e| e == "log") && is_written {
            segments.push((file.metadata()?.len(), path));
        }
    }
    segments.sort_by(|a, b| a.1.cmp(&b.1));
    segments.pop().map(|(_, path)| path).context("the log has no segment")
}

/// In the middle of what was written, where it cannot be taken for a torn end.
fn flip_a_byte(segment: &Path) -> Result<()> {
    let mut file = std::fs::File::options().read(true).write(true).open(segment)?;
    let at = written_bytes(&mut file)? / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 0x10])?;
    Ok(())
}

fn cut_in_half(segment: &Path) -> Result<()> {
    let mut file = std::fs::File::options().read(true).write(true).open(segment)?;
    let half = written_bytes(&mut file)? / 2;
    file.set_len(half)?;
    Ok(())
}

/// Up to the last byte that is not zero.
fn written_bytes(file: &mut std::fs::File) -> Result<u64> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).context("the segment is empty")?;
    Ok(end as u64)
}
