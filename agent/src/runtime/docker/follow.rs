//! Streams that go on: events and logs.

use std::collections::HashMap;
use std::path::Path;

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptionsBuilder, LogsOptionsBuilder};
use futures::StreamExt;

use super::convert::{failed, output};
use crate::runtime::{
    ContainerLabels, Items, LogOptions, Output, RuntimeError, RuntimeEvent, RuntimeEventKind, label,
};

const ACTIONS: [&str; 4] = ["start", "die", "oom", "destroy"];

/// A stream out of one that is known only after connecting.
fn connected<T, S>(socket: &Path, open: impl FnOnce(&Docker) -> S + Send + 'static) -> Items<T>
where
    T: Send + 'static,
    S: futures::Stream<Item = Result<T, RuntimeError>> + Send + 'static,
{
    let engine = super::Docker::new(socket);
    let start = async move {
        match engine.client().await {
            Ok(client) => open(&client).left_stream(),
            Err(error) => futures::stream::once(async move { Err(error) }).right_stream(),
        }
    };
    Box::pin(futures::stream::once(start).flatten())
}

pub(super) fn events(socket: &Path, node: &str) -> Items<RuntimeEvent> {
    let node = node.to_owned();
    // Those that come before the connection stands are told too.
    let now = jiff::Timestamp::now();
    let since = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
    connected(socket, move |docker| {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{}={node}", label::NODE)]),
            ("event", ACTIONS.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new().since(&since).filters(&filters).build();
        docker.events(Some(options)).filter_map(|event| async move {
            match event {
                Ok(event) => read(event).map(Ok),
                Err(error) => Some(Err(failed("follow docker's events", error))),
            }
        })
    })
}

fn read(event: EventMessage) -> Option<RuntimeEvent> {
    let actor = event.actor?;
    let attributes = actor.attributes.unwrap_or_default();
    let get = |name: &str| attributes.get(name).map(String::as_str);
    let labels = ContainerLabels::from_lookup(get)?;
    let kind = match event.action.as_deref()? {
        "start" => RuntimeEventKind::Started,
        "die" => RuntimeEventKind::Died {
            exit_code: get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(0),
        },
        "oom" => RuntimeEventKind::OutOfMemory,
        "destroy" => RuntimeEventKind::Destroyed,
        _ => return None,
    };
    Some(RuntimeEvent { container_id: actor.id?, pod_uid: labels.pod_uid, kind })
}

pub(super) fn logs(socket: &Path, id: &str, options: LogOptions) -> Items<Output> {
    let id = id.to_owned();
    connected(socket, move |docker| {
        let mut query = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(options.follow)
            .timestamps(options.timestamps);
        if let Some(lines) = options.tail_lines {
            query = query.tail(&lines.to_string());
        }
        if let Some(since) = options.since {
            query = query.since(i32::try_from(since.as_second()).unwrap_or(i32::MAX));
        }
        let what = format!("read the logs of container {id}");
        docker.logs(&id, Some(query.build())).map(move |item| match item {
            Ok(item) => Ok(output(item)),
            Err(error) => Err(failed(&what, error)),
        })
    })
}
