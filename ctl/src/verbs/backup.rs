//! `backup`: the whole state in one file.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;
use timonier_proto::backup::{self as format, BackupError, Checked, Checker, Header};

use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};
use crate::lab::process;
use crate::output::objects::Format;
use crate::output::progress::Bar;
use crate::output::{tabs, yaml};

const EXAMPLES: &str = "\
Examples:
  timonctl backup save cluster.backup          while everything goes on
  timonctl backup save - | age -r age1… > cluster.age
  timonctl backup verify cluster.backup        whole? of what, and when?
  timonctl backup restore cluster.backup --data-dir /var/lib/timonier/master

A backup holds every object, secrets and the cluster's CA too. It is encrypted when the master's keys
are protected by a key file or a passphrase, and opens with the same one.";

/// Standard output.
const STDOUT: &str = "-";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Save the state of the cluster to a file, with every write that was acknowledged before
    Save {
        /// Readable by its owner only; - is the standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        force: bool,
    },
    /// Check that a file is whole, and say what is in it
    Verify {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// yaml or json
        #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
        output: Format,
    },
    /// Make a new cluster's first data folder out of a file, on the host of its master
    Restore {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

/// A data folder on this host, and what its master's keys are protected with.
#[derive(Debug, clap::Args)]
pub struct At {
    /// Of the master that is not running
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// As the master is started with it
    #[arg(long, value_name = "FILE", conflicts_with = "encryption_passphrase_file")]
    pub encryption_key_file: Option<PathBuf>,
    /// As the master is started with it
    #[arg(long, value_name = "FILE")]
    pub encryption_passphrase_file: Option<PathBuf>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.action {
        Action::Save { file, .. } if file.as_os_str() == STDOUT => to_stdout(ctx).await,
        Action::Save { file, force } => save(ctx, &file, force).await,
        Action::Verify { file, output } => verify(ctx, &file, &output),
        Action::Restore { file, at } => {
            check(&file)?;
            offline(vec!["restore".into(), file.into()], at).await
        }
    }
}

async fn save(ctx: &Ctx, file: &Path, force: bool) -> Outcome {
    if file.exists() && !force {
        return Err(fail(format!("save {}: it is there already", file.display()))
            .hint("another name, or --force"));
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let saved = save_to(ctx, &part).await.and_then(|checked| {
        std::fs::rename(&part, file).map_err(|error| wrong("write", file, &error))?;
        Ok(checked)
    });
    let Checked { header, state_bytes, .. } = saved.inspect_err(|_| {
        // Half a backup is none.
        let _ = std::fs::remove_file(&part);
    })?;
    ctx.out.line(format!(
        "saved {} objects at revision {} to {} ({:.1} MiB)",
        header.objects,
        header.revision,
        file.display(),
        state_bytes as f64 / f64::from(1 << 20),
    ))?;
    warn(ctx, &header);
    Ok(())
}

fn warn(ctx: &Ctx, header: &Header) {
    if header.is_sealed() {
        let needs = &header.needs;
        ctx.out.note(format!("hint: it is encrypted: keep the master's {needs} to open it"));
    } else {
        ctx.out.note(
            "hint: it is not encrypted, and holds every secret: keep it where nobody else reads \
             it. With --encryption-key-file for the masters, backups are encrypted",
        );
    }
}

async fn save_to(ctx: &Ctx, part: &Path) -> Outcome<Checked> {
    let mut stream = ctx.client.backup().await?;
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(wrong("remove", part, &error));
        }
        _ => {}
    }
    let created = OpenOptions::new().create_new(true).write(true).mode(0o600).open(part);
    let mut out = created.map_err(|error| wrong("create", part, &error))?;
    let (mut bar, mut done) = (None, 0);
    while let Some(chunk) = stream.message().await.map_err(|status| ctx.client.explained(status))? {
        out.write_all(&chunk.data).map_err(|error| wrong("write", part, &error))?;
        done += chunk.data.len() as u64;
        let total = chunk.expected_bytes.max(done);
        bar.get_or_insert_with(|| Bar::start(&ctx.out, "saving", total, true)).set(done);
    }
    out.sync_all().map_err(|error| wrong("write", part, &error))?;
    // As it is on the disk: what was cut off on its way is found out now, not when it is needed.
    check(part)
}

async fn to_stdout(ctx: &Ctx) -> Outcome {
    if ctx.out.terminal {
        return Err(fail("a backup is not for a terminal").hint("give a file, or a pipe"));
    }
    let mut stream = ctx.client.backup().await?;
    let mut checker = Checker::default();
    let unusable = |error| {
        unusable("the backup as it came", &error).hint("what was written is none: save it again")
    };
    while let Some(chunk) = stream.message().await.map_err(|status| ctx.client.explained(status))? {
        checker.update(&chunk.data).map_err(unusable)?;
        ctx.out.bytes(&chunk.data)?;
    }
    checker.finish().map(drop).map_err(unusable)
}

fn wrong(what: &str, path: &Path, error: &io::Error) -> Failure {
    fail(format!("{what} {}: {}", path.display(), crate::client::plain_io(error)))
}

fn check(path: &Path) -> Outcome<Checked> {
    let file = File::open(path).map_err(|error| wrong("open", path, &error))?;
    format::check(file).map_err(|error| unusable(&path.display().to_string(), &error))
}

fn unusable(what: &str, error: &BackupError) -> Failure {
    let text = error.to_string();
    let (why, hint) = text.split_once("; hint: ").unwrap_or((&text, ""));
    let failure = fail(format!("{what}: {why}"));
    if hint.is_empty() { failure } else { failure.hint(hint) }
}

fn verify(ctx: &Ctx, path: &Path, output: &Format) -> Outcome {
    let Checked { header, state_bytes, .. } = check(path)?;
    let value = json!({
        "format": header.format, "clusterId": header.cluster_id, "revision": header.revision,
        "objects": header.objects, "time": header.time, "masterId": header.master_id,
        "masterName": header.master_name, "version": header.version, "needs": header.needs,
        "encrypted": header.is_sealed(), "stateBytes": state_bytes,
    });
    match output {
        Format::Json => return ctx.out.bytes(yaml::json(&value)?.as_bytes()),
        Format::Yaml => return ctx.out.bytes(yaml::yaml(&value)?.as_bytes()),
        _ => {}
    }
    let encrypted = match header.is_sealed() {
        true => format!("yes, opens with the master's {}", header.needs),
        false => "no; it holds every secret".to_owned(),
    };
    let mut text = format!("{} is whole\n", path.display());
    for (name, value) in [
        ("Cluster:", header.cluster_id.clone()),
        ("Saved:", format!("{} by master {}", header.time, header.master_name)),
        ("Revision:", header.revision.to_string()),
        ("Objects:", header.objects.to_string()),
        ("Size:", format!("{:.1} MiB", state_bytes as f64 / f64::from(1 << 20))),
        ("Encrypted:", encrypted),
        ("Format:", header.format.clone()),
        ("Version:", header.version.clone()),
    ] {
        text.push_str(&format!("{name}\t{value}\n"));
    }
    ctx.out.bytes(tabs::layout(&text, 0, 2).as_bytes())
}

/// Has `timonier-master` work on a data folder of this host; what it says is ours.
pub(super) async fn offline(mut words: Vec<OsString>, at: At) -> Outcome {
    let master = process::program("timonier-master")?;
    words.extend(["--data-dir".into(), at.data_dir.into()]);
    for (flag, path) in [
        ("--encryption-key-file", at.encryption_key_file),
        ("--encryption-passphrase-file", at.encryption_passphrase_file),
    ] {
        if let Some(path) = path {
            words.extend([flag.into(), path.into()]);
        }
    }
    let mut command = tokio::process::Command::new(&master);
    let status = command.args(words).status().await;
    let status = status.map_err(|error| wrong("run", &master, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(crate::told(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
