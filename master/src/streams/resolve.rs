//! From what a person asks for to the node that has it, or a refusal that says what there is. Pure.

use k8s_openapi::api::core::v1::Pod;
use timonier_master_core::object::{node_of, uid_of};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::v1::StreamRequest;
use timonier_proto::v1::stream_request::Request;
use timonier_proto::{ApiError, DEFAULT_NAMESPACE, Kind, ObjectKey, Reason};

/// The node, and the request with the pod's uid and its container filled in.
pub fn pod_of(
    snapshot: &Snapshot,
    mut request: StreamRequest,
) -> Result<(String, StreamRequest), ApiError> {
    let node = match &mut request.request {
        Some(Request::Logs(logs)) => {
            let pod = find(snapshot, &mut logs.namespace, &logs.pod)?;
            logs.container = container(pod, &logs.container)?;
            logs.pod_uid = uid_of(&pod.metadata).to_owned();
            node(pod, &logs.pod)?
        }
        Some(Request::Exec(exec)) => {
            let pod = find(snapshot, &mut exec.namespace, &exec.pod)?;
            exec.container = container(pod, &exec.container)?;
            exec.pod_uid = uid_of(&pod.metadata).to_owned();
            if exec.command.is_empty() {
                let text = format!("exec in pod {}: no command is given", exec.pod);
                return Err(ApiError::new(Reason::BadRequest, text));
            }
            node(pod, &exec.pod)?
        }
        Some(Request::PortForward(forward)) => {
            let pod = find(snapshot, &mut forward.namespace, &forward.pod)?;
            forward.pod_uid = uid_of(&pod.metadata).to_owned();
            if forward.port == 0 || forward.port > u16::MAX.into() {
                let text = format!("forward to pod {}: {} is no port", forward.pod, forward.port);
                return Err(ApiError::new(Reason::BadRequest, text));
            }
            node(pod, &forward.pod)?
        }
        Some(Request::Image(_)) | None => {
            let text = "open a stream: the request must be for logs, exec or port-forward";
            return Err(ApiError::new(Reason::BadRequest, text));
        }
    };
    Ok((node, request))
}

fn find<'a>(
    snapshot: &'a Snapshot,
    namespace: &mut String,
    name: &str,
) -> Result<&'a Pod, ApiError> {
    if namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(namespace);
    }
    snapshot
        .get::<Pod>(namespace, name)
        .map(|pod| &**pod)
        .ok_or_else(|| ApiError::not_found(&ObjectKey::new(Kind::Pod, namespace.as_str(), name)))
}

fn node(pod: &Pod, name: &str) -> Result<String, ApiError> {
    node_of(pod).map(str::to_owned).ok_or_else(|| {
        let text = format!(
            "pod {name} is not scheduled to a node yet; hint: see `timonctl describe pod {name}`"
        );
        ApiError::new(Reason::BadRequest, text)
    })
}

/// The container asked for, or the only one there is.
fn container(pod: &Pod, asked: &str) -> Result<String, ApiError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else { return Ok(asked.to_owned()) };
    let main: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    let init = spec.init_containers.iter().flatten().map(|c| c.name.as_str());
    let all: Vec<&str> = init.chain(main.iter().copied()).collect();
    if asked.is_empty() {
        return match main.as_slice() {
            [only] => Ok((*only).to_owned()),
            _ => Err(ApiError::new(
                Reason::BadRequest,
                format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    all.join(" ")
                ),
            )),
        };
    }
    if all.contains(&asked) {
        return Ok(asked.to_owned());
    }
    let text = format!(
        "container {asked} is not valid for pod {name}; hint: it is one of [{}]",
        all.join(" ")
    );
    Err(ApiError::new(Reason::BadRequest, text))
}

#[cfg(test)]
mod tests {
    use timonier_proto::Kinded;
    use timonier_proto::v1::LogsRequest;

    use super::*;

    fn state(node: &str, containers: &[&str]) -> Snapshot {
        let containers: Vec<_> =
            containers.iter().map(|name| serde_json::json!({"name": name})).collect();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "x", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": node, "containers": containers},
        }))
        .unwrap();
        Snapshot::rebuild(1, [pod.into_object()], [])
    }

    fn logs(state: &Snapshot, pod: &str, container: &str) -> Result<String, String> {
        let logs =
            LogsRequest { pod: pod.into(), container: container.into(), ..Default::default() };
        let request = StreamRequest { request: Some(Request::Logs(logs)) };
        match pod_of(state, request).map_err(|error| error.message)? {
            (node, StreamRequest { request: Some(Request::Logs(l)) }) => {
                Ok(format!("{node} {} {}", l.container, l.pod_uid))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_finds_its_node_or_says_what_there_is() {
        let one = state("n1", &["a"]);
        assert_eq!(logs(&one, "x", ""), Ok("n1 a u".into()));
        assert_eq!(logs(&one, "y", ""), Err("pods \"y\" not found".into()));
        let two = state("n1", &["a", "b"]);
        assert_eq!(logs(&two, "x", "b"), Ok("n1 b u".into()));
        assert_eq!(
            logs(&two, "x", ""),
            Err("a container name must be specified for pod x, choose one of: [a b]".into())
        );
        let text = "container c is not valid for pod x; hint: it is one of [a b]";
        assert_eq!(logs(&two, "x", "c"), Err(text.into()));
        let text = "pod x is not scheduled to a node yet; hint: see `timonctl describe pod x`";
        assert_eq!(logs(&state("", &["a"]), "x", ""), Err(text.into()));
    }
}
