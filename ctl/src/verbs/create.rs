//! `create`: from flags or a file; what exists already is a failure.

mod secret;

use std::path::Path;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::manifest::{self, Document};
use crate::output::objects::{self, Format, Show};
use crate::resolve::{self, Item};
use crate::verbs::apply::{self, DryRun};
use crate::verbs::create_access;

const EXAMPLES: &str = "\
Examples:
  timonctl create deployment web --image timonier/web:v1 --replicas 3 --port 8080
  timonctl create namespace test
  timonctl create configmap settings --from-literal mode=fast --from-file web.conf
  timonctl create pdb web --selector app=web --min-available 2
  timonctl create secret generic db --from-literal password=hunter2 --from-file ca.pem
  timonctl create secret tls web --cert web.pem --key web.key
  timonctl create secret docker-registry hub --docker-server r.example:5000 \\
      --docker-username me --docker-password hunter2
  timonctl create -f web.yaml
  timonctl create deployment web --image web:v1 --dry-run=client -o yaml > web.yaml";

/// Bytes that a config map may hold.
const CONFIG_MAP_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub what: Option<What>,
    /// File or folder, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,
    /// With -f: look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    #[command(flatten)]
    pub how: How,
}

#[derive(Debug, Clone, clap::Args)]
pub struct How {
    #[command(flatten)]
    pub dry_run: DryRun,
    /// yaml, json, name or jsonpath=TEMPLATE instead of a message
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// A deployment of an image
    #[command(visible_alias = "deploy")]
    Deployment {
        name: String,
        /// Image; several make several containers
        #[arg(long, required = true, value_name = "IMAGE")]
        image: Vec<String>,
        /// Pods
        #[arg(short, long, value_name = "N", default_value_t = 1)]
        replicas: u32,
        /// Port that the container listens on
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// Command and arguments instead of the image's own, after --
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// A namespace
    #[command(visible_alias = "ns")]
    Namespace {
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// A secret: generic, tls or docker-registry
    Secret {
        #[command(subcommand)]
        which: secret::Secret,
    },
    /// A config map from texts and files
    #[command(visible_alias = "cm")]
    Configmap {
        name: String,
        /// KEY=VALUE
        #[arg(long, value_name = "KEY=VALUE")]
        from_literal: Vec<String>,
        /// FILE, KEY=FILE, or a folder
        #[arg(long, value_name = "FILE")]
        from_file: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    #[command(flatten)]
    Access(create_access::What),
    /// A disruption budget: how many pods evictions must leave
    #[command(name = "poddisruptionbudget", visible_alias = "pdb")]
    DisruptionBudget {
        name: String,
        /// Labels of the pods
        #[arg(long, required = true, value_name = "LABELS")]
        selector: String,
        /// Pods that must stay, as a number or percentage
        #[arg(long, value_name = "N|N%", required_unless_present = "max_unavailable")]
        min_available: Option<String>,
        /// Pods that may be away, as a number or percentage
        #[arg(long, value_name = "N|N%", conflicts_with = "min_available")]
        max_unavailable: Option<String>,
        #[command(flatten)]
        how: How,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let (object, how) = match args.what {
        None => {
            let documents = manifest::read(&args.files, args.recursive)?;
            return create_all(ctx, &documents, &args.how).await;
        }
        Some(What::Deployment { name, image, replicas, port, command, how }) => {
            (deployment(&name, &image, replicas, port, &command)?, how)
        }
        Some(What::Namespace { name, how }) => {
            (json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}), how)
        }
        Some(What::Secret { which }) => which.object()?,
        Some(What::Configmap { name, from_literal, from_file, how }) => {
            (config_map(&name, &from_literal, &from_file)?, how)
        }
        Some(What::Access(what)) => match create_access::object(&what)? {
            Some((object, how)) => (object, how.clone()),
            None => return create_access::token(&what, ctx).await,
        },
        Some(What::DisruptionBudget { name, selector, min_available, max_unavailable, how }) => {
            (disruption_budget(&name, &selector, min_available, max_unavailable)?, how)
        }
    };
    let document = Document { source: "the command line".into(), index: 1, value: object };
    create_all(ctx, &[document], &how).await
}

async fn create_all(ctx: &Ctx, documents: &[Document], how: &How) -> Outcome {
    let mut created = Vec::new();
    let mut failed = false;
    for document in documents {
        apply::check_namespace(ctx, document)?;
        let answer = match how.dry_run.client() {
            true => Ok(with_namespace(ctx, document.value.clone())),
            false => {
                ctx.client.create(&document.value, ctx.namespace(), how.dry_run.server()).await
            }
        };
        let value = match answer {
            Ok(value) => value,
            Err(failure @ crate::error::Failure::Local { .. }) => return Err(failure),
            Err(failure) => {
                let bad_input = failure.is_reason(timonier_proto::Reason::BadRequest)
                    || failure.is_reason(timonier_proto::Reason::Invalid);
                let typed = document.source == "the command line";
                let failure =
                    if bad_input && !typed { failure.at(document.place()) } else { failure };
                ctx.out.failure(&failure);
                failed = true;
                continue;
            }
        };
        let item = apply::item_of(document, value)?;
        if how.output.is_none() {
            ctx.out.line(format!("{} created{}", item.title(), how.dry_run.suffix()))?;
        }
        created.push(item);
    }
    if let Some(format) = &how.output {
        let single = created.len() == 1;
        objects::show(
            &ctx.out,
            &created,
            &Show { format: format.clone(), single, ..Default::default() },
        )?;
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

fn with_namespace(ctx: &Ctx, mut object: Value) -> Value {
    let namespaced = resolve::kind_of(&object).is_some_and(|kind| kind.info().namespaced);
    if namespaced && ctx.target.namespace_typed {
        object["metadata"]["namespace"] = ctx.namespace().into();
    }
    object
}

/// Creates one object and says so; `expose` uses it too.
pub async fn create_one(ctx: &Ctx, object: Value, how: &How) -> Outcome<Item> {
    let kind = resolve::kind_of(&object).ok_or_else(|| fail("the object has no kind"))?;
    let value = match how.dry_run.client() {
        true => with_namespace(ctx, object),
        false => ctx.client.create(&object, ctx.namespace(), how.dry_run.server()).await?,
    };
    Ok(Item { kind, value })
}

fn deployment(
    name: &str,
    images: &[String],
    replicas: u32,
    port: Option<u16>,
    command: &[String],
) -> Outcome<Value> {
    if images.len() > 1 && (port.is_some() || !command.is_empty()) {
        return bail("cannot specify multiple --image options together with --port or a command");
    }
    let mut containers = Vec::new();
    for image in images {
        let mut container = json!({"name": container_name(image), "image": image});
        if let Some(port) = port {
            container["ports"] = json!([{"containerPort": port}]);
        }
        if !command.is_empty() {
            container["command"] = json!(command);
        }
        containers.push(container);
    }
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}},
        },
    }))
}

fn disruption_budget(
    name: &str,
    selector: &str,
    min_available: Option<String>,
    max_unavailable: Option<String>,
) -> Outcome<Value> {
    let mut labels = Map::new();
    for part in selector.split(',') {
        let pair = part.split_once('=').map(|(key, value)| (key, value.trim_start_matches('=')));
        let Some((key, value)) = pair.filter(|(key, _)| !key.is_empty() && !key.ends_with('!'))
        else {
            return Err(fail(format!("--selector {selector:?} is not KEY=VALUE[,KEY=VALUE…]"))
                .hint("a manifest can say more: spec.selector.matchExpressions"));
        };
        labels.insert(key.trim().to_owned(), json!(value.trim()));
    }
    let number = |text: String| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n));
    let mut spec = json!({"selector": {"matchLabels": labels}});
    if let Some(text) = min_available {
        spec["minAvailable"] = number(text);
    }
    if let Some(text) = max_unavailable {
        spec["maxUnavailable"] = number(text);
    }
    Ok(json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": spec,
    }))
}

/// `registry:5000/team/my_web:v1` → `my-web`.
fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let base = last.split(['@', ':']).next().unwrap_or(last);
    base.to_ascii_lowercase().replace(['_', '.'], "-").trim_matches('-').to_owned()
}

fn config_map(name: &str, literals: &[String], files: &[String]) -> Outcome<Value> {
    let (mut data, mut binary) = (Map::new(), Map::new());
    let mut size = 0;
    for literal in literals {
        let (key, value) = literal
            .split_once('=')
            .ok_or_else(|| fail(format!("--from-literal {literal:?} is not KEY=VALUE")))?;
        size += value.len();
        add(&mut data, key, json!(value))?;
    }
    for typed in files {
        for (key, path) in keyed_files(typed)? {
            let bytes = std::fs::read(&path).map_err(|error| {
                fail(format!("read {path}: {}", crate::client::plain_io(&error)))
            })?;
            size += bytes.len();
            match String::from_utf8(bytes) {
                Ok(text) => add(&mut data, &key, json!(text))?,
                Err(error) => {
                    let encoded = k8s_openapi::ByteString(error.into_bytes());
                    let value = serde_json::to_value(encoded)
                        .map_err(|error| fail(format!("encode {path}: {error}")))?;
                    add(&mut binary, &key, value)?;
                }
            }
        }
    }
    if size > CONFIG_MAP_BYTES_MAX {
        return bail(format!(
            "config map {name:?} would hold {size} bytes, at most {CONFIG_MAP_BYTES_MAX} fit"
        ));
    }
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    if !data.is_empty() {
        object["data"] = data.into();
    }
    if !binary.is_empty() {
        object["binaryData"] = binary.into();
    }
    Ok(object)
}

fn add(map: &mut Map<String, Value>, key: &str, value: Value) -> Outcome {
    if key.is_empty() {
        return bail("a key is empty");
    }
    match map.insert(key.to_owned(), value) {
        None => Ok(()),
        Some(_) => bail(format!("cannot add key {key:?}, another key by that name already exists")),
    }
}

/// `file` under its own name, `key=file`, or the files of a folder.
fn keyed_files(typed: &str) -> Outcome<Vec<(String, String)>> {
    if let Some((key, path)) = typed.split_once('=') {
        return Ok(vec![(key.to_owned(), path.to_owned())]);
    }
    let path = Path::new(typed);
    let name = |path: &Path| {
        path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    };
    if !path.is_dir() {
        return Ok(vec![(name(path), typed.to_owned())]);
    }
    let entries = std::fs::read_dir(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(format!("read folder {typed}: {error}")))?;
    let mut files: Vec<(String, String)> = entries
        .iter()
        .map(std::fs::DirEntry::path)
        .filter(|p| p.is_file())
        .map(|p| (name(&p), p.display().to_string()))
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_after_their_image() {
        for (image, name) in [
            ("nginx", "nginx"),
            ("timonier/web:v1", "web"),
            ("registry:5000/team/My_web:v1", "my-web"),
            ("a@sha256:abc", "a"),
        ] {
            assert_eq!(container_name(image), name);
        }
    }

    #[test]
    fn budgets_take_numbers_and_percentages() {
        let budget = disruption_budget("b", "app=web,tier==x", Some("2".into()), None).unwrap();
        let spec =
            json!({"selector": {"matchLabels": {"app": "web", "tier": "x"}}, "minAvailable": 2});
        assert_eq!(budget["spec"], spec);
        let budget = disruption_budget("b", "app=web", None, Some("25%".into())).unwrap();
        assert_eq!(budget["spec"]["maxUnavailable"], json!("25%"));
        assert!(disruption_budget("b", "app!=web", None, Some("1".into())).is_err());
    }

    #[test]
    fn config_maps_take_texts_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.conf"), "x=1\n").unwrap();
        std::fs::write(path("b.bin"), [0xff, 0xfe]).unwrap();
        let folder_name = folder.path().display().to_string();
        let map = config_map("m", &["mode=fast=yes".into()], &[folder_name]).unwrap();
        assert_eq!(map["data"], json!({"mode": "fast=yes", "a.conf": "x=1\n"}));
        assert_eq!(map["binaryData"], json!({"b.bin": "//4="}));
        let twice = config_map("m", &["k=1".into()], &[format!("k={}", path("a.conf"))]);
        assert!(twice.unwrap_err().to_string().contains("already exists"));
    }
}
