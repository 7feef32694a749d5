//! The doors of the trust: Join for whoever has a token or a certificate, Trust for whom the guard
//! lets through.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use k8s_openapi::api::core::v1::Node;
use timonier_identity::{IdentityError, JoinRole, JoinToken, PeerCertificate, Subject, unix_now};
use timonier_master_core::access::{Attributes, OWN_GROUP};
use timonier_master_core::object::node_ready_status;
use timonier_proto::names;
use timonier_proto::v1::join_server::{Join, JoinServer};
use timonier_proto::v1::trust_server::{Trust, TrustServer};
use timonier_proto::v1::{
    CertificateState, CertificateStatusReply, CertificateStatusRequest, FollowRequest,
    IssueRequest, JoinReply, JoinRequest, RenewAuthorityReply, RenewAuthorityRequest, RenewRequest,
    RevokeReply, RevokeRequest, TrustUpdate,
};
use timonier_proto::{ApiError, Kind, Reason};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::{Pki, PkiError, leaf_of, noted, revoked, tokens};
use crate::caller::Caller;
use crate::guard::{Audit, Entrant};
use crate::store::Store;

/// A certificate request or a token is a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Names in certificates are no longer.
const NAME_BYTES_MAX: usize = 256;
/// In the audit log.
const CERTIFICATES: &str = "certificates";

/// The doors. Clones are the same.
#[derive(Clone)]
pub struct TrustDoor {
    pki: Pki,
    store: Store,
    audit: Audit,
    shutdown: CancellationToken,
}

impl Pki {
    /// The doors of this master's trust; the followers' streams end with `shutdown`.
    pub fn door(&self, store: Store, audit: Audit, shutdown: CancellationToken) -> TrustDoor {
        TrustDoor { pki: self.clone(), store, audit, shutdown }
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

/// The certificate that the caller shows himself.
fn certified<T>(request: &Request<T>) -> Result<Arc<PeerCertificate>, Status> {
    Caller::of(request).certificate().cloned().ok_or_else(|| {
        Status::unauthenticated(
            "only who shows a certificate may ask for this; hint: a first one takes a join token, or an administrator's `timonctl certificate issue`",
        )
    })
}

/// A verb on what a certificate names, for the audit log.
fn about(verb: &'static str, name: &str) -> Attributes {
    Attributes { name: name.to_owned(), ..Attributes::virtually(verb, OWN_GROUP, CERTIFICATES) }
}

/// An outcome as the audit log has it.
fn told<T>(outcome: &Result<T, Status>) -> Result<(), ApiError> {
    let Err(status) = outcome else { return Ok(()) };
    let reason = match status.code() {
        Code::InvalidArgument => Reason::BadRequest,
        Code::AlreadyExists => Reason::AlreadyExists,
        Code::PermissionDenied | Code::Unauthenticated => Reason::Forbidden,
        Code::FailedPrecondition => Reason::Conflict,
        Code::Unavailable => Reason::Unavailable,
        _ => Reason::InternalError,
    };
    Err(ApiError::new(reason, status.message()))
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
        let name = &subject.name;
        let snapshot = self.store.snapshot();
        if revoked::signed_until(&snapshot, name).is_some_and(|until| unix_now() <= until) {
            // What is signed in this second would count as revoked.
            let why = format!("certify {name}: it was revoked just now; hint: try again");
            return Err(Status::unavailable(why));
        }
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

    async fn joined(&self, token: &JoinToken, asked: JoinRequest) -> Result<JoinReply, Status> {
        let JoinRequest { name, request_pem, .. } = asked;
        tokens::check_fresh(&self.store, token, token.role).await?;
        match token.role {
            JoinRole::Node => {
                self.node_may_join(&name)?;
                tracing::info!(node = name, token = token.id, "a node joins");
                self.signed(&request_pem, &Subject::node(&name))
            }
            JoinRole::Master => {
                tracing::info!(token = token.id, "a master joins");
                let authority = self.pki.authority();
                Ok(JoinReply {
                    bundle_pem: authority.bundle_pem(),
                    authority: authority.to_parts().into_iter().collect(),
                    ..Default::default()
                })
            }
        }
    }

    /// The same again for whoever shows a certificate, for no longer than that was signed for.
    async fn renewed(&self, shown: &PeerCertificate, request: &str) -> Result<JoinReply, Status> {
        let name = &shown.name;
        if shown.master().is_some() {
            return Err(Status::permission_denied("masters sign their own certificates"));
        }
        let groups: Vec<&str> = shown.groups.iter().map(String::as_str).collect();
        let subject = Subject::person(name, &groups);
        let longest = self.pki.lifetimes().of(&subject);
        let validity = Duration::from_secs(shown.validity_s());
        match shown.node() {
            Some(node) => self.node_is_there(node).await?,
            // It was given for a while, not for as long as its owner likes.
            None if validity < longest => {
                let why = format!(
                    "renew the certificate of {name}: it was issued for {} s, and only one of the full {} s is renewed by its owner; hint: ask an administrator for `timonctl certificate issue --user {name}`",
                    validity.as_secs(),
                    longest.as_secs(),
                );
                return Err(Status::permission_denied(why));
            }
            None => {}
        }
        let reply = self.signed_for(request, &subject, validity.min(longest))?;
        if let Some(node) = shown.node()
            && let Ok(new) = leaf_of(&reply.chain_pem)
        {
            noted::store_note(&self.store, node, &new).await;
        }
        Ok(reply)
    }

    /// Whether the node has not been deleted, by the newest state where this master's own copy does
    /// not have it.
    async fn node_is_there(&self, name: &str) -> Result<(), Status> {
        let is_there = || self.store.snapshot().get::<Node>("", name).is_some();
        if is_there() {
            return Ok(());
        }
        self.store.linearize().await.map_err(|error| Status::unavailable(error.to_string()))?;
        if is_there() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "renew the certificate of node {name}: the cluster has no such node; hint: its agent registers it when it opens a session"
        )))
    }

    fn issued(&self, asked: &IssueRequest) -> Result<JoinReply, Status> {
        let IssueRequest { name, groups, request_pem, ttl_s } = asked;
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
        let asked = Duration::from_secs(*ttl_s);
        let validity = if asked.is_zero() { longest } else { asked.min(longest) };
        self.signed_for(request_pem, &Subject::person(name, &groups), validity)
    }

    async fn revoked(&self, name: &str) -> Result<RevokeReply, Status> {
        let wrong = |why: &str| {
            Status::invalid_argument(format!("revoke the certificates of {name:?}: {why}"))
        };
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(wrong("a name has 1 to 256 bytes"));
        }
        if name.starts_with(timonier_identity::MASTER_PREFIX) {
            return Err(wrong(
                "a master has the CA's key, so this would not keep it out; hint: timonctl master remove, then timonctl certificate renew --ca",
            ));
        }
        self.pki.revoke(&self.store, name).await.map_err(|error| match error {
            PkiError::Revoke(..) => Status::failed_precondition(error.to_string()),
            _ => Status::unavailable(error.to_string()),
        })?;
        tracing::info!(name, "certificates are revoked");
        Ok(RevokeReply {})
    }
}

#[tonic::async_trait]
impl Join for TrustDoor {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let mut who = Entrant::of(&request);
        let asked = request.into_inner();
        let token: Result<JoinToken, _> = asked.token.parse();
        let mut about = Attributes::virtually("join", OWN_GROUP, "masters");
        let outcome = match &token {
            Ok(token) => {
                who.shows(format!("join token {}", token.id));
                if token.role == JoinRole::Node {
                    about = Attributes::on("join", Kind::Node, "", &asked.name);
                }
                self.joined(token, asked).await
            }
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        };
        who.audit(&self.audit, "Join", &[about], told(&outcome)).await;
        outcome.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let (who, shown) = (Entrant::of(&request), certified(&request));
        let outcome = match &shown {
            Ok(shown) => self.renewed(shown, &request.get_ref().request_pem).await,
            Err(status) => Err(status.clone()),
        };
        let name = shown.as_ref().map(|shown| shown.name.as_str()).unwrap_or_default();
        who.audit(&self.audit, "Renew", &[about("renew", name)], told(&outcome)).await;
        outcome.map(Response::new)
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
        let snapshot = self.store.snapshot();
        let own = self.pki.identity().own().map(|own| own.name).unwrap_or_default();
        let mut known: Vec<CertificateState> = self
            .pki
            .all_known(&snapshot)
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
        let who = Entrant::of(&request);
        let asked = request.into_inner();
        let outcome = self.issued(&asked);
        let groups = asked.groups.iter().map(|group| about("create", group).part("groups"));
        let all: Vec<_> = std::iter::once(about("create", &asked.name)).chain(groups).collect();
        who.audit(&self.audit, "Issue", &all, told(&outcome)).await;
        outcome.map(Response::new)
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<RevokeReply>, Status> {
        let who = Entrant::of(&request);
        let name = request.into_inner().name;
        let outcome = self.revoked(&name).await;
        who.audit(&self.audit, "Revoke", &[about("delete", &name)], told(&outcome)).await;
        outcome.map(Response::new)
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
