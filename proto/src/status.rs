//! [`ApiError`]: why a request was refused, in Kubernetes' terms, and the one table that maps it to
//! gRPC codes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

/// Kubernetes' status reasons, as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotFound,
    AlreadyExists,
    Conflict,
    Invalid,
    BadRequest,
    /// Who asks showed nothing that is good.
    Unauthorized,
    Forbidden,
    Expired,
    TooManyRequests,
    Unavailable,
    Timeout,
    InternalError,
    /// The master cannot write: its disk is full or failing.
    StorageFailure,
}

/// Reason, its name, HTTP status, gRPC code (by number: the pure crates know no gRPC).
const TABLE: &[(Reason, &str, i32, i32)] = &[
    (Reason::NotFound, "NotFound", 404, 5),
    (Reason::AlreadyExists, "AlreadyExists", 409, 6),
    (Reason::Conflict, "Conflict", 409, 10),
    (Reason::Invalid, "Invalid", 422, 3),
    (Reason::BadRequest, "BadRequest", 400, 3),
    (Reason::Unauthorized, "Unauthorized", 401, 16),
    (Reason::Forbidden, "Forbidden", 403, 7),
    (Reason::Expired, "Expired", 410, 11),
    (Reason::TooManyRequests, "TooManyRequests", 429, 8),
    (Reason::Unavailable, "ServiceUnavailable", 503, 14),
    (Reason::Timeout, "Timeout", 504, 4),
    (Reason::InternalError, "InternalError", 500, 13),
    (Reason::StorageFailure, "StorageFailure", 507, 9),
];

impl Reason {
    fn row(self) -> &'static (Reason, &'static str, i32, i32) {
        TABLE.iter().find(|row| row.0 == self).expect("every reason has its row")
    }
    pub fn as_str(self) -> &'static str {
        self.row().1
    }
    /// HTTP status code.
    pub fn http(self) -> i32 {
        self.row().2
    }
    #[cfg(feature = "grpc")]
    pub fn grpc(self) -> tonic::Code {
        tonic::Code::from_i32(self.row().3)
    }
}

/// A refusal. `causes` name fields: `(path, message)`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub reason: Reason,
    pub message: String,
    pub causes: Vec<(String, String)>,
}

impl ApiError {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), causes: Vec::new() }
    }

    pub fn not_found(key: &crate::ObjectKey) -> Self {
        let info = key.kind.info();
        let group = if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
        Self::new(Reason::NotFound, format!("{}{group} \"{}\" not found", info.plural, key.name))
    }

    pub fn already_exists(key: &crate::ObjectKey) -> Self {
        let info = key.kind.info();
        let group = if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
        let message = format!("{}{group} \"{}\" already exists", info.plural, key.name);
        Self::new(Reason::AlreadyExists, message)
    }

    /// `Deployment.apps "web" is invalid: spec.replicas: …`
    pub fn invalid(key: &crate::ObjectKey, causes: Vec<(String, String)>) -> Self {
        let info = key.kind.info();
        let group = if info.group.is_empty() { String::new() } else { format!(".{}", info.group) };
        let list: Vec<String> = causes.iter().map(|(path, why)| format!("{path}: {why}")).collect();
        let message =
            format!("{}{group} \"{}\" is invalid: {}", info.name, key.name, list.join("; "));
        Self { reason: Reason::Invalid, message, causes }
    }

    pub fn to_status(&self) -> Status {
        let causes = self
            .causes
            .iter()
            .map(|(field, message)| StatusCause {
                field: Some(field.clone()),
                message: Some(message.clone()),
                reason: Some("FieldValueInvalid".into()),
            })
            .collect::<Vec<_>>();
        Status {
            code: Some(self.reason.http()),
            message: Some(self.message.clone()),
            reason: Some(self.reason.as_str().into()),
            status: Some("Failure".into()),
            details: (!causes.is_empty())
                .then(|| StatusDetails { causes: Some(causes), ..Default::default() }),
            ..Default::default()
        }
    }

    /// What a client finds behind a failed call; transport failures become `Unavailable`.
    #[cfg(feature = "grpc")]
    pub fn from_grpc(status: &tonic::Status) -> Self {
        let parsed = serde_json::from_slice::<Status>(status.details()).ok();
        let reason = parsed
            .as_ref()
            .and_then(|s| s.reason.as_deref())
            .and_then(|name| TABLE.iter().find(|row| row.1 == name))
            .or_else(|| TABLE.iter().find(|row| row.3 == status.code() as i32))
            .map_or(Reason::InternalError, |row| row.0);
        let causes = parsed
            .and_then(|s| s.details)
            .and_then(|d| d.causes)
            .unwrap_or_default()
            .into_iter()
            .map(|c| (c.field.unwrap_or_default(), c.message.unwrap_or_default()))
            .collect();
        Self { reason, message: status.message().to_owned(), causes }
    }
}

#[cfg(feature = "grpc")]
impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        let details = serde_json::to_vec(&error.to_status()).unwrap_or_default();
        tonic::Status::with_details(error.reason.grpc(), error.message, details.into())
    }
}

#[cfg(all(test, feature = "grpc"))]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        for row in TABLE {
            let mut error = ApiError::new(row.0, "no");
            error.causes.push(("spec.x".into(), "unknown field".into()));
            assert_eq!(ApiError::from_grpc(&error.clone().into()), error);
        }
    }
}
