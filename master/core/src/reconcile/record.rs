//! Events as the control loops write them: what happened, to which object, how often.
//!
//! An event's name is made of what it says, so saying it again counts it again instead of adding
//! one (see [`Op::RecordEvent`]).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use timonier_proto::{DEFAULT_NAMESPACE, Kinded};

use crate::hash::fnv64;
use crate::object::{after_seconds, name_of, namespace_of, stored_time, uid_of};
use crate::op::Op;
use crate::snapshot::Snapshot;

/// Longest message that is kept, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether people should worry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// Who says it: the loop's name, as Kubernetes calls its controllers.
#[derive(Debug, Clone, Copy)]
pub struct Recorder {
    pub component: &'static str,
    pub now: Timestamp,
}

impl Recorder {
    pub fn normal<T: Kinded>(&self, object: &T, reason: &str, message: String) -> Op {
        self.event(object, Severity::Normal, reason, message)
    }

    pub fn warning<T: Kinded>(&self, object: &T, reason: &str, message: String) -> Op {
        self.event(object, Severity::Warning, reason, message)
    }

    /// A warning that is not said again within `quiet_seconds`: for what holds for a while and is
    /// seen at every look.
    pub fn warning_once<T: Kinded>(
        &self,
        snapshot: &Snapshot,
        object: &T,
        reason: &str,
        message: String,
        quiet_seconds: i64,
    ) -> Option<Op> {
        let op = self.warning(object, reason, message);
        let key = op.key();
        let stored = snapshot.get::<Event>(&key.namespace, &key.name);
        let last = stored.and_then(|event| event.last_timestamp.clone());
        let is_recent = last.is_some_and(|t| after_seconds(t.0, quiet_seconds) > self.now);
        (!is_recent).then_some(op)
    }

    pub fn event<T: Kinded>(
        &self,
        object: &T,
        severity: Severity,
        reason: &str,
        mut message: String,
    ) -> Op {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        let (meta, info) = (object.meta(), T::KIND.info());
        let (name, uid) = (name_of(meta), uid_of(meta));
        let namespace = match namespace_of(meta) {
            "" => DEFAULT_NAMESPACE,
            own => own,
        };
        let hash = fnv64(&[
            info.name.as_bytes(),
            uid.as_bytes(),
            reason.as_bytes(),
            message.as_bytes(),
            self.component.as_bytes(),
        ]);
        let at = Some(stored_time(self.now));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{hash:016x}")),
                namespace: Some(namespace.to_owned()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                api_version: Some(info.api_version()),
                kind: Some(info.name.to_owned()),
                name: Some(name.to_owned()),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                ..Default::default()
            },
            type_: Some(format!("{severity:?}")),
            reason: Some(reason.to_owned()),
            message: Some(message),
            source: Some(EventSource {
                component: Some(self.component.to_owned()),
                ..Default::default()
            }),
            reporting_component: Some(self.component.to_owned()),
            first_timestamp: at.clone(),
            last_timestamp: at,
            count: Some(1),
            ..Default::default()
        };
        Op::RecordEvent(event.into_object())
    }
}
