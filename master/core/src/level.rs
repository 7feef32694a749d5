//! Which rules the cluster goes by. Masters are upgraded one by one; as long as one is of an older
//! build, all must make of the log what that one makes of it, and store what it can read. So what is
//! new is bound to a level, and the level is raised, through the log, once every master knows it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Of the log's transactions, of what applying them does, and of the snapshots. It never sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Level(u32);

impl Level {
    /// Of the builds before there were levels.
    pub const FIRST: Self = Self(1);
    /// The log counts time, and request ids are remembered for a time instead of by number.
    pub const TIMED_IDS: Self = Self(2);
    /// The highest that this build knows.
    pub const NEWEST: Self = Self::TIMED_IDS;
}

impl Default for Level {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Level> for u32 {
    fn from(level: Level) -> Self {
        level.0
    }
}

/// It is of a newer build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster is at level {0}, this build knows levels up to {newest}; hint: start the build \
     that ran here last, or a newer one",
    newest = Level::NEWEST
)]
pub struct UnknownLevel(u32);

impl TryFrom<u32> for Level {
    type Error = UnknownLevel;

    /// 0 is what a build says that knows no levels.
    fn try_from(number: u32) -> Result<Self, UnknownLevel> {
        match number {
            0 => Ok(Self::FIRST),
            known if known <= Self::NEWEST.0 => Ok(Self(known)),
            newer => Err(UnknownLevel(newer)),
        }
    }
}
