//! The table of methods: what a caller of each must be or may do. A test holds it against the
//! services as they are compiled, so that no method is forgotten.

use timonier_master_core::access::{Attributes, OWN_GROUP};

/// What a method asks of its caller.
#[derive(Debug)]
pub enum Need {
    /// It depends on the objects that the request names: the door asks.
    Objects,
    /// Always the same permission.
    Fixed(fn() -> Attributes),
    /// The same; the door writes the audit log, as only it knows the objects and what came of it.
    Told(fn() -> Attributes),
    /// To be a node; the method sees to it that it speaks for itself alone.
    Nodes,
    /// To be one of the cluster's masters.
    Masters,
    /// Nothing: the method checks what the request itself carries, and writes the audit log.
    Anyone,
}

impl Need {
    /// What is written to the audit log when a call of it passes the guard: of fixed permissions
    /// those that change something. What depends on the request is written by the door.
    pub(super) fn audited(&self) -> Option<Attributes> {
        match self {
            Need::Fixed(asked) => {
                let changes = |asked: &Attributes| {
                    !matches!(&*asked.verb, "get" | "list" | "watch")
                        && !asked.resource.starts_with("selfsubject")
                };
                Some(asked()).filter(changes)
            }
            _ => None,
        }
    }
}

/// Each method's path and need.
pub const METHODS: &[(&str, Need)] = &[
    ("/timonier.v1.Control/Get", Need::Objects),
    ("/timonier.v1.Control/List", Need::Objects),
    ("/timonier.v1.Control/Watch", Need::Objects),
    ("/timonier.v1.Control/Create", Need::Objects),
    ("/timonier.v1.Control/Update", Need::Objects),
    ("/timonier.v1.Control/Patch", Need::Objects),
    ("/timonier.v1.Control/Apply", Need::Objects),
    ("/timonier.v1.Control/Delete", Need::Objects),
    ("/timonier.v1.Control/Commit", Need::Objects),
    ("/timonier.v1.Control/Evict", Need::Objects),
    (
        "/timonier.v1.Control/ClusterInfo",
        Need::Fixed(|| Attributes::at_path("get", "/cluster-info")),
    ),
    (
        "/timonier.v1.Control/EncryptionStatus",
        Need::Fixed(|| Attributes::virtually("get", OWN_GROUP, "encryption")),
    ),
    (
        "/timonier.v1.Control/RotateEncryption",
        Need::Fixed(|| Attributes::virtually("update", OWN_GROUP, "encryption")),
    ),
    (
        "/timonier.v1.Control/ListMasters",
        Need::Fixed(|| Attributes::virtually("list", OWN_GROUP, "masters")),
    ),
    (
        "/timonier.v1.Control/ChangeMasters",
        Need::Told(|| Attributes::virtually("update", OWN_GROUP, "masters")),
    ),
    // It holds every secret, so it is written down.
    (
        "/timonier.v1.Control/Backup",
        Need::Fixed(|| Attributes::virtually("create", OWN_GROUP, "backups")),
    ),
    ("/timonier.v1.Control/Monitor", Need::Objects),
    ("/timonier.v1.Control/Beats", Need::Objects),
    ("/timonier.v1.Control/Open", Need::Objects),
    (
        "/timonier.v1.Control/LoadImage",
        Need::Fixed(|| Attributes::virtually("create", OWN_GROUP, "images")),
    ),
    (
        "/timonier.v1.Control/CanI",
        Need::Fixed(|| review("authorization.k8s.io", "selfsubjectaccessreviews")),
    ),
    (
        "/timonier.v1.Control/ListRules",
        Need::Fixed(|| review("authorization.k8s.io", "selfsubjectrulesreviews")),
    ),
    (
        "/timonier.v1.Control/WhoAmI",
        Need::Fixed(|| review("authentication.k8s.io", "selfsubjectreviews")),
    ),
    ("/timonier.v1.Control/CreateToken", Need::Objects),
    ("/timonier.v1.Join/Join", Need::Anyone),
    ("/timonier.v1.Join/Renew", Need::Anyone),
    ("/timonier.v1.Join/Follow", Need::Anyone),
    (
        "/timonier.v1.Trust/Status",
        Need::Fixed(|| Attributes::virtually("list", OWN_GROUP, "certificates")),
    ),
    (
        "/timonier.v1.Trust/RenewAuthority",
        Need::Fixed(|| Attributes::virtually("update", OWN_GROUP, "certificates")),
    ),
    (
        "/timonier.v1.Trust/Issue",
        Need::Told(|| Attributes::virtually("create", OWN_GROUP, "certificates")),
    ),
    (
        "/timonier.v1.Trust/Revoke",
        Need::Told(|| Attributes::virtually("delete", OWN_GROUP, "certificates")),
    ),
    ("/timonier.v1.Agent/Session", Need::Nodes),
    ("/timonier.v1.Agent/Stream", Need::Nodes),
    ("/timonier.v1.Raft/Append", Need::Masters),
    ("/timonier.v1.Raft/Vote", Need::Masters),
    ("/timonier.v1.Raft/InstallSnapshot", Need::Masters),
    ("/timonier.v1.Raft/Propose", Need::Masters),
    ("/timonier.v1.Raft/ReadIndex", Need::Masters),
    ("/timonier.v1.Raft/Handover", Need::Masters),
    ("/timonier.v1.Raft/ChangeMember", Need::Masters),
    ("/timonier.v1.Raft/PeerStatus", Need::Masters),
    // It has been to Join with its token.
    ("/timonier.v1.Raft/JoinMaster", Need::Masters),
    ("/timonier.v1.Relay/Follow", Need::Masters),
];

/// A question about oneself: nothing is created, whatever Kubernetes' verb is.
fn review(group: &'static str, resource: &'static str) -> Attributes {
    Attributes::virtually("create", group, resource)
}

/// The need of a path; `None` for what is no method.
pub fn need(path: &str) -> Option<&'static Need> {
    METHODS.iter().find(|(known, _)| *known == path).map(|(_, need)| need)
}
