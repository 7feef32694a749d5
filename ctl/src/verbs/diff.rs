//! `diff`: what `apply` would change, through the system's own `diff`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use timonier_proto::Kind;

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
        let mut after = item.value.clone();
        let mut before = match ctx.client.get(&item.key()).await {
            Ok(value) => Some(value),
            Err(failure) if failure.is_not_found() => None,
            Err(failure) => return Err(failure),
        };
        if item.kind == Kind::Secret {
            mask(before.as_mut(), &mut after);
        }
        let before = before.as_ref().map(yaml::yaml).transpose()?.unwrap_or_default();
        let name =
            format!("{}.{}.{}", item.kind.info().plural, item.value.namespace(), item.value.name());
        std::fs::write(live.join(&name), before).map_err(wrong)?;
        std::fs::write(merged.join(&name), yaml::yaml(&after)?).map_err(wrong)?;
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

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Shows which of a secret's values differ, and none of them, as kubectl does.
fn mask(before: Option<&mut Value>, after: &mut Value) {
    let mut none = Value::Null;
    let before = before.unwrap_or(&mut none);
    let keys = |object: &Value, path: &str| -> BTreeSet<String> {
        object
            .pointer(path)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect()
    };
    for path in ["/data", "/stringData"] {
        let mut all = keys(before, path);
        all.extend(keys(after, path));
        for key in all {
            let value =
                |object: &Value| object.pointer(path).and_then(|map| map.get(&key)).cloned();
            let (old, new) = (value(before), value(after));
            let both = old.is_some() && new.is_some();
            let (shown_old, shown_new) = match both && old != new {
                true => ("*** (before)", "*** (after)"),
                false => ("***", "***"),
            };
            for (object, shown) in [(&mut *before, shown_old), (&mut *after, shown_new)] {
                if let Some(value) = object.pointer_mut(path).and_then(|map| map.get_mut(&key)) {
                    *value = shown.into();
                }
            }
        }
    }
    // It holds the values once more.
    for object in [before, after] {
        let annotations =
            object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        if let Some(annotations) = annotations {
            annotations.remove(LAST_APPLIED);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secrets_values_are_masked() {
        let mut before = json!({"data": {"same": "YQ==", "other": "Yg==", "gone": "Yw=="}});
        let mut after = json!({
            "metadata": {"annotations": {LAST_APPLIED: "{\"stringData\": {\"other\": \"x\"}}", "a": "b"}},
            "data": {"same": "YQ==", "other": "eA==", "new": "eQ=="},
        });
        mask(Some(&mut before), &mut after);
        let masked = json!({"same": "***", "other": "*** (before)", "gone": "***"});
        assert_eq!(before, json!({"data": masked}));
        assert_eq!(after["data"], json!({"same": "***", "other": "*** (after)", "new": "***"}));
        assert_eq!(after["metadata"]["annotations"], json!({"a": "b"}));
        let mut created = json!({"data": {"k": "eA=="}});
        mask(None, &mut created);
        assert_eq!(created, json!({"data": {"k": "***"}}));
    }
}
