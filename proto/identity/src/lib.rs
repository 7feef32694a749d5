//! Who is who: the cluster's CA, certificates, join tokens, and the TLS of every connection.
//!
//! The one place that knows keys and certificates, and the one way ([`dial`]) by which any program
//! opens a channel to a master. It has no product logic: who may do what is decided elsewhere, and
//! when to renew is for those who own an [`Identity`].
//!
//! TLS 1.3 only, through ring. Servers are verified against the cluster's CA and the fixed name
//! [`MASTER_NAME`], so that masters may change their addresses.

mod authority;
mod channel;
mod files;
mod identity;
mod peer;
mod serve;
mod token;
mod verify;

use std::time::{SystemTime, UNIX_EPOCH};

pub use authority::{Authority, Lifetimes, PARTS_PREFIX_PREVIOUS, Subject};
pub use channel::{
    Connecting, DialError, DialOptions, Line, dial, dial_lazy, explain, simulate_network,
};
pub use files::{read_text, write_private};
pub use identity::{Credentials, Identity, KeyRequest, Trust};
pub use peer::PeerCertificate;
pub use serve::{Accepted, Bounds, Connection, incoming, incoming_within, network};
pub use token::{JoinRole, JoinToken, TokenError};
pub use verify::ca_hash;

/// The name in every master's certificate, by which it is verified whatever its address is.
pub const MASTER_NAME: &str = "timonier-master";
/// Group of the agents' certificates.
pub const GROUP_NODES: &str = "system:nodes";
/// Group of the masters' certificates.
pub const GROUP_MASTERS: &str = "timonier:masters";
/// Group of those who may do everything.
pub const GROUP_ADMINS: &str = "system:masters";
/// Name of the first administrator.
pub const ADMIN_NAME: &str = "admin";
/// Everybody who showed who they are is in this group.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Name of whoever showed nothing.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group of whoever showed nothing.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// Before a node's name in its certificate.
pub const NODE_PREFIX: &str = "system:node:";
/// Before a master's id in its certificate.
pub const MASTER_PREFIX: &str = "system:master:";

/// Why keys, certificates or a TLS configuration could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("make a key: {0}")]
    Key(String),
    #[error("sign a certificate for {name}: {why}")]
    Sign { name: String, why: String },
    #[error("read the certificate request: {0}")]
    Request(String),
    #[error("read {what}: {why}")]
    Read { what: String, why: String },
    #[error("configure TLS: {0}")]
    Configure(String),
}

/// Makes ring the process's TLS provider. Each binary calls it first; calling it again is no harm.
///
/// Without it, rustls panics as soon as a dependency brings a second provider.
pub fn install_provider() {
    // It fails only where one is installed already, which is then ours or as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A master and somebody else of a cluster that is made for the occasion: for tests.
///
/// # Panics
/// When keys cannot be made.
pub fn throwaway(other: &Subject) -> (Identity, Identity) {
    let now = unix_now();
    let lifetimes = Lifetimes::default();
    let authority = Authority::create(now, &lifetimes).expect("keys can be made");
    let identity = |subject: &Subject| {
        let credentials = authority.issue(subject, now, lifetimes.machine).expect("it can sign");
        Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem()))
            .expect("it is whole")
    };
    (identity(&Subject::master("1", &[])), identity(other))
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
