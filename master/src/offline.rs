//! What is done to a data folder while no master runs on it: a backup is restored, or a master is
//! made the only one. Says what it does; the doing is the store's.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::config::EncryptionArgs;
use crate::store::{Recovery, StoreConfig, Survey, restore};

/// What has to be typed.
const YES: &str = "yes";

#[derive(Debug, Parser)]
#[command(name = "timonier-master", version, about = "What is done while no master runs")]
pub struct Offline {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the data folder of a new cluster's first master out of a backup
    Restore {
        /// Made by `timonctl backup save`
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// When most masters are lost for good: make this one the only one
    Recover {
        /// With what this master's disk holds; the others' is given up
        #[arg(long, required = true)]
        from_this_master: bool,
        #[command(flatten)]
        at: At,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
struct At {
    /// Of the master
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    #[command(flatten)]
    encryption: EncryptionArgs,
}

impl At {
    fn config(&self) -> StoreConfig {
        StoreConfig { encryption: self.encryption.keeper(), ..StoreConfig::new(&self.data_dir) }
    }
}

impl Offline {
    /// Whether a command line asks for something of this, by its first word.
    pub fn is_meant(word: &std::ffi::OsStr) -> bool {
        word == "restore" || word == "recover"
    }

    /// Does it.
    pub async fn run(self) -> Result<()> {
        match self.action {
            Action::Restore { file, at } => {
                let restored = restore(&file, &at.config()).await?;
                let header = &restored.header;
                let dir = at.data_dir.display();
                say(&format!(
                    "restored {} objects, saved {} from master {} of cluster {}, into {dir}\n\
                     it is a new cluster, {}, whose revisions go on from {}\n\
                     start its first master with --data-dir {dir}, then let others join with empty \
                     data folders;\nmasters of the old cluster are refused: stop them, and empty \
                     theirs",
                    header.objects,
                    header.time,
                    header.master_name,
                    header.cluster_id,
                    restored.cluster_id,
                    restored.revision,
                ))
            }
            Action::Recover { at, yes, .. } => {
                let recovery = Recovery::open(at.config()).await?;
                say(&price(recovery.survey()))?;
                if !yes {
                    confirm()?;
                }
                let name = at.data_dir.display().to_string();
                let recovered = recovery.run().await?;
                say(&format!(
                    "this master is the only one of a new cluster, {}, whose revisions go on from \
                     {}\nwhat was in {name} before is kept in {}; remove it when all is well\n\
                     start the master as before; empty the data folders of the others, and start \
                     them with --join",
                    recovered.cluster_id,
                    recovered.revision,
                    recovered.kept.display(),
                ))
            }
        }
    }
}

/// What a recovery costs.
fn price(survey: &Survey) -> String {
    let unsure = survey.last_index.saturating_sub(survey.committed_index);
    let mut text = format!(
        "master {} of cluster {}: revision {}, {} objects, log up to entry {}",
        survey.id, survey.cluster_id, survey.revision, survey.objects, survey.last_index,
    );
    if unsure > 0 {
        text += &format!(
            "\n  of its last {unsure} entries it is not known whether they were agreed on; they \
             count from now on"
        );
    }
    text += "\nit becomes the only master of a new cluster:";
    text += "\n  writes that were acknowledged by the other masters and never came here are LOST";
    let others: Vec<String> = survey
        .members
        .iter()
        .filter(|member| member.id != survey.id)
        .map(|member| format!("{} (id {}, {})", member.name, member.id, member.address))
        .collect();
    if !others.is_empty() {
        text += &format!(
            "\n  these masters are given up: {}; stop them for good, empty their data folders, and \
             let them join anew",
            others.join(", ")
        );
    }
    text += "\n  if most of them can be brought back, do that instead: nothing is lost then";
    text
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("write to the standard output")
}

fn confirm() -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nobody was asked; hint: --yes goes on without asking");
    }
    write!(io::stdout(), "type {YES:?} to go on: ").context("write to the standard output")?;
    io::stdout().flush().context("write to the standard output")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    if answer.trim() != YES {
        bail!("nothing was changed");
    }
    Ok(())
}
