//! `label`, and what it shares with `annotate`: setting and removing keys of a map in the metadata.

use serde_json::{Map, Value, json};

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve::{self, Item, Target};

const EXAMPLES: &str = "\
Examples:
  timonctl label pod web-1 tier=front              set a label
  timonctl label node lab-1 disk=ssd zone=a        several
  timonctl label pod web-1 tier=back --overwrite   change one that is there
  timonctl label pod web-1 tier-                   remove one
  timonctl label pods -l app=web tier=front        all pods with a label";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, clap::Args)]
pub struct Change {
    /// KIND NAME… or KIND/NAME…, then KEY=VALUE to set and KEY- to remove
    #[arg(value_name = "OBJECTS KEY=VALUE", required = true, num_args = 2..)]
    pub words: Vec<String>,
    /// Change keys that are there already
    #[arg(long)]
    pub overwrite: bool,
    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    pub selector: String,
    /// All objects of the kind
    #[arg(long)]
    pub all: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    change(args.change, ctx, "labels", ["labeled", "unlabeled", "not labeled"]).await
}

/// Sets and removes keys of `metadata.<map>`.
pub async fn change(change: Change, ctx: &Ctx, map: &str, done: [&str; 3]) -> Outcome {
    let (objects, edits) = split(&change.words)?;
    let targets = resolve::targets(&objects)?;
    resolve::check_names(&targets, change.all_namespaces, &change.selector)?;
    let whole_kind = targets.iter().any(|t| matches!(t, Target::All(_)));
    if whole_kind && change.selector.is_empty() && !change.all {
        return Err(fail(
            "one or more resources must be specified as <resource> <name> or <resource>/<name>",
        )
        .hint("or choose by label with -l, or take --all"));
    }
    let filter = ctx.filter(change.all_namespaces).labels(change.selector.clone());
    let (items, failures) = resolve::fetch(ctx, &targets, &filter).await?;
    let mut failed = !failures.is_empty();
    failures.iter().for_each(|failure| ctx.out.failure(failure));
    if items.is_empty() && !failed {
        ctx.out.note("No resources found");
    }
    for item in &items {
        match apply(ctx, item, map, &edits, change.overwrite).await {
            Ok(what) => ctx.out.line(format!("{} {}", item.title(), done[what as usize]))?,
            Err(failure) => {
                ctx.out.failure(&failure);
                failed = true;
            }
        }
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

/// Object words, and keys with their new value or none.
type Split = (Vec<String>, Vec<(String, Option<String>)>);

fn split(words: &[String]) -> Outcome<Split> {
    let is_edit = |word: &String| word.contains('=') || (word.ends_with('-') && word.len() > 1);
    let first = words.iter().position(is_edit).unwrap_or(words.len());
    let (objects, edits) = words.split_at(first);
    if edits.is_empty() {
        return Err(fail("at least one update is required").hint("KEY=VALUE sets, KEY- removes"));
    }
    let edits = edits.iter().map(|word| match word.split_once('=') {
        Some(("", _)) => bail(format!("{word:?} has no key")),
        Some((key, value)) => Ok((key.to_owned(), Some(value.to_owned()))),
        None => match word.strip_suffix('-') {
            Some(key) => Ok((key.to_owned(), None)),
            None => bail(format!("{word:?} is neither KEY=VALUE nor KEY-")),
        },
    });
    Ok((objects.to_vec(), edits.collect::<Outcome<_>>()?))
}

/// What was done to one object; the numbers choose the message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Done {
    Set = 0,
    Removed = 1,
    Nothing = 2,
}

async fn apply(
    ctx: &Ctx,
    item: &Item,
    map: &str,
    edits: &[(String, Option<String>)],
    overwrite: bool,
) -> Outcome<Done> {
    let mut patch = Map::new();
    let mut done = Done::Nothing;
    let present = item.value.at("metadata").at(map);
    for (key, value) in edits {
        let current = present.get(key).and_then(Value::as_str);
        match (current, value) {
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(_)) if !overwrite => {
                return bail(format!(
                    "{}: {key:?} already has a value ({old}), and --overwrite is false",
                    item.title()
                ));
            }
            (_, Some(new)) => {
                patch.insert(key.clone(), json!(new));
                done = Done::Set;
            }
            (Some(_), None) => {
                patch.insert(key.clone(), Value::Null);
                if done == Done::Nothing {
                    done = Done::Removed;
                }
            }
            (None, None) => {
                ctx.out.note(format!("{} {key:?} not found.", map.trim_end_matches('s')))
            }
        }
    }
    if done != Done::Nothing {
        ctx.client.merge_patch(&item.key(), &json!({"metadata": {map: patch}})).await?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_edits_are_told_apart() {
        let words: Vec<String> = ["pod", "a", "x=1", "y-", "z="].map(str::to_owned).to_vec();
        let (objects, edits) = split(&words).unwrap();
        assert_eq!(objects, ["pod", "a"]);
        let expected =
            [("x".into(), Some("1".into())), ("y".into(), None), ("z".into(), Some(String::new()))];
        assert_eq!(edits, expected);
        assert!(split(&["pod".to_owned(), "a".to_owned()]).is_err());
    }
}
