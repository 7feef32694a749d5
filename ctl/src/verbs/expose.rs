//! `expose`: a service for a workload's pods.

use serde_json::{Map, Value, json};
use timonier_proto::Kind;

use crate::context::Ctx;
use crate::error::{Outcome, bail, fail};
use crate::fields::Fields;
use crate::output::objects::{self, Show};
use crate::resolve::{self, Target};
use crate::verbs::create::{self, How};

const EXAMPLES: &str = "\
Examples:
  timonctl expose deploy/web --port 80 --target-port 8080         a cluster address
  timonctl expose deploy/web --port 80 --type NodePort --name lb  and a port on each node";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// KIND/NAME or KIND NAME of a deployment, replica set, pod or service
    #[arg(value_name = "OBJECT", required = true, num_args = 1..=2)]
    pub words: Vec<String>,
    /// Port of the service; default: the containers' own
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Port or port name of the pods; default: --port
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<String>,
    /// Port on each node, 30000 to 32767
    #[arg(long, value_name = "PORT")]
    pub node_port: Option<u16>,
    /// ClusterIP or NodePort
    #[arg(long = "type", value_name = "TYPE", default_value = "ClusterIP",
          value_parser = ["ClusterIP", "NodePort", "LoadBalancer"])]
    pub kind: String,
    /// Name of the service; default: the workload's
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// TCP or UDP
    #[arg(long, default_value = "TCP", value_parser = ["TCP", "UDP"])]
    pub protocol: String,
    /// Choose the pods by these labels instead of the workload's
    #[arg(long, value_name = "LABELS")]
    pub selector: Option<String>,
    #[command(flatten)]
    pub how: How,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let targets = resolve::targets(&args.words)?;
    let [Target::Named(kind, name)] = targets.as_slice() else {
        return Err(fail("one object must be named").hint("for example deploy/web"));
    };
    let object = ctx.client.get(&ctx.key(*kind, name)).await?;
    let selector = match &args.selector {
        Some(text) => labels(text)?,
        None => selector(*kind, &object)?,
    };
    let ports = ports(&args, *kind, &object)?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": args.name.as_deref().unwrap_or(name), "labels": object.at("metadata.labels")},
        "spec": {"type": args.kind, "selector": selector, "ports": ports},
    });
    let item = create::create_one(ctx, service, &args.how).await?;
    match &args.how.output {
        Some(format) => {
            let show = Show { format: format.clone(), single: true, ..Default::default() };
            objects::show(&ctx.out, &[item], &show)
        }
        None => ctx.out.line(format!("{} exposed{}", item.title(), args.how.dry_run.suffix())),
    }
}

fn labels(text: &str) -> Outcome<Value> {
    let pairs = text.split(',').map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| fail(format!("--selector {pair:?} is not KEY=VALUE")))?;
        Ok((key.to_owned(), json!(value)))
    });
    Ok(Value::Object(pairs.collect::<Outcome<Map<_, _>>>()?))
}

fn selector(kind: Kind, object: &Value) -> Outcome<Value> {
    let found = match kind {
        Kind::Pod => object.at("metadata.labels"),
        Kind::Service => object.at("spec.selector"),
        Kind::Deployment | Kind::ReplicaSet => {
            if !object.list("spec.selector.matchExpressions").is_empty() {
                return Err(
                    fail("a service cannot select by expressions").hint("--selector KEY=VALUE")
                );
            }
            object.at("spec.selector.matchLabels")
        }
        _ => return bail(format!("cannot expose a {}", kind.info().singular)),
    };
    match found.as_object() {
        Some(map) if !map.is_empty() => Ok(found.clone()),
        _ => Err(fail(format!(
            "{} {:?} has no labels to select by",
            kind.info().singular,
            object.name()
        ))
        .hint("--selector KEY=VALUE")),
    }
}

fn ports(args: &Args, kind: Kind, object: &Value) -> Outcome<Vec<Value>> {
    let target = args.target_port.as_ref().map(|text| match text.parse::<u16>() {
        Ok(number) => json!(number),
        Err(_) => json!(text),
    });
    let numbers: Vec<u16> = match args.port {
        Some(port) => vec![port],
        None => {
            let containers = match kind {
                Kind::Pod => object.list("spec.containers"),
                _ => object.list("spec.template.spec.containers"),
            };
            let all = containers.iter().flat_map(|c| c.list("ports"));
            all.filter_map(|p| u16::try_from(p.int("containerPort")).ok()).collect()
        }
    };
    if numbers.is_empty() {
        return bail("couldn't find port via --port flag or introspection");
    }
    let several = numbers.len() > 1;
    let ports = numbers.iter().enumerate().map(|(index, number)| {
        let mut port = json!({"port": number, "protocol": args.protocol,
            "targetPort": target.clone().unwrap_or(json!(number))});
        if several {
            port["name"] = json!(format!("port-{}", index + 1));
        }
        if let Some(node_port) = args.node_port {
            port["nodePort"] = json!(node_port);
        }
        port
    });
    Ok(ports.collect())
}
