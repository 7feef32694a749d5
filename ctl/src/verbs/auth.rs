//! `auth`: what one may do, and who one is.

use serde_json::{Value, json};
use timonier_proto::Kind;
use timonier_proto::v1::CanIRequest;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::output::objects::Format;
use crate::output::table::Table;
use crate::output::yaml;

const EXAMPLES: &str = "\
Examples:
  timonctl auth can-i create pods                    yes or no, and the exit code 0 or 1
  timonctl auth can-i get pods/web --subresource log
  timonctl auth can-i list secrets -A                in all namespaces
  timonctl auth can-i --list -n team                 everything that one may do there
  timonctl auth can-i delete pods --as vera          what somebody else may do
  timonctl auth whoami                               who the master takes one for";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Whether one may do something
    #[command(name = "can-i")]
    CanI(CanI),
    /// Who the master takes one for
    #[command(name = "whoami")]
    WhoAmI {
        /// yaml or json
        #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
        output: Format,
    },
}

#[derive(Debug, clap::Args)]
pub struct CanI {
    /// get, list, watch, create, update, patch, delete, or *
    #[arg(required_unless_present = "list")]
    pub verb: Option<String>,
    /// pods, pods/NAME, deployments.apps, *, or a path that begins with /
    #[arg(required_unless_present = "list", value_name = "RESOURCE")]
    pub resource: Option<String>,
    /// Part of the object: log, exec, scale
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub subresource: String,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Everything that one may do in the namespace
    #[arg(long, conflicts_with_all = ["verb", "resource"])]
    pub list: bool,
    /// Say nothing, only exit
    #[arg(short, long)]
    pub quiet: bool,
    /// No header line of the list
    #[arg(long)]
    pub no_headers: bool,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.what {
        What::CanI(args) if args.list => list(&args, ctx).await,
        What::CanI(args) => can_i(&args, ctx).await,
        What::WhoAmI { output } => who_am_i(&output, ctx).await,
    }
}

async fn can_i(args: &CanI, ctx: &Ctx) -> Outcome {
    let (Some(verb), Some(resource)) = (&args.verb, &args.resource) else {
        return Err(fail("a verb and a resource are needed").hint("or --list for all of them"));
    };
    let namespace = if args.all_namespaces { "" } else { ctx.namespace() };
    let asked = question(verb, resource, &args.subresource, namespace)?;
    let is_known = asked.path.is_empty() && asked.namespace.is_empty() && !args.all_namespaces;
    if is_known && asked.resource != "*" && !args.quiet {
        ctx.out.note(format!("Warning: resource '{}' is not namespace scoped", asked.resource));
    }
    let reply = ctx.client.can_i(&asked).await?;
    if !args.quiet {
        ctx.out.line(if reply.allowed { "yes" } else { "no" })?;
    }
    if reply.allowed { Ok(()) } else { Err(crate::told(1)) }
}

/// What is asked, in the words of roles.
fn question(
    verb: &str,
    resource: &str,
    subresource: &str,
    namespace: &str,
) -> Outcome<CanIRequest> {
    let verb = verb.to_owned();
    if resource.starts_with('/') {
        return Ok(CanIRequest { verb, path: resource.to_owned(), ..Default::default() });
    }
    let (typed, name) = resource.split_once('/').unwrap_or((resource, ""));
    let (group, resource, namespaced) = named(typed);
    if !subresource.is_empty() && resource == "*" {
        return bail("--subresource needs a resource to be a part of");
    }
    Ok(CanIRequest {
        verb,
        group,
        resource,
        subresource: subresource.to_owned(),
        namespace: if namespaced { namespace.to_owned() } else { String::new() },
        name: name.to_owned(),
        path: String::new(),
    })
}

/// Group and plural of what was typed. What is no kind of this cluster is taken as it is: roles may
/// speak of any resource.
pub fn named(typed: &str) -> (String, String, bool) {
    if typed == "*" {
        return ("*".to_owned(), "*".to_owned(), true);
    }
    if let Some(kind) = Kind::by_typed(typed) {
        let info = kind.info();
        return (info.group.to_owned(), info.plural.to_owned(), info.namespaced);
    }
    let (resource, group) = typed.split_once('.').unwrap_or((typed, ""));
    (group.to_owned(), resource.to_owned(), true)
}

async fn list(args: &CanI, ctx: &Ctx) -> Outcome {
    let namespace = if args.all_namespaces { "" } else { ctx.namespace() };
    let rules = ctx.client.rules(namespace).await?;
    let headers = ["Resources", "Non-Resource URLs", "Resource Names", "Verbs"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    let mut rows: Vec<[String; 4]> = rules.iter().flat_map(rows_of).collect();
    rows.sort();
    rows.reverse();
    for row in rows {
        table.row(row.to_vec());
    }
    let lines = table.take_lines(!args.no_headers, |_, cell| cell);
    lines.iter().try_for_each(|line| ctx.out.line(line))
}

/// A row a resource, as kubectl prints them.
fn rows_of(rule: &Value) -> Vec<[String; 4]> {
    let words = |field: &str| -> Vec<&str> {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let show = |list: &[&str]| format!("[{}]", list.join(" "));
    let verbs = show(&words("verbs"));
    let urls = words("nonResourceURLs");
    if !urls.is_empty() {
        return vec![[String::new(), show(&urls), "[]".into(), verbs]];
    }
    let (groups, names) = (words("apiGroups"), show(&words("resourceNames")));
    let mut rows = Vec::new();
    for resource in words("resources") {
        for group in &groups {
            let full = match *group {
                "" => resource.to_owned(),
                group => match resource.split_once('/') {
                    Some((resource, sub)) => format!("{resource}.{group}/{sub}"),
                    None => format!("{resource}.{group}"),
                },
            };
            rows.push([full, "[]".into(), names.clone(), verbs.clone()]);
        }
    }
    rows
}

async fn who_am_i(output: &Format, ctx: &Ctx) -> Outcome {
    let me = ctx.client.who_am_i().await?;
    let mut user = json!({"username": me.name, "groups": me.groups});
    if !me.uid.is_empty() {
        user["uid"] = me.uid.as_str().into();
    }
    let value = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview",
        "status": {"userInfo": user}});
    match output {
        Format::Json => ctx.out.bytes(yaml::json(&value)?.as_bytes()),
        Format::Yaml => ctx.out.bytes(yaml::yaml(&value)?.as_bytes()),
        _ => {
            let mut table = Table::new(vec!["ATTRIBUTE".into(), "VALUE".into()]);
            table.row(vec!["Username".into(), me.name.clone()]);
            if !me.uid.is_empty() {
                table.row(vec!["UID".into(), me.uid.clone()]);
            }
            table.row(vec!["Groups".into(), format!("[{}]", me.groups.join(" "))]);
            table.row(vec!["Recognised by".into(), me.via.clone()]);
            let lines = table.take_lines(true, |_, cell| cell);
            lines.iter().try_for_each(|line| ctx.out.line(line))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_asked_in_the_words_of_roles() {
        let ask = |resource: &str, sub: &str| {
            let q = question("get", resource, sub, "team").unwrap();
            format!(
                "{}|{}|{}|{}|{}|{}",
                q.group, q.resource, q.subresource, q.namespace, q.name, q.path
            )
        };
        for (typed, sub, expected) in [
            ("po", "", "|pods||team||"),
            ("pod/web", "log", "|pods|log|team|web|"),
            ("deploy", "scale", "apps|deployments|scale|team||"),
            ("nodes", "", "|nodes||||"),
            ("*", "", "*|*||team||"),
            ("gizmos.example.com", "", "example.com|gizmos||team||"),
            ("/version", "", "|||||/version"),
        ] {
            assert_eq!(ask(typed, sub), expected, "{typed}");
        }
    }
}
