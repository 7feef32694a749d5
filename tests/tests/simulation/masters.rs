//! A master's process on its host: the real store, the agents' sessions over gRPC, relays to the other
//! masters and the control loops. Its doors for people are the store itself here, and connections
//! have no TLS: whose they are is known by the host they come from.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use timonier_identity::{Identity, PeerCertificate, Subject};
use timonier_master::caller::{CallerLayer, NoTokens};
use timonier_master::driver;
use timonier_master::incoming::Gathering;
use timonier_master::masters::Masters;
use timonier_master::peers::{Lines, Peers};
use timonier_master::relay::Relays;
use timonier_master::server;
use timonier_master::sessions::{SessionSettings, Sessions};
use timonier_master::store::Store;
use timonier_master::telemetry::Hub;
use timonier_master_core::world::Settings;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::lines::Line;
use crate::network::Network;
use crate::os::HostId;
use crate::transport;
use crate::workload::Door;

/// A node not heard of for so long is not ready; its pods are replaced after as long again.
const GRACE: Duration = Duration::from_secs(2);
/// Pods that must be unique end so long after the last lease.
const FENCE: Duration = Duration::from_secs(3);
const HEARTBEAT_MS: u32 = 500;

/// A master's place in the world.
#[derive(Clone)]
pub struct MasterHost {
    pub network: Network,
    pub host: HostId,
    /// By host, the stores of the masters that run.
    pub doors: Vec<Door>,
    /// Nobody looks at it, but there must be one.
    pub identity: Identity,
}

impl MasterHost {
    /// Starts all that stands on the store; it ends with the host.
    pub fn serve(self, store: Store) {
        let (hub, stop) = (Hub::new(), CancellationToken::new());
        let lines = Lines::new();
        lines.show(self.identity.clone());
        let masters = Masters::of(Peers::new(store.clone(), lines), transport::address(self.host));
        let sessions = Sessions::start(
            store.clone(),
            hub.clone(),
            masters.clone(),
            session_settings(),
            stop.clone(),
        );
        let relays = Relays::start(hub.clone(), masters, stop.clone());
        tokio::spawn(driver::run(store, hub, settings(), stop));
        let accepted = self.network.listen(self.host);
        let incoming = ReceiverStream::new(accepted)
            .map(move |line| Ok::<_, std::io::Error>(Gathering::new(self.known(line))));
        let server = server::builder()
            .layer(CallerLayer::new(Arc::new(NoTokens)))
            .add_service(sessions.service())
            .add_service(relays.service());
        tokio::spawn(server.serve_with_incoming(incoming));
    }

    fn known(&self, line: Line) -> Line {
        let Some(peer) = line.peer() else { return line };
        let subject = match self.doors.get(peer) {
            Some(door) => {
                let Some(store) = door.store() else { return line };
                Subject::master(&store.id().to_string(), &[])
            }
            None => Subject::node(&node_name(peer)),
        };
        line.showing(PeerCertificate {
            name: subject.name,
            groups: subject.groups,
            serial: "1".to_owned(),
            issuer: "simulation".to_owned(),
            not_before: 0,
            not_after: i64::MAX,
        })
    }
}

/// Of the agent on that host.
pub fn node_name(host: HostId) -> String {
    format!("node-{host}")
}

fn session_settings() -> SessionSettings {
    SessionSettings {
        heartbeat_ms: HEARTBEAT_MS,
        silence_max: GRACE,
        fence_after_ms: FENCE.as_millis() as u32,
        ..SessionSettings::default()
    }
}

fn settings() -> Settings {
    Settings {
        cluster_range: timonier_proto::DEFAULT_CLUSTER_RANGE.to_owned(),
        service_range: timonier_proto::DEFAULT_SERVICE_RANGE.to_owned(),
        node_grace_ms: GRACE.as_millis() as i64,
        eviction_after_ms: GRACE.as_millis() as i64,
        fence_after_ms: FENCE.as_millis() as i64,
    }
}
