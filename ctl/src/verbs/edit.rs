//! `edit`: an object in the person's editor.

use std::process::Command;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::manifest;
use crate::output::yaml;
use crate::resolve::{self, Item};

const EXAMPLES: &str = "\
Examples:
  timonctl edit deploy/web
  EDITOR=nano timonctl edit configmap settings";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND/NAME or KIND NAME
    #[arg(value_name = "OBJECT", required = true)]
    pub words: Vec<String>,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let targets = resolve::targets(&args.words)?;
    let (items, failures) = resolve::fetch(ctx, &targets, &ctx.filter(false)).await?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    for item in &items {
        edit(ctx, item).await?;
    }
    Ok(())
}

async fn edit(ctx: &Ctx, item: &Item) -> Outcome {
    let path = std::env::temp_dir().join(format!("timonctl-edit-{}.yaml", std::process::id()));
    let before = yaml::yaml(&item.value)?;
    std::fs::write(&path, &before)
        .map_err(|error| fail(format!("write {}: {error}", path.display())))?;
    let editor = ["KUBE_EDITOR", "VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        .unwrap_or_else(|| "vi".into());
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = Command::new(program).args(words).arg(&path).status();
    let status = status.map_err(|error| {
        fail(format!("run the editor {program}: {}", crate::client::plain_io(&error)))
            .hint("set EDITOR to one that is installed")
    })?;
    if !status.success() {
        return bail(format!("the editor {program} failed; nothing was changed"));
    }
    let after = std::fs::read_to_string(&path)
        .map_err(|error| fail(format!("read {}: {error}", path.display())))?;
    if after == before {
        let _ = std::fs::remove_file(&path);
        return ctx.out.line("Edit cancelled, no changes made.");
    }
    let documents = manifest::parse(&path.display().to_string(), &after)?;
    let [document] = documents.as_slice() else {
        return bail(format!("{} must hold one object", path.display()));
    };
    if document.value.name() != item.value.name()
        || document.value.text("kind") != item.value.text("kind")
    {
        return bail("the kind and the name of an object cannot be changed");
    }
    // With its resourceVersion: a change made meanwhile is a conflict, not overwritten.
    ctx.client.update(&document.value, item.value.namespace()).await.map_err(|failure| {
        failure.at(item.title()).hint(format!("what you wrote is kept in {}", path.display()))
    })?;
    let _ = std::fs::remove_file(&path);
    ctx.out.line(format!("{} edited", item.title()))
}
