//! A pod's row: the STATUS word is derived just as kubectl derives it.

use jiff::Timestamp;
use serde_json::Value;

use super::or_none;
use crate::fields::Fields;
use crate::output::age::age;

/// What the row says about a pod's containers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// `Running`, `CrashLoopBackOff`, `Init:0/1`, …
    pub status: String,
    pub ready: usize,
    pub containers: usize,
    pub restarts: i64,
    pub last_restart: Option<Timestamp>,
}

impl Summary {
    pub fn of(pod: &Value) -> Summary {
        let reason = match pod.text("status.reason") {
            "" => pod.text("status.phase"),
            reason => reason,
        };
        let mut summary = Summary {
            status: reason.to_owned(),
            containers: pod.list("spec.containers").len(),
            ..Default::default()
        };
        if !summary.init(pod) || pod.condition("Initialized").text("status") == "True" {
            summary.main(pod);
        }
        if pod.has("metadata.deletionTimestamp") {
            let lost = pod.text("status.reason") == "NodeLost";
            let over = matches!(pod.text("status.phase"), "Succeeded" | "Failed");
            if lost {
                summary.status = "Unknown".into();
            } else if !over {
                summary.status = "Terminating".into();
            }
        }
        if summary.status.is_empty() {
            summary.status = "Unknown".into();
        }
        summary
    }

    /// True while init containers are not through.
    fn init(&mut self, pod: &Value) -> bool {
        let total = pod.list("spec.initContainers").len();
        for (index, container) in pod.list("status.initContainerStatuses").iter().enumerate() {
            self.count_restarts(container);
            let terminated = container.at("state.terminated");
            if !terminated.is_null() && terminated.int("exitCode") == 0 {
                continue;
            }
            let waiting = container.text("state.waiting.reason");
            self.status = if !terminated.is_null() {
                match terminated.text("reason") {
                    "" if terminated.int("signal") != 0 => {
                        format!("Init:Signal:{}", terminated.int("signal"))
                    }
                    "" => format!("Init:ExitCode:{}", terminated.int("exitCode")),
                    reason => format!("Init:{reason}"),
                }
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{total}")
            };
            return true;
        }
        false
    }

    fn main(&mut self, pod: &Value) {
        let mut has_running = false;
        (self.restarts, self.last_restart) = (0, None);
        for container in pod.list("status.containerStatuses").iter().rev() {
            self.count_restarts(container);
            let waiting = container.text("state.waiting.reason");
            let terminated = container.at("state.terminated");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if !terminated.is_null() {
                self.status = match terminated.text("reason") {
                    "" if terminated.int("signal") != 0 => {
                        format!("Signal:{}", terminated.int("signal"))
                    }
                    "" => format!("ExitCode:{}", terminated.int("exitCode")),
                    reason => reason.to_owned(),
                };
            } else if container.flag("ready") && container.has("state.running") {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && has_running {
            let ready = pod.condition("Ready").text("status") == "True";
            self.status = if ready { "Running" } else { "NotReady" }.into();
        }
    }

    fn count_restarts(&mut self, container: &Value) {
        self.restarts += container.int("restartCount");
        let finished = container.time("lastState.terminated.finishedAt");
        self.last_restart = self.last_restart.max(finished);
    }

    /// `3 (10s ago)`.
    pub fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(_) if self.restarts > 0 => {
                format!("{} ({} ago)", self.restarts, age(self.last_restart, now))
            }
            _ => self.restarts.to_string(),
        }
    }
}

pub(super) fn cells(pod: &Value, now: Timestamp, age: String) -> Vec<String> {
    let summary = Summary::of(pod);
    let gates = pod.list("spec.readinessGates");
    let passed = gates
        .iter()
        .filter(|gate| pod.condition(gate.text("conditionType")).text("status") == "True");
    let gates_text = match gates.len() {
        0 => "<none>".to_owned(),
        total => format!("{}/{total}", passed.count()),
    };
    vec![
        pod.name().into(),
        format!("{}/{}", summary.ready, summary.containers),
        summary.status.clone(),
        summary.restarts_text(now),
        age,
        or_none(pod.text("status.podIP")),
        or_none(pod.text("spec.nodeName")),
        or_none(pod.text("status.nominatedNodeName")),
        gates_text,
    ]
}
