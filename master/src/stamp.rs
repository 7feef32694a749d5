//! The edge where clocks and randomness enter a write: what a pure decision leaves empty is filled
//! in here, before the operation is proposed, so that applying it needs neither.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use timonier_master_core::hash::name_suffix;
use timonier_master_core::op::Op;

/// Characters that a generated name gets after its prefix.
const SUFFIX_LENGTH: usize = 5;

/// Gives an object that is to be created its uid, its creation time (whole seconds) and, with
/// `generateName`, its name. What is set already stays, except the creation time, which is never
/// the caller's to choose. Other operations pass unchanged.
pub fn stamp(mut op: Op, now: Timestamp) -> Op {
    if let Op::Create(object) | Op::RecordEvent(object) = &mut op {
        let meta = object.meta_mut();
        if meta.uid.as_deref().unwrap_or_default().is_empty() {
            meta.uid = Some(uuid::Uuid::new_v4().to_string());
        }
        let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
        meta.creation_timestamp = Some(Time(whole));
        if meta.name.as_deref().unwrap_or_default().is_empty()
            && let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty())
        {
            meta.name = Some(format!("{prefix}{}", name_suffix(fastrand::u64(..), SUFFIX_LENGTH)));
        }
    }
    op
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use timonier_proto::Kinded;

    use super::*;

    #[test]
    fn an_object_gets_what_it_lacks() {
        let mut pod = Pod::default();
        pod.metadata.generate_name = Some("web-".to_owned());
        let now: Timestamp = "2026-11-21T10:00:00.7Z".parse().unwrap();
        let Op::Create(first) = stamp(Op::Create(pod.clone().into_object()), now) else {
            panic!("the operation changed its kind")
        };
        let Op::Create(second) = stamp(Op::Create(pod.into_object()), now) else {
            panic!("the operation changed its kind")
        };
        assert_ne!(first.uid(), second.uid());
        let name = first.meta().name.clone().unwrap();
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        let created = first.meta().creation_timestamp.clone().unwrap();
        assert_eq!(created.0.to_string(), "2026-11-21T10:00:00Z");
        // What is stamped stays what it is.
        assert_eq!(stamp(Op::Create(first.clone()), now), Op::Create(first));
    }
}
