//! What agents that are simulated say to a master.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use timonier_proto::v1::agent_message::Message as Up;
use timonier_proto::v1::{AgentMessage, Heartbeat, Hello, HostUsage, NodeCapacity};

/// Time between two heartbeats.
pub const BEAT: Duration = Duration::from_secs(1);

pub fn message(up: Up) -> AgentMessage {
    AgentMessage { message: Some(up) }
}

pub fn node_name(index: usize) -> String {
    format!("sim-{index}")
}

pub fn hello(index: usize) -> Hello {
    Hello {
        node_name: node_name(index),
        boot_id: format!("boot-{index}"),
        agent_id: format!("agent-{index}"),
        version: env!("CARGO_PKG_VERSION").into(),
        address: format!("10.0.{}.{}", index / 250, index % 250 + 1),
        capacity: Some(NodeCapacity {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            pods: 110,
            ..Default::default()
        }),
        runtime: "simulated".into(),
        ..Default::default()
    }
}

/// A heartbeat whose disk figure carries the time it was made, so that a reader can tell how old
/// what it sees is.
pub fn beat(sequence: u64, index: usize) -> AgentMessage {
    let now = unix_ms();
    message(Up::Heartbeat(Heartbeat {
        sequence,
        sent_unix_ms: now,
        host: Some(HostUsage {
            cpu_percent: (index % 100) as f32 + fastrand::f32(),
            memory_percent: 40.0 + fastrand::f32(),
            memory_used_bytes: 3 << 30,
            memory_total_bytes: 8 << 30,
            load1: 0.5,
            load5: 0.4,
            load15: 0.3,
            disk_used_bytes: now as u64,
            disk_total_bytes: 1 << 40,
            net_rx_bytes_per_s: 120_000,
            net_tx_bytes_per_s: 80_000,
            cores: 4,
        }),
        ..Default::default()
    }))
}

pub fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(now.as_millis()).expect("the time fits")
}
