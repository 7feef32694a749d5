//! `cluster-info`: the masters and what the store holds.

use std::time::Duration;

use serde_json::json;

use super::certificate::time;
use crate::context::Ctx;
use crate::error::Outcome;
use crate::output::age;
use crate::output::objects::Format;
use crate::output::{tabs, yaml};

const EXAMPLES: &str = "\
Examples:
  timonctl cluster-info            masters, nodes connected, size of the store
  timonctl cluster-info -o json";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// yaml or json
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: Format,
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    let info = ctx.client.cluster_info().await?;
    let masters: Vec<_> = info
        .masters
        .iter()
        .map(|m| {
            json!({"id": m.id, "name": m.name, "address": m.address, "leader": m.leader,
                "voter": m.voter})
        })
        .collect();
    let value = json!({
        "clusterId": info.cluster_id, "version": info.version, "masters": masters,
        "revision": info.revision, "objects": info.objects, "logBytes": info.log_bytes,
        "fsyncs": info.fsyncs, "agentsConnected": info.agents_connected,
        "certificatesLate": info.certificates_late,
        "caNotAfter": time(info.ca_not_after_unix_s),
        "certificateNotAfter": time(info.certificate_not_after_unix_s),
        "level": info.level, "levelKnown": info.level_known,
        "podRange": info.pod_range, "serviceRange": info.service_range, "uptimeMs": info.uptime_ms,
    });
    match args.output {
        Format::Json => return ctx.out.bytes(yaml::json(&value)?.as_bytes()),
        Format::Yaml => return ctx.out.bytes(yaml::yaml(&value)?.as_bytes()),
        _ => {}
    }
    let mut text = String::new();
    for master in &info.masters {
        let role = match (master.leader, master.voter) {
            (true, _) => " (leader)",
            (false, true) => "",
            (false, false) => " (catching up)",
        };
        let name = if master.name.is_empty() { master.id.to_string() } else { master.name.clone() };
        text.push_str(&format!("Master {name}:\t{}{role}\n", master.address));
    }
    let uptime = Duration::from_millis(info.uptime_ms).as_secs();
    for (name, value) in [
        ("Cluster:", info.cluster_id.clone()),
        ("Version:", info.version.clone()),
        ("Level:", level(info.level, info.level_known)),
        ("Up for:", age::human(uptime as i64)),
        ("Nodes connected:", info.agents_connected.to_string()),
        ("Objects:", info.objects.to_string()),
        ("Revision:", info.revision.to_string()),
        (
            "Log:",
            format!(
                "{:.1} MiB, {} fsyncs",
                info.log_bytes as f64 / f64::from(1 << 20),
                info.fsyncs
            ),
        ),
        ("Pod range:", info.pod_range.clone()),
        ("Service range:", info.service_range.clone()),
        ("CA valid until:", time(info.ca_not_after_unix_s)),
        ("Master's certificate until:", time(info.certificate_not_after_unix_s)),
    ] {
        text.push_str(&format!("{name}\t{value}\n"));
    }
    ctx.out.bytes(tabs::layout(&text, 0, 2).as_bytes())?;
    if info.certificates_late > 0 {
        ctx.out.note(format!(
            "warning: {} certificates expire soon and were not renewed; hint: timonctl certificate status",
            info.certificates_late
        ));
    }
    Ok(())
}

/// 0 is what masters answer that know no levels: they go by the first.
fn level(level: u32, known: u32) -> String {
    let level = level.max(1);
    if level < known {
        format!("{level} ({known} once all masters are upgraded)")
    } else {
        level.to_string()
    }
}
