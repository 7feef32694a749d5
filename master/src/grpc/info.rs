//! ClusterInfo: who the masters are and how this one is doing.

use timonier_proto::v1::{ClusterInfoReply, MasterInfo};

use super::Inner;
use crate::store::StoreStatus;

impl Inner {
    pub(super) fn cluster_info(&self) -> ClusterInfoReply {
        let status = self.store.status();
        let snapshot = self.store.snapshot();
        ClusterInfoReply {
            cluster_id: self.store.cluster_id().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            masters: self.masters(&status),
            revision: snapshot.revision,
            objects: snapshot.len() as u64,
            log_bytes: status.log_bytes,
            fsyncs: status.fsyncs,
            agents_connected: u32::try_from(self.hub.connected()).unwrap_or(u32::MAX),
            pod_range: self.settings.cluster_range.clone(),
            service_range: self.settings.service_range.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn masters(&self, status: &StoreStatus) -> Vec<MasterInfo> {
        let members = self.store.members().into_iter().map(|member| {
            let address = if member.id == status.id && member.address.is_empty() {
                self.address.clone()
            } else {
                member.address
            };
            MasterInfo { id: member.id, address, leader: member.leader }
        });
        members.collect()
    }
}
