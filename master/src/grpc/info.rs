//! ClusterInfo: who the masters are and how this one is doing.

use timonier_master_core::level::Level;
use timonier_proto::v1::{ClusterInfoReply, MasterInfo};

use super::Inner;

impl Inner {
    pub(super) fn cluster_info(&self) -> ClusterInfoReply {
        let status = self.store.status();
        let snapshot = self.store.snapshot();
        let expiry = self.pki.expiry(&snapshot);
        ClusterInfoReply {
            cluster_id: self.store.cluster_id().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            masters: self.all_masters(),
            revision: snapshot.revision,
            objects: snapshot.len() as u64,
            log_bytes: status.log_bytes,
            fsyncs: status.fsyncs,
            agents_connected: u32::try_from(self.hub.connected()).unwrap_or(u32::MAX),
            pod_range: self.settings.cluster_range.clone(),
            service_range: self.settings.service_range.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            level: snapshot.level.into(),
            level_known: Level::NEWEST.into(),
            ca_not_after_unix_s: expiry.authority,
            certificate_not_after_unix_s: expiry.own,
            certificates_late: u32::try_from(expiry.late).unwrap_or(u32::MAX),
        }
    }

    fn all_masters(&self) -> Vec<MasterInfo> {
        let members = self.masters.members().into_iter();
        members
            .map(|member| MasterInfo {
                id: member.id,
                address: member.address,
                leader: member.leader,
                name: member.name,
                voter: member.voter,
            })
            .collect()
    }
}
