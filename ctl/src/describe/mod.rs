//! The pages of `describe`, laid out as kubectl's. Pure: the object, what belongs to it and the
//! time in, text out; [`Related::fetch`] is the one place that asks the master.

mod node;
mod pod;
mod template;
mod workload;

use std::fmt::Write;

use jiff::Timestamp;
use serde_json::Value;
use timonier_proto::Kind;
use timonier_proto::v1::NodeSample;

use crate::client::calls::Filter;
use crate::context::Ctx;
use crate::error::Outcome;
use crate::fields::Fields;
use crate::output::age::age;
use crate::output::{printers, tabs};
use crate::resolve::{Item, selector_of};

const PADDING: usize = 2;

/// What is shown beside the object itself.
#[derive(Debug, Default, Clone)]
pub struct Related {
    /// `None` where events were not asked for.
    pub events: Option<Vec<Value>>,
    /// Of a node: its pods. Of a replica set or deployment: its pods.
    pub pods: Vec<Value>,
    /// Of a deployment: its replica sets.
    pub replica_sets: Vec<Value>,
    /// Of a service: its endpoints.
    pub endpoints: Option<Value>,
    /// Of a node: measured use.
    pub usage: Option<NodeSample>,
}

impl Related {
    pub async fn fetch(ctx: &Ctx, item: &Item, events: bool) -> Outcome<Related> {
        let (object, client) = (&item.value, &ctx.client);
        let inside = Filter::namespace(object.namespace());
        let mut related = Related::default();
        match item.kind {
            Kind::Node => {
                let on_node = Filter::default().fields(format!("spec.nodeName={}", object.name()));
                related.pods = client.list(Kind::Pod, &on_node).await?;
                // Measured use is a gift: a node that sends none is still described.
                let frame = client.usage(&[object.name().to_owned()], false).await.ok();
                related.usage =
                    frame.and_then(|f| f.nodes.into_iter().find(|n| n.name == object.name()));
            }
            Kind::Deployment | Kind::ReplicaSet => {
                let labels = selector_of(item.kind, object)?;
                related.pods =
                    client.list(Kind::Pod, &inside.clone().labels(labels.clone())).await?;
                if item.kind == Kind::Deployment {
                    let sets =
                        client.list(Kind::ReplicaSet, &inside.clone().labels(labels)).await?;
                    related.replica_sets = sets
                        .into_iter()
                        .filter(|s| s.controller().text("uid") == object.uid())
                        .collect();
                } else {
                    related.pods.retain(|p| p.controller().text("uid") == object.uid());
                }
            }
            Kind::Service => {
                let key = ctx.key_in(Kind::Endpoints, object.namespace(), object.name());
                related.endpoints = client.get(&key).await.ok();
            }
            _ => {}
        }
        if events && item.kind != Kind::Event {
            related.events = Some(events_of(ctx, item).await?);
        }
        Ok(related)
    }
}

async fn events_of(ctx: &Ctx, item: &Item) -> Outcome<Vec<Value>> {
    let object = &item.value;
    let fields = format!(
        "involvedObject.name={},involvedObject.kind={}",
        object.name(),
        item.kind.info().name
    );
    let filter = Filter::namespace(object.namespace()).fields(fields);
    let mut events = ctx.client.list(Kind::Event, &filter).await?;
    // A node's events carry its name as uid in some places, so only pods' and workloads' uids count.
    let foreign = |event: &Value| {
        let uid = event.text("involvedObject.uid");
        item.kind.info().namespaced && !uid.is_empty() && uid != object.uid()
    };
    events.retain(|event| !foreign(event));
    events.sort_by_key(printers::event_time);
    Ok(events)
}

/// The page of one object.
pub fn page(item: &Item, related: &Related, now: Timestamp) -> String {
    let mut page = Page::new(now);
    let object = &item.value;
    match item.kind {
        Kind::Pod => pod::write(&mut page, object),
        Kind::Node => node::write(&mut page, object, related),
        Kind::Deployment => workload::deployment(&mut page, object, related),
        Kind::ReplicaSet => workload::replica_set(&mut page, object, related),
        Kind::Service => workload::service(&mut page, object, related),
        Kind::ConfigMap => workload::config_map(&mut page, object),
        Kind::Namespace => workload::namespace(&mut page, object),
        Kind::LatencyAutoscaler => workload::latency_autoscaler(&mut page, object),
        Kind::Secret => workload::secret(&mut page, object),
        Kind::PodDisruptionBudget => workload::disruption_budget(&mut page, object),
        _ => workload::plain(&mut page, object),
    }
    if let Some(events) = &related.events {
        write_events(&mut page, events);
    }
    page.finish()
}

/// The pod template of a workload, as `rollout history --revision` shows it.
pub fn template_page(object: &Value, now: Timestamp) -> String {
    let mut page = Page::new(now);
    workload::template(&mut page, object);
    page.finish()
}

/// A page under construction: tab-separated lines, laid out at the end.
pub(crate) struct Page {
    text: String,
    pub now: Timestamp,
}

impl Page {
    fn new(now: Timestamp) -> Self {
        Self { text: String::new(), now }
    }

    /// `Name:<tab>web`, indented by two blanks a level.
    pub fn field(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        let indent = "  ".repeat(level);
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{indent}{name}:\t{}", value.as_ref());
    }

    /// A field that is left out when there is nothing to say.
    pub fn field_if(&mut self, level: usize, name: &str, value: &str) {
        if !value.is_empty() {
            self.field(level, name, value);
        }
    }

    pub fn line(&mut self, level: usize, text: impl AsRef<str>) {
        let _ = writeln!(self.text, "{}{}", "  ".repeat(level), text.as_ref());
    }

    /// A field of several values, one a line, lined up under the first.
    pub fn many(&mut self, level: usize, name: &str, values: &[String]) {
        match values.split_first() {
            None => self.field(level, name, "<none>"),
            Some((first, rest)) => {
                self.field(level, name, first);
                for value in rest {
                    self.line(level, format!("\t{value}"));
                }
            }
        }
    }

    /// Labels or annotations.
    pub fn map(&mut self, level: usize, name: &str, pairs: &[(&str, &str)], between: &str) {
        let values: Vec<String> = pairs
            .iter()
            .filter(|(key, _)| *key != "kubectl.kubernetes.io/last-applied-configuration")
            .map(|(key, value)| format!("{key}{between}{value}"))
            .collect();
        self.many(level, name, &values);
    }

    pub fn head(&mut self, object: &Value, namespaced: bool) {
        self.field(0, "Name", object.name());
        if namespaced {
            self.field(0, "Namespace", object.namespace());
        }
    }

    pub fn labels(&mut self, object: &Value) {
        self.map(0, "Labels", &object.pairs("metadata.labels"), "=");
        self.map(0, "Annotations", &object.pairs("metadata.annotations"), ": ");
    }

    fn finish(self) -> String {
        tabs::layout(&self.text, 0, PADDING)
    }
}

/// A time as kubectl's pages write it: `Mon, 02 Jan 2006 15:04:05 +0000`.
pub(crate) fn long_time(time: Option<Timestamp>) -> String {
    match time {
        Some(time) => time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        None => "<unset>".into(),
    }
}

pub(crate) fn conditions(page: &mut Page, object: &Value, with_reason: bool) {
    let list = object.list("status.conditions");
    if list.is_empty() {
        return;
    }
    page.line(0, "Conditions:");
    let (names, lines) = if with_reason { ("\tReason", "\t------") } else { ("", "") };
    page.line(1, format!("Type\tStatus{names}"));
    page.line(1, format!("----\t------{lines}"));
    for condition in list {
        let reason =
            if with_reason { format!("\t{}", condition.text("reason")) } else { String::new() };
        page.line(1, format!("{}\t{}{reason}", condition.text("type"), condition.text("status")));
    }
}

fn write_events(page: &mut Page, events: &[Value]) {
    if events.is_empty() {
        page.field(0, "Events", "<none>");
        return;
    }
    page.line(0, "Events:");
    page.line(1, "Type\tReason\tAge\tFrom\tMessage");
    page.line(1, "----\t------\t----\t----\t-------");
    for event in events {
        let when = match printers::event_count(event) {
            1 => age(printers::event_time(event), page.now),
            _ => printers::event_age(event, page.now),
        };
        let cells = [
            event.text("type"),
            event.text("reason"),
            &when,
            &printers::event_source(event),
            &event.text("message").trim().replace('\n', " "),
        ];
        page.line(1, cells.join("\t"));
    }
}

#[cfg(test)]
mod tests;
