//! Which container is meant, or why there is none. Pure. The texts are those that kubectl's users
//! know.

use super::peer::Ended;
use crate::pods::{ContainerView, PodView};

/// The id of the container whose logs are asked for.
pub(super) fn for_logs(pod: &PodView, name: &str, previous: bool) -> Result<String, Ended> {
    let container = find(pod, name)?;
    if previous {
        // While it waits to be started again, the last that ended is the latest attempt.
        let waits = !container.running && container.waiting_reason.is_some();
        let latest = container.id.as_ref().filter(|_| waits);
        return latest.or(container.previous_id.as_ref()).cloned().ok_or_else(|| {
            let text = format!(
                "previous terminated container \"{}\" in pod \"{}\" not found",
                container.name, pod.name
            );
            Ended::Failed(text)
        });
    }
    container.id.clone().ok_or_else(|| {
        let reason = container.waiting_reason.as_deref().unwrap_or("PodInitializing");
        let text = format!(
            "container \"{}\" in pod \"{}\" is waiting to start: {reason}",
            container.name, pod.name
        );
        Ended::Failed(text)
    })
}

/// The id of a container that runs, to run a command in.
pub(super) fn for_exec(pod: &PodView, name: &str) -> Result<String, Ended> {
    let container = find(pod, name)?;
    container.id.clone().filter(|_| container.running).ok_or_else(|| {
        let reason = container.waiting_reason.as_deref();
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let text = format!(
            "container \"{}\" in pod \"{}\" is not running{reason}; \
             hint: see `timonctl describe pod {}`",
            container.name, pod.name, pod.name
        );
        Ended::Failed(text)
    })
}

fn find<'a>(pod: &'a PodView, name: &str) -> Result<&'a ContainerView, Ended> {
    let names = |init: bool| {
        let of_kind = pod.containers.iter().filter(move |container| container.init == init);
        of_kind.map(|container| container.name.as_str()).collect::<Vec<_>>()
    };
    if name.is_empty() {
        let mut main = pod.containers.iter().filter(|container| !container.init);
        if let (Some(only), None) = (main.next(), main.next()) {
            return Ok(only);
        }
        let text = format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name,
            names(false).join(" ")
        );
        let init = names(true);
        let or = match init.as_slice() {
            [] => String::new(),
            init => format!(" or one of the init containers: [{}]", init.join(" ")),
        };
        return Err(Ended::Failed(text + &or));
    }
    pod.containers.iter().find(|container| container.name == name).ok_or_else(|| {
        let all = [names(true), names(false)].concat().join(" ");
        let text = format!(
            "container {name} is not valid for pod {}; hint: it is one of [{all}]",
            pod.name
        );
        Ended::Failed(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, id: Option<&str>, running: bool) -> ContainerView {
        let id = id.map(str::to_owned);
        ContainerView { name: name.into(), id, running, ..Default::default() }
    }

    fn pod(containers: Vec<ContainerView>) -> PodView {
        PodView { name: "p".into(), containers, ..Default::default() }
    }

    fn said(result: Result<String, Ended>) -> String {
        match result {
            Ok(id) => id,
            Err(Ended::Failed(text)) => text,
            Err(Ended::Gone) => panic!("nobody has gone"),
        }
    }

    #[test]
    fn a_container_is_found_or_the_choice_is_told() {
        let setup = ContainerView { init: true, ..container("setup", Some("s"), false) };
        let one = pod(vec![setup.clone(), container("a", Some("a1"), true)]);
        assert_eq!(said(for_logs(&one, "", false)), "a1");
        assert_eq!(said(for_logs(&one, "setup", false)), "s");
        let text = "container c is not valid for pod p; hint: it is one of [setup a]";
        assert_eq!(said(for_logs(&one, "c", false)), text);
        let two = pod(vec![setup, container("a", None, false), container("b", None, false)]);
        assert_eq!(
            said(for_exec(&two, "")),
            "a container name must be specified for pod p, choose one of: [a b] \
             or one of the init containers: [setup]"
        );
    }

    #[test]
    fn previous_is_the_attempt_that_ended_last() {
        let mut c = container("c", Some("new"), true);
        let text = "previous terminated container \"c\" in pod \"p\" not found";
        assert_eq!(said(for_logs(&pod(vec![c.clone()]), "c", true)), text);
        c.previous_id = Some("old".into());
        assert_eq!(said(for_logs(&pod(vec![c.clone()]), "c", true)), "old");
        c.running = false;
        c.waiting_reason = Some("CrashLoopBackOff".into());
        assert_eq!(said(for_logs(&pod(vec![c.clone()]), "c", true)), "new");
        assert_eq!(said(for_logs(&pod(vec![c]), "c", false)), "new");
    }

    #[test]
    fn what_does_not_run_says_why() {
        let mut c = container("c", None, false);
        c.waiting_reason = Some("ImagePullBackOff".into());
        let text = "container \"c\" in pod \"p\" is waiting to start: ImagePullBackOff";
        assert_eq!(said(for_logs(&pod(vec![c.clone()]), "c", false)), text);
        let text = "container \"c\" in pod \"p\" is not running: ImagePullBackOff; \
                    hint: see `timonctl describe pod p`";
        assert_eq!(said(for_exec(&pod(vec![c]), "c")), text);
    }
}
