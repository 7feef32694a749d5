//! The contract: what the programs say to each other, and the objects they speak of.
//!
//! Does no I/O. The wire types are generated from `timonier/v1/*.proto`; the objects are
//! Kubernetes' own types (`k8s-openapi`) behind the [`kinds`] table, plus the few kinds that are
//! ours ([`latency`]).

/// Generated from `timonier/v1/*.proto`.
#[allow(clippy::all, missing_docs, unused_qualifications)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/timonier.v1.rs"));
}

/// The path of every method of every service, as compiled: `/timonier.v1.Control/Get`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
/// The paths of the methods with streams: whether the request is one, and the answer.
pub const STREAMED: &[(&str, bool, bool)] = include!(concat!(env!("OUT_DIR"), "/streamed.rs"));

pub mod backup;
pub mod compiled;
pub mod decode;
pub mod kinds;
pub mod latency;
pub mod names;
pub mod quantity;
pub mod secret;
pub mod selector;
pub mod status;
pub mod unique;

pub use k8s_openapi;
pub use kinds::{Kind, KindInfo, Kinded, Object, ObjectKey};
pub use status::{ApiError, Reason};

/// Port on which a master serves gRPC.
pub const DEFAULT_MASTER_PORT: u16 = 7443;
/// Range out of which every node gets a /24 for its pods.
pub const DEFAULT_CLUSTER_RANGE: &str = "10.244.0.0/16";
/// Range out of which every service gets its virtual address.
pub const DEFAULT_SERVICE_RANGE: &str = "10.96.0.0/16";
/// First and last port that a NodePort service may use.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Largest gRPC message that any side accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Request metadata: a write's id. Sent again with the same id, it is answered and not done again.
pub const REQUEST_ID_HEADER: &str = "timonier-request-id";
/// Longest id of a write, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Masters remember an id for so long; whoever sends a write again stops well before.
pub const REQUEST_ID_KEPT: std::time::Duration = std::time::Duration::from_secs(120);
/// Request metadata: the id of the master that passes a request on. It is not passed on again.
pub const PASSED_ON_HEADER: &str = "timonier-passed-on-by";
/// Why a node is not ready whose host goes down in order: its pods leave at once.
pub const NODE_SHUTDOWN: &str = "NodeShutdown";
/// Response metadata where there are several masters: the addresses of all, with commas between.
pub const MASTERS_HEADER: &str = "timonier-masters";
