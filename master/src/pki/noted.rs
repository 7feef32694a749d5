//! What a node's certificate says, noted on its Node object: a master that has just started knows of
//! those that end soon, also of nodes that do not come back.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use timonier_identity::{PeerCertificate, Subject};
use timonier_master_core::object::name_of;
use timonier_master_core::op::{Op, Rejection, Txn};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::Kinded;

use crate::stamp::stamp;
use crate::store::{CommitError, Store};

const ANNOTATION: &str = "timonier.io/certificate";
/// How often a note that races with other writes to the node is tried.
const TRIES_MAX: usize = 5;

/// Times are seconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    serial: String,
    issuer: String,
    not_before: i64,
    not_after: i64,
}

/// Puts the note among the node's annotations.
pub fn note(annotations: &mut BTreeMap<String, String>, certificate: &PeerCertificate) {
    let PeerCertificate { serial, issuer, not_before, not_after, .. } = certificate.clone();
    let note = Note { serial, issuer, not_before, not_after };
    let text = serde_json::to_string(&note).expect("texts and numbers are plain data");
    annotations.insert(ANNOTATION.to_owned(), text);
}

/// The certificate that is noted; `None` where there is no note that can be read.
pub fn noted(node: &Node) -> Option<PeerCertificate> {
    let text = node.metadata.annotations.as_ref()?.get(ANNOTATION)?;
    let Note { serial, issuer, not_before, not_after } = serde_json::from_str(text).ok()?;
    let Subject { name, groups, .. } = Subject::node(name_of(&node.metadata));
    Some(PeerCertificate { name, groups, serial, issuer, not_before, not_after })
}

/// Notes the certificate that a node was given over a session that goes on. What goes wrong is made
/// good when the agent opens its next one.
pub async fn store_note(store: &Store, name: &str, certificate: &PeerCertificate) {
    for _ in 0..TRIES_MAX {
        let Some(op) = op(&store.snapshot(), name, certificate) else { return };
        match store.commit(Txn::of(vec![op])).await {
            Err(CommitError::Rejected(Rejection::Conflict { .. })) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(node = name, %error, "cannot note until when its certificate is");
                return;
            }
        }
    }
}

fn op(snapshot: &Snapshot, name: &str, certificate: &PeerCertificate) -> Option<Op> {
    let mut node = Node::clone(snapshot.get::<Node>("", name)?);
    note(node.metadata.annotations.get_or_insert_default(), certificate);
    Some(stamp(Op::Replace(node.into_object()), Timestamp::now()))
}
