//! The doors of the trust: Join for whoever has a token or a certificate, Trust for whom the guard
//! lets through.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use k8s_openapi::api::core::v1::Node;
use timonier_identity::{IdentityError, JoinRole, JoinToken, PeerCertificate, Subject};
use timonier_master_core::object::node_ready_status;
use timonier_proto::names;
use timonier_proto::v1::join_server::{Join, JoinServer};
use timonier_proto::v1::trust_server::{Trust, TrustServer};
use timonier_proto::v1::{
    CertificateState, CertificateStatusReply, CertificateStatusRequest, FollowRequest,
    IssueRequest, JoinReply, JoinRequest, RenewAuthorityReply, RenewAuthorityRequest, RenewRequest,
    TrustUpdate,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Pki, tokens};
use crate::caller::{Caller, Via};
use crate::store::Store;

/// A certificate request or a token is a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Names in certificates are no longer.
const NAME_BYTES_MAX: usize = 256;

/// The doors. Clones are the same.
#[derive(Clone)]
pub struct TrustDoor {
    pki: Pki,
    store: Store,
    shutdown: CancellationToken,
}

impl Pki {
    /// The doors of this master's trust; the followers' streams end with `shutdown`.
    pub fn door(&self, store: Store, shutdown: CancellationToken) -> TrustDoor {
        TrustDoor { pki: self.clone(), store, shutdown }
    }
}

fn refused(error: IdentityError) -> Status {
    match error {
        IdentityError::Request(_) | IdentityError::Sign { .. } => {
            Status::invalid_argument(error.to_string())
        }
        _ => Status::internal(error.to_string()),
    }
}

/// Who shows a certificate of his own.
fn certified<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = Caller::of(request);
    match caller.via {
        Via::Certificate { .. } => Ok(caller),
        _ => Err(Status::unauthenticated(
            "only who shows a certificate may ask for this; hint: a first one takes a join token, or an administrator's `timonctl certificate issue`",
        )),
    }
}

impl TrustDoor {
    pub fn join_service(&self) -> JoinServer<Self> {
        JoinServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub fn trust_service(&self) -> TrustServer<Self> {
        TrustServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn signed(&self, request_pem: &str, subject: &Subject) -> Result<JoinReply, Status> {
        let validity = self.pki.lifetimes().of(subject);
        self.signed_for(request_pem, subject, validity)
    }

    fn signed_for(
        &self,
        request_pem: &str,
        subject: &Subject,
        validity: Duration,
    ) -> Result<JoinReply, Status> {
        let (chain_pem, bundle_pem) =
            self.pki.sign(request_pem, subject, validity).map_err(refused)?;
        Ok(JoinReply { chain_pem, bundle_pem, ..Default::default() })
    }

    /// A node that is Ready keeps its name: a token is no way to become somebody else.
    fn node_may_join(&self, name: &str) -> Result<(), Status> {
        names::dns_subdomain(name)
            .map_err(|why| Status::invalid_argument(format!("join as node {name:?}: {why}")))?;
        let snapshot = self.store.snapshot();
        let node = snapshot.get::<Node>("", name);
        if node.is_some_and(|node| node_ready_status(node) == "True") {
            return Err(Status::already_exists(format!(
                "join as node {name}: a node of this name is Ready and has its certificate; hint: give each agent its own --node-name, or wait a few seconds if this one replaces it"
            )));
        }
        Ok(())
    }

    fn update(&self) -> Result<TrustUpdate, Status> {
        let authority = self.pki.authority();
        let issuer = authority.certificate().map_err(refused)?.name;
        Ok(TrustUpdate { bundle_pem: authority.bundle_pem(), issuer })
    }
}

#[tonic::async_trait]
impl Join for TrustDoor {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let JoinRequest { token, name, request_pem } = request.into_inner();
        let token: JoinToken =
            token.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
        tokens::check_fresh(&self.store, &token, token.role).await?;
        let reply = match token.role {
            JoinRole::Node => {
                self.node_may_join(&name)?;
                tracing::info!(node = name, token = token.id, "a node joins");
                self.signed(&request_pem, &Subject::node(&name))?
            }
            JoinRole::Master => {
                tracing::info!(token = token.id, "a master joins");
                let authority = self.pki.authority();
                JoinReply {
                    bundle_pem: authority.bundle_pem(),
                    authority: authority.to_parts().into_iter().collect(),
                    ..Default::default()
                }
            }
        };
        Ok(Response::new(reply))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let caller = certified(&request)?;
        let groups: Vec<&str> = caller
            .groups
            .iter()
            .map(String::as_str)
            .filter(|group| *group != timonier_identity::GROUP_AUTHENTICATED)
            .collect();
        if caller.is_master() {
            return Err(Status::permission_denied("masters sign their own certificates"));
        }
        let subject = Subject::person(&caller.name, &groups);
        self.signed(&request.into_inner().request_pem, &subject).map(Response::new)
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<TrustUpdate, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        certified(&request)?;
        let mut changes = self.pki.inner.changes.subscribe();
        changes.mark_changed();
        let state = (self.clone(), changes);
        let updates = stream::unfold(state, |(door, mut changes)| async move {
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = door.shutdown.cancelled() => return None,
            }
            Some((door.update(), (door, changes)))
        });
        Ok(Response::new(Box::pin(updates)))
    }
}

#[tonic::async_trait]
impl Trust for TrustDoor {
    async fn status(
        &self,
        _: Request<CertificateStatusRequest>,
    ) -> Result<Response<CertificateStatusReply>, Status> {
        let authority = self.pki.authority();
        let mut certificates = vec![state("CA", &authority.certificate().map_err(refused)?)];
        for (replaced, until) in authority.previous().map_err(refused)? {
            let mut replaced = state("ReplacedCA", &replaced);
            replaced.not_after_unix_s = until;
            certificates.push(replaced);
        }
        certificates.extend(self.pki.identity().own().map(|own| state("Master", &own)));
        let own = self.pki.identity().own().map(|own| own.name).unwrap_or_default();
        let mut known: Vec<CertificateState> = self
            .pki
            .known()
            .values()
            // A master that joins has no number yet.
            .filter(|one| one.name != own && one.master() != Some("0"))
            .map(|one| state(kind(one), one))
            .collect();
        known.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        certificates.extend(known);
        Ok(Response::new(CertificateStatusReply { certificates }))
    }

    async fn renew_authority(
        &self,
        _: Request<RenewAuthorityRequest>,
    ) -> Result<Response<RenewAuthorityReply>, Status> {
        let renewed = self.pki.renew_authority(&self.store).await;
        renewed.map_err(|error| Status::unavailable(error.to_string()))?;
        let authority = self.pki.authority();
        let previous = authority.previous().map_err(refused)?;
        Ok(Response::new(RenewAuthorityReply {
            issuer: authority.certificate().map_err(refused)?.name,
            previous_trusted_until_unix_s: previous.first().map_or(0, |(_, until)| *until),
        }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<JoinReply>, Status> {
        let IssueRequest { name, groups, request_pem, ttl_s } = request.into_inner();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let wrong = |why: &str| Status::invalid_argument(format!("certify {name:?}: {why}"));
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(wrong("a name has 1 to 256 bytes"));
        }
        let machine = [timonier_identity::GROUP_NODES, timonier_identity::GROUP_MASTERS];
        if groups.iter().any(|group| machine.contains(group)) || name.starts_with("system:") {
            return Err(wrong(
                "nodes and masters get theirs with a join token; names that begin with system: are theirs",
            ));
        }
        let longest = self.pki.lifetimes().person;
        let validity = if ttl_s == 0 { longest } else { Duration::from_secs(ttl_s).min(longest) };
        let subject = Subject::person(&name, &groups);
        self.signed_for(&request_pem, &subject, validity).map(Response::new)
    }
}

fn kind(certificate: &PeerCertificate) -> &'static str {
    match (certificate.master(), certificate.node()) {
        (Some(_), _) => "Master",
        (_, Some(_)) => "Node",
        _ => "Person",
    }
}

fn state(kind: &str, certificate: &PeerCertificate) -> CertificateState {
    CertificateState {
        kind: kind.to_owned(),
        name: certificate.name.clone(),
        issuer: certificate.issuer.clone(),
        not_before_unix_s: certificate.not_before,
        not_after_unix_s: certificate.not_after,
        serial: certificate.serial.clone(),
    }
}
