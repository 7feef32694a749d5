//! `encryption`: what a master's files are encrypted with.

use clap::Subcommand;
use timonier_proto::v1::EncryptionReply;

use crate::context::Ctx;
use crate::error::Outcome;
use crate::output::table::Table;

const EXAMPLES: &str = "\
Examples:
  timonctl encryption status       the keys of the master that answers
  timonctl encryption rotate       a new key; the old one goes once no file needs it
  timonctl encryption rotate --server 10.0.0.2:7443   of this master: each has its own keys";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the keys, and how many files need each
    Status,
    /// Encrypt with a new key from now on
    Rotate,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let reply = match args.action {
        Action::Status => ctx.client.encryption_status().await?,
        Action::Rotate => {
            let reply = ctx.client.rotate_encryption().await?;
            let active = reply.keys.iter().find(|key| key.active).map_or(0, |key| key.id);
            ctx.out.line(format!("master {} encrypts with key {active} now", reply.master))?;
            reply
        }
    };
    show(ctx, &reply)
}

fn show(ctx: &Ctx, reply: &EncryptionReply) -> Outcome {
    let kept = match reply.protection.as_str() {
        "file" => "in the data folder",
        "off" => "off",
        _ => &format!("sealed with a {}", reply.protection),
    };
    ctx.out.line(format!("Master: {}   Keys: {kept}", reply.master))?;
    if reply.plain_files > 0 {
        let files = reply.plain_files;
        ctx.out.line(format!("{files} files are not encrypted yet; they are being rewritten"))?;
    }
    let headers = ["KEY", "ACTIVE", "FILES", "MADE"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    for key in &reply.keys {
        let active = if key.active { "*" } else { "" }.to_owned();
        table.row(vec![key.id.to_string(), active, key.files.to_string(), key.made.clone()]);
    }
    table.take_lines(true, |_, cell| cell).iter().try_for_each(|line| ctx.out.line(line))
}
