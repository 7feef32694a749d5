//! Questions of a caller about himself, and the tokens that he may have made.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use timonier_master_core::access::{Attributes, authorize, rules_for};
use timonier_master_core::object::uid_of;
use timonier_proto::v1::{
    CanIReply, CanIRequest, CreateTokenReply, CreateTokenRequest, ListRulesReply, ListRulesRequest,
    WhoAmIReply, WhoAmIRequest,
};
use timonier_proto::{ApiError, DEFAULT_NAMESPACE, Kind, ObjectKey, Reason};
use tonic::Request;

use super::{Inner, guard};
use crate::caller::Via;
use crate::guard::caller;
use crate::tokens::{self, Named};

/// Audiences of one token.
const AUDIENCES_MAX: usize = 16;

impl Inner {
    pub(super) fn can_i(&self, request: Request<CanIRequest>) -> CanIReply {
        let user = guard::acting(request.extensions()).user;
        let request = request.into_inner();
        let asked = Attributes {
            verb: request.verb.into(),
            group: request.group.into(),
            resource: request.resource.into(),
            subresource: request.subresource.into(),
            namespace: request.namespace,
            name: request.name,
            path: request.path.into(),
        };
        let decision = authorize(&self.store.snapshot(), &user, &asked);
        CanIReply { allowed: decision.allowed, reason: decision.why.into_owned() }
    }

    pub(super) fn list_rules(
        &self,
        request: Request<ListRulesRequest>,
    ) -> Result<ListRulesReply, ApiError> {
        let user = guard::acting(request.extensions()).user;
        let rules = rules_for(&self.store.snapshot(), &user, &request.into_inner().namespace);
        let encoded: Result<Vec<_>, _> =
            rules.iter().map(|rule| serde_json::to_vec(rule).map(Into::into)).collect();
        let rules = encoded.map_err(|error| {
            ApiError::new(Reason::InternalError, format!("encode the rules: {error}"))
        })?;
        Ok(ListRulesReply { rules })
    }

    pub(super) fn who_am_i(&self, request: &Request<WhoAmIRequest>) -> WhoAmIReply {
        let acting = guard::acting(request.extensions());
        let via = match caller(request.extensions()).via {
            _ if acting.by.is_some() => "impersonation",
            Via::Certificate(_) => "certificate",
            Via::Token => "token",
            Via::Master { .. } => "master",
            Via::Nothing => "none",
        };
        let user = acting.user;
        WhoAmIReply { name: user.name, uid: user.uid, groups: user.groups, via: via.to_owned() }
    }

    pub(super) fn create_token(
        &self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenReply, ApiError> {
        let namespace = match request.namespace.as_str() {
            "" => DEFAULT_NAMESPACE,
            namespace => namespace,
        };
        if request.audiences.len() > AUDIENCES_MAX {
            let why = format!("create a token: at most {AUDIENCES_MAX} audiences");
            return Err(ApiError::new(Reason::BadRequest, why));
        }
        let snapshot = self.store.snapshot();
        let account =
            snapshot.get::<ServiceAccount>(namespace, &request.name).ok_or_else(|| {
                ApiError::not_found(&ObjectKey::new(Kind::ServiceAccount, namespace, &request.name))
            })?;
        let pod = match request.pod.as_str() {
            "" => None,
            name => {
                let key = ObjectKey::new(Kind::Pod, namespace, name);
                let found = snapshot
                    .get::<Pod>(namespace, name)
                    .ok_or_else(|| ApiError::not_found(&key))?;
                let uid = uid_of(&found.metadata).to_owned();
                if !request.pod_uid.is_empty() && request.pod_uid != uid {
                    let why = format!("create a token: {key} is another incarnation by now");
                    return Err(ApiError::new(Reason::Conflict, why));
                }
                Some(Named { name: name.to_owned(), uid })
            }
        };
        let (audiences, life) = (&request.audiences, request.expiration_seconds);
        let (token, expires) =
            tokens::sign(&snapshot, account, audiences, pod, life, Timestamp::now())
                .map_err(|error| ApiError::new(Reason::Unavailable, error.to_string()))?;
        Ok(CreateTokenReply { token, expires_unix_seconds: expires.as_second() })
    }
}
