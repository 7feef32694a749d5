//! The faults, one a round. Each strikes, lasts, and is over when its function returns: what was
//! killed is started again, what was cut is joined.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use timonier_proto::Kind;

use super::cluster::{ChaosCluster, MASTERS, host_of_agent};
use super::damage;
use super::flood::flood;
use super::hosts::{Direction, From};
use crate::cluster::condition;
use crate::wait::until;

/// How long a fault lasts: several election timeouts.
const LASTS: Duration = Duration::from_secs(5);
/// An agent is away for longer than the time after which its unique pods are replaced.
const AGENT_LASTS: Duration = Duration::from_secs(8);
/// An agent is away for less than the time after which its node is lost and its unique pods stop,
/// which is 3 s; until TCP sends again what was lost, it may be more.
const AGENT_LASTS_BRIEFLY: Duration = Duration::from_secs(2);
/// A master that refuses its damaged log has ended by then.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillLeader,
    KillFollower,
    KillAllMasters,
    /// Of agents, this and the others strike the one whose node runs the unique pod.
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
    /// No master reaches it, and it reaches none; its containers go on.
    CutAgent,
    /// As [`Self::CutAgent`], but its node may not be lost.
    CutAgentBriefly,
    /// It hears no master, but is heard.
    DeafenAgent,
    DeafenAgentBriefly,
    /// It hears every master, and is not heard.
    MuteAgent,
    MuteAgentBriefly,
    /// It reaches the other masters.
    CutAgentFromLeader,
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
    Fault::CutAgent,
    Fault::CutAgentBriefly,
    Fault::DeafenAgent,
    Fault::DeafenAgentBriefly,
    Fault::MuteAgent,
    Fault::MuteAgentBriefly,
    Fault::CutAgentFromLeader,
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
        let targets = Targets { leader, follower, agent: chaos.agent_of_unique().await? };
        self.strike_at(chaos, &targets).await?;
        Ok(self.whom(&targets))
    }

    async fn strike_at(self, chaos: &mut ChaosCluster, targets: &Targets) -> Result<()> {
        let Targets { leader, follower, agent } = *targets;
        let others: Vec<_> = (0..MASTERS).filter(|m| *m != leader).map(From::Host).collect();
        match self {
            Self::KillLeader => kill(chaos, &[leader]).await,
            Self::KillFollower => kill(chaos, &[follower]).await,
            Self::KillAllMasters => kill(chaos, &[0, 1, 2]).await,
            Self::KillAgent => kill_agent(chaos, agent).await,
            Self::FreezeLeader => freeze(chaos, leader).await,
            Self::FreezeFollower => freeze(chaos, follower).await,
            Self::FreezeAgent => freeze_agent(chaos, agent).await,
            Self::CutLeader => cut(chaos, leader, &EVERYONE, &BOTH, LASTS).await,
            Self::DeafenLeader => cut(chaos, leader, &EVERYONE, &IN, LASTS).await,
            Self::MuteLeader => cut(chaos, leader, &EVERYONE, &OUT, LASTS).await,
            Self::CutLeaderFromMasters => cut(chaos, leader, &others, &BOTH, LASTS).await,
            Self::CutFollower => cut(chaos, follower, &EVERYONE, &BOTH, LASTS).await,
            Self::CutOneLink => cut(chaos, leader, &[From::Host(follower)], &BOTH, LASTS).await,
            Self::CutAgent => lose_agent(chaos, agent, &BOTH).await,
            Self::CutAgentBriefly => cut_agent_briefly(chaos, agent, &BOTH).await,
            Self::DeafenAgent => lose_agent(chaos, agent, &IN).await,
            Self::DeafenAgentBriefly => cut_agent_briefly(chaos, agent, &IN).await,
            Self::MuteAgent => lose_agent(chaos, agent, &OUT).await,
            Self::MuteAgentBriefly => cut_agent_briefly(chaos, agent, &OUT).await,
            Self::CutAgentFromLeader => {
                let host = host_of_agent(agent);
                cut(chaos, host, &[From::Host(leader)], &BOTH, AGENT_LASTS).await
            }
            Self::FillLeadersDisk => fill(chaos, leader).await,
            Self::FillFollowersDisk => fill(chaos, follower).await,
            Self::CorruptFollowersLog => damage_log(chaos, follower, damage::flip_a_byte).await,
            Self::TruncateFollowersLog => damage_log(chaos, follower, damage::cut_in_half).await,
        }
    }

    fn whom(self, targets: &Targets) -> String {
        let Targets { leader, follower, agent } = targets;
        match self {
            Self::KillFollower
            | Self::FreezeFollower
            | Self::CutFollower
            | Self::FillFollowersDisk
            | Self::CorruptFollowersLog
            | Self::TruncateFollowersLog => format!("master {follower}"),
            Self::KillAllMasters => "all masters".to_owned(),
            Self::KillAgent
            | Self::FreezeAgent
            | Self::CutAgent
            | Self::CutAgentBriefly
            | Self::DeafenAgent
            | Self::DeafenAgentBriefly
            | Self::MuteAgent
            | Self::MuteAgentBriefly => format!("agent {agent}"),
            Self::CutAgentFromLeader => format!("agent {agent} and master {leader}"),
            Self::CutOneLink => format!("masters {leader} and {follower}"),
            Self::KillLeader
            | Self::FreezeLeader
            | Self::CutLeader
            | Self::DeafenLeader
            | Self::MuteLeader
            | Self::CutLeaderFromMasters
            | Self::FillLeadersDisk => format!("master {leader}"),
        }
    }
}

/// Whom a fault may strike; none strikes all of them.
struct Targets {
    leader: usize,
    follower: usize,
    agent: usize,
}

const EVERYONE: [From; 1] = [From::Everyone];
const BOTH: [Direction; 2] = [Direction::In, Direction::Out];
const IN: [Direction; 1] = [Direction::In];
const OUT: [Direction; 1] = [Direction::Out];

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

async fn kill_agent(chaos: &mut ChaosCluster, agent: usize) -> Result<()> {
    chaos.cluster.kill_agent(agent)?;
    tokio::time::sleep(AGENT_LASTS).await;
    chaos.cluster.start_agent(agent)
}

async fn freeze_agent(chaos: &ChaosCluster, agent: usize) -> Result<()> {
    chaos.signal_agent(agent, Signal::STOP)?;
    tokio::time::sleep(AGENT_LASTS).await;
    chaos.signal_agent(agent, Signal::CONT)
}

async fn cut(
    chaos: &ChaosCluster,
    host: usize,
    from: &[From],
    directions: &[Direction],
    lasts: Duration,
) -> Result<()> {
    chaos.hosts.cut(host, from, directions)?;
    tokio::time::sleep(lasts).await;
    chaos.hosts.heal()
}

async fn cut_agent_briefly(
    chaos: &ChaosCluster,
    agent: usize,
    directions: &[Direction],
) -> Result<()> {
    cut(chaos, host_of_agent(agent), &EVERYONE, directions, AGENT_LASTS_BRIEFLY).await
}

/// Cuts an agent off for so long that its node counts as lost.
async fn lose_agent(chaos: &ChaosCluster, agent: usize, directions: &[Direction]) -> Result<()> {
    chaos.hosts.cut(host_of_agent(agent), &EVERYONE, directions)?;
    tokio::time::sleep(AGENT_LASTS).await;
    let nodes = chaos.cluster.list(Kind::Node, "").await;
    chaos.hosts.heal()?;
    let name = chaos.cluster.node_name(agent);
    let nodes = nodes.context("list the nodes")?;
    let node = nodes.iter().find(|node| node.key().name == name).context("its node is gone")?;
    ensure!(condition(node, "Ready") != "True", "{name} was cut off and still counts as Ready");
    Ok(())
}

async fn fill(chaos: &mut ChaosCluster, master: usize) -> Result<()> {
    chaos.disk(master).fill()?;
    // What is reserved for the log is used up first.
    let admin = chaos.cluster.admin()?;
    let channels =
        (0..MASTERS).map(|m| chaos.cluster.dial_lazily(m, &admin)).collect::<Result<_>>()?;
    let _ = tokio::time::timeout(LASTS, flood(channels)).await;
    chaos.disk(master).free()?;
    // It may have ended: a process supervisor starts it again.
    if chaos.cluster.master_has_ended(master)? {
        chaos.cluster.run_master(master)?;
    }
    Ok(())
}

/// A master whose log is damaged must refuse to start; its operator replaces it: removed from the
/// cluster, its data gone, it joins again.
async fn damage_log(
    chaos: &mut ChaosCluster,
    master: usize,
    how: fn(&Path) -> Result<()>,
) -> Result<()> {
    chaos.cluster.kill_master_at(master)?;
    how(&damage::newest_segment(&chaos.log_folder(master))?)?;
    chaos.cluster.run_master(master)?;
    let waiting = std::cell::RefCell::new(&mut chaos.cluster);
    until("the master to refuse its damaged log", REFUSAL_DEADLINE, || async {
        let ended = waiting.borrow_mut().master_has_ended(master)?;
        ensure!(ended, "master {master} runs on it");
        Ok(())
    })
    .await?;
    chaos.cluster.replace_master(master).await
}
