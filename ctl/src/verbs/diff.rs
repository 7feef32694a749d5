//! `diff`: what `apply` would change, through the system's own `diff`.

use std::process::Command;

use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::fields::Fields;
use crate::manifest;
use crate::output::yaml;
use crate::verbs::apply;

const EXAMPLES: &str = "\
Examples:
  timonctl diff -f web.yaml        nothing is changed; exit code 1 when something would be
  KUBECTL_EXTERNAL_DIFF=meld timonctl diff -f web.yaml";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// File or folder, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<String>,
    /// Look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let documents = manifest::read(&args.files, args.recursive)?;
    let folder = std::env::temp_dir().join(format!("timonctl-diff-{}", std::process::id()));
    let result = compare(ctx, &documents, &folder).await;
    // Nothing of worth is in it.
    let _ = std::fs::remove_dir_all(&folder);
    result
}

async fn compare(ctx: &Ctx, documents: &[manifest::Document], folder: &std::path::Path) -> Outcome {
    let (live, merged) = (folder.join("LIVE"), folder.join("MERGED"));
    let wrong = |error: std::io::Error| fail(format!("write {}: {error}", folder.display()));
    std::fs::create_dir_all(&live).map_err(wrong)?;
    std::fs::create_dir_all(&merged).map_err(wrong)?;
    for document in documents {
        apply::check_namespace(ctx, document)?;
        let (_, after) = ctx
            .client
            .apply(&document.value, ctx.namespace(), true)
            .await
            .map_err(|failure| failure.at(document.place()))?;
        let item = apply::item_of(document, after)?;
        let before = match ctx.client.get(&item.key()).await {
            Ok(value) => yaml::yaml(&value)?,
            Err(failure) if failure.is_not_found() => String::new(),
            Err(failure) => return Err(failure),
        };
        let name =
            format!("{}.{}.{}", item.kind.info().plural, item.value.namespace(), item.value.name());
        std::fs::write(live.join(&name), before).map_err(wrong)?;
        std::fs::write(merged.join(&name), yaml::yaml(&item.value)?).map_err(wrong)?;
    }
    let program = std::env::var("KUBECTL_EXTERNAL_DIFF").unwrap_or_else(|_| "diff -u -N".into());
    let mut words = program.split_whitespace();
    let command = words.next().unwrap_or("diff");
    let output = Command::new(command)
        .args(words)
        .args([&live, &merged])
        .output()
        .map_err(|error| fail(format!("run {command}: {}", crate::client::plain_io(&error))))?;
    ctx.out.bytes(&output.stdout)?;
    ctx.out.error_bytes(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(()),
        _ => Err(crate::told(1)),
    }
}
