//! `apply`: create or merge what manifests describe.

use timonier_proto::Kind;
use timonier_proto::v1::apply_reply;

use crate::context::Ctx;
use crate::error::{Failure, Outcome, fail};
use crate::fields::Fields;
use crate::manifest::{self, Document};
use crate::output::objects::{self, Format, Show};
use crate::resolve::{self, Item};

const EXAMPLES: &str = "\
Examples:
  timonctl apply -f web.yaml                     one file, of one or several documents
  timonctl apply -f deploy/                      all .yaml, .yml and .json files of a folder
  timonctl apply -R -f deploy/                   and of the folders below it
  cat web.yaml | timonctl apply -f -             standard input
  timonctl apply -f web.yaml --dry-run=server    have the master check it, change nothing

What a manifest does not mention stays as it is, unless an earlier apply had set it: that is removed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// File or folder, or - for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<String>,
    /// Look into folders below too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    #[command(flatten)]
    pub dry_run: DryRun,
    /// yaml, json, name or jsonpath=TEMPLATE instead of messages
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

/// `--dry-run`, as kubectl has it.
#[derive(Debug, Clone, clap::Args)]
pub struct DryRun {
    /// Change nothing: "client" sends nothing, "server" has the master check it
    #[arg(
        long,
        value_name = "MODE",
        value_parser = ["none", "client", "server"],
        default_value = "none",
        hide_default_value = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "client"
    )]
    dry_run: String,
}

impl DryRun {
    pub fn client(&self) -> bool {
        self.dry_run == "client"
    }
    pub fn server(&self) -> bool {
        self.dry_run == "server"
    }
    /// What messages end in.
    pub fn suffix(&self) -> &'static str {
        match self.dry_run.as_str() {
            "client" => " (dry run)",
            "server" => " (server dry run)",
            _ => "",
        }
    }
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let documents = manifest::read(&args.files, args.recursive)?;
    let mut applied = Vec::new();
    let mut failed = false;
    for document in &documents {
        match apply(&args, ctx, document).await {
            Ok(item) => applied.push(item),
            Err(failure @ (Failure::Local { .. } | Failure::OutputClosed)) => return Err(failure),
            Err(failure) => {
                ctx.out.failure(&failure);
                failed = true;
            }
        }
    }
    if let Some(format) = &args.output {
        let single = applied.len() == 1;
        objects::show(
            &ctx.out,
            &applied,
            &Show { format: format.clone(), single, ..Default::default() },
        )?;
    }
    if failed { Err(crate::told(1)) } else { Ok(()) }
}

async fn apply(args: &Args, ctx: &Ctx, document: &Document) -> Outcome<Item> {
    check_namespace(ctx, document)?;
    let (result, value) = if args.dry_run.client() {
        (apply_reply::Result::Configured, document.value.clone())
    } else {
        let reply = ctx.client.apply(&document.value, ctx.namespace(), args.dry_run.server()).await;
        reply.map_err(|failure| failure.at(document.place()))?
    };
    let item = item_of(document, value)?;
    if args.output.is_none() {
        let done = match result {
            apply_reply::Result::Created => "created",
            apply_reply::Result::Unchanged => "unchanged",
            apply_reply::Result::Configured | apply_reply::Result::Unspecified => "configured",
        };
        ctx.out.line(format!("{} {done}{}", item.title(), args.dry_run.suffix()))?;
    }
    Ok(item)
}

/// The object a master answered with, with its kind.
pub fn item_of(document: &Document, value: serde_json::Value) -> Outcome<Item> {
    let kind = resolve::kind_of(&value).or_else(|| resolve::kind_of(&document.value));
    let kind = kind.ok_or_else(|| {
        let (version, kind) = (document.value.text("apiVersion"), document.value.text("kind"));
        fail(format!("{}: no matches for kind {kind:?} in version {version:?}", document.place()))
            .hint("timonctl api-resources lists the kinds")
    })?;
    Ok(Item { kind, value })
}

/// Refuses an object of another namespace than the one typed.
pub fn check_namespace(ctx: &Ctx, document: &Document) -> Outcome {
    let own = document.value.namespace();
    let kind = resolve::kind_of(&document.value);
    let namespaced = kind.is_none_or(|kind: Kind| kind.info().namespaced);
    if ctx.target.namespace_typed && namespaced && !own.is_empty() && own != ctx.namespace() {
        return Err(fail(format!(
            "{}: the namespace from the provided object {own:?} does not match the namespace {:?}",
            document.place(),
            ctx.namespace()
        ))
        .hint(format!("pass '--namespace={own}' to perform this operation")));
    }
    Ok(())
}
