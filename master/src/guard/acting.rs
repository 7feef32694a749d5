//! In whose name a request acts: the caller's own, or another's whom he may impersonate.

use timonier_master_core::access::{
    ANONYMOUS, AUTHENTICATED, Attributes, UNAUTHENTICATED, UserInfo, require,
};
use timonier_master_core::snapshot::Snapshot;
use timonier_proto::{ApiError, Kind, Reason};
use tonic::codegen::http::HeaderMap;

/// Metadata that names the user to act as; Kubernetes' header.
pub const IMPERSONATE_USER: &str = "impersonate-user";
/// Metadata that names a group of that user; may stand several times.
pub const IMPERSONATE_GROUP: &str = "impersonate-group";
/// Groups that one may act with.
const GROUPS_MAX: usize = 64;

/// The user in whose name a request acts; in its extensions once it is past the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acting {
    pub user: UserInfo,
    /// Who really asks, when he acts as another.
    pub by: Option<String>,
}

/// Whether the request asks to act as another.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.contains_key(IMPERSONATE_USER) || headers.contains_key(IMPERSONATE_GROUP)
}

/// Whom the request acts as; a refusal where the caller may not.
pub(super) fn of(
    own: UserInfo,
    headers: &HeaderMap,
    snapshot: &Snapshot,
) -> Result<Acting, ApiError> {
    let text = |name: &str| -> Result<Vec<String>, ApiError> {
        headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().map(str::to_owned).map_err(|_| bad(name, "is not text")))
            .collect()
    };
    let mut groups = text(IMPERSONATE_GROUP)?;
    let user = text(IMPERSONATE_USER)?.pop().filter(|name| !name.is_empty());
    let Some(name) = user else {
        if !groups.is_empty() {
            return Err(bad(IMPERSONATE_GROUP, "needs a user to go with"));
        }
        return Ok(Acting { user: own, by: None });
    };
    if groups.len() > GROUPS_MAX {
        return Err(bad(IMPERSONATE_GROUP, "stands too often"));
    }
    let service_account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    let asked = match &service_account {
        Some((namespace, name)) => {
            Attributes::on("impersonate", Kind::ServiceAccount, namespace, name)
        }
        None => named("users", &name),
    };
    require(snapshot, &own, &asked)?;
    for group in &groups {
        require(snapshot, &own, &named("groups", group))?;
    }
    let user = match service_account {
        Some((namespace, account)) if groups.is_empty() => {
            UserInfo::of_service_account(&namespace, &account, "")
        }
        _ if name == ANONYMOUS => {
            groups.retain(|group| group != AUTHENTICATED);
            groups.push(UNAUTHENTICATED.to_owned());
            UserInfo { name, uid: String::new(), groups }
        }
        _ => UserInfo::authenticated(name, groups),
    };
    Ok(Acting { user, by: Some(own.name) })
}

fn named(resource: &'static str, name: &str) -> Attributes {
    let mut asked = Attributes::virtually("impersonate", "", resource);
    name.clone_into(&mut asked.name);
    asked
}

fn bad(header: &str, why: &str) -> ApiError {
    ApiError::new(Reason::BadRequest, format!("the request's {header} {why}"))
}
