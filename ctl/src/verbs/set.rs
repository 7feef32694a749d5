//! `set image`: other images for a workload's containers.

use clap::Subcommand;
use serde_json::{Value, json};
use timonier_proto::Kind;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::resolve::{self, Item};

const EXAMPLES: &str = "\
Examples:
  timonctl set image deploy/web web=timonier/web:v2     one container
  timonctl set image deploy/web '*=timonier/web:v2'     all containers
  timonctl set image deploy/web web=a:2 proxy=b:3       several";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// Change the images of a workload's containers
    #[command(after_help = EXAMPLES)]
    Image {
        /// KIND/NAME or KIND NAME, then CONTAINER=IMAGE…; * is every container
        #[arg(value_name = "OBJECT CONTAINER=IMAGE", required = true, num_args = 2..)]
        words: Vec<String>,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let What::Image { words } = args.what;
    let (objects, changes): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| !word.contains('='));
    if changes.is_empty() {
        return Err(fail("at least one image update is required").hint("CONTAINER=IMAGE"));
    }
    let changes: Vec<(&str, &str)> = changes.iter().filter_map(|c| c.split_once('=')).collect();
    let targets = resolve::targets(&objects)?;
    let (items, failures) = resolve::fetch(ctx, &targets, &ctx.filter(false)).await?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    for item in &items {
        let patch = image_patch(item, &changes)?;
        if patch.is_empty() {
            ctx.out.line(format!("{} image unchanged", item.title()))?;
            continue;
        }
        ctx.client.json_patch(&item.key(), &Value::Array(patch)).await?;
        ctx.out.line(format!("{} image updated", item.title()))?;
    }
    Ok(())
}

/// JSON patch that sets the images, guarded so that a container that moved meanwhile is not hit.
/// Empty when all have them already.
pub fn image_patch(item: &Item, changes: &[(&str, &str)]) -> Outcome<Vec<Value>> {
    let base = match item.kind {
        Kind::Deployment | Kind::ReplicaSet => "spec.template.spec",
        Kind::Pod => "spec",
        kind => return bail(format!("a {} has no images", kind.info().singular)),
    };
    let mut patch = Vec::new();
    for (wanted, image) in changes {
        if image.is_empty() {
            return bail(format!("the image of container {wanted:?} is empty"));
        }
        let mut found = false;
        for list in ["containers", "initContainers"] {
            let path = format!("{base}.{list}");
            for (index, container) in item.value.list(&path).iter().enumerate() {
                let every = *wanted == "*" && list == "containers";
                if !every && container.text("name") != *wanted {
                    continue;
                }
                found = true;
                if container.text("image") == *image {
                    continue;
                }
                let pointer = format!("/{}/{index}", path.replace('.', "/"));
                patch.push(json!({"op": "test", "path": format!("{pointer}/name"), "value": container.text("name")}));
                patch.push(
                    json!({"op": "replace", "path": format!("{pointer}/image"), "value": image}),
                );
            }
        }
        if !found {
            let names: Vec<&str> = item
                .value
                .list(&format!("{base}.containers"))
                .iter()
                .map(|c| c.text("name"))
                .collect();
            return Err(fail(format!(
                "unable to find container named {wanted:?} in {}",
                item.title()
            ))
            .hint(format!("its containers are: {}", names.join(", "))));
        }
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_changed_by_container() {
        let value = json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": {
            "containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}}}});
        let item = Item { kind: Kind::Deployment, value };
        let patched = |changes: &[(&str, &str)]| {
            let patch = image_patch(&item, changes).unwrap();
            let patch: json_patch::Patch = serde_json::from_value(Value::Array(patch)).unwrap();
            let mut value = item.value.clone();
            json_patch::patch(&mut value, &patch).unwrap();
            let images = value.list("spec.template.spec.containers").iter();
            images.map(|c| c.text("image").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(patched(&[("b", "b:2")]), ["a:1", "b:2"]);
        assert_eq!(patched(&[("*", "x")]), ["x", "x"]);
        assert!(image_patch(&item, &[("a", "a:1")]).unwrap().is_empty());
        assert!(image_patch(&item, &[("c", "x")]).unwrap_err().to_string().contains("a, b"));
    }
}
