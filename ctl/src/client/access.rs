//! The master's calls about who one is and what one may do. Each may be made as somebody else.

use serde_json::Value;
use timonier_proto::v1;
use tonic::Request;

use super::Client;
use super::calls::tree;
use crate::error::Outcome;

/// Somebody to act as; empty: oneself.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Acting {
    /// Act as this user; needs the right to impersonate
    #[arg(long = "as", value_name = "USER", default_value = "", hide_default_value = true)]
    pub user: String,
    /// Act as a member of this group too; may stand several times
    #[arg(long = "as-group", value_name = "GROUP", requires = "user")]
    pub groups: Vec<String>,
}

impl Acting {
    fn named<T>(&self, mut request: Request<T>) -> Result<Request<T>, tonic::Status> {
        let value = |text: &str| {
            text.parse()
                .map_err(|_| tonic::Status::invalid_argument(format!("{text:?} is no name")))
        };
        if !self.user.is_empty() {
            request.metadata_mut().insert("impersonate-user", value(&self.user)?);
        }
        for group in &self.groups {
            request.metadata_mut().append("impersonate-group", value(group)?);
        }
        Ok(request)
    }
}

impl Client {
    pub async fn can_i(&self, acting: &Acting, asked: &v1::CanIRequest) -> Outcome<v1::CanIReply> {
        self.read(asked.clone(), |mut control, request| {
            let request = acting.named(request);
            async move { control.can_i(request?).await }
        })
        .await
    }

    /// Kubernetes' PolicyRules.
    pub async fn rules(&self, acting: &Acting, namespace: &str) -> Outcome<Vec<Value>> {
        let message = v1::ListRulesRequest { namespace: namespace.to_owned() };
        let reply = self
            .read(message, |mut control, request| {
                let request = acting.named(request);
                async move { control.list_rules(request?).await }
            })
            .await?;
        reply.rules.iter().map(|rule| tree(rule)).collect()
    }

    pub async fn who_am_i(&self, acting: &Acting) -> Outcome<v1::WhoAmIReply> {
        self.read(v1::WhoAmIRequest {}, |mut control, request| {
            let request = acting.named(request);
            async move { control.who_am_i(request?).await }
        })
        .await
    }

    pub async fn create_token(
        &self,
        request: &v1::CreateTokenRequest,
    ) -> Outcome<v1::CreateTokenReply> {
        // A token more does no harm, so it may be asked for again.
        self.read(request.clone(), |mut control, request| async move {
            control.create_token(request).await
        })
        .await
    }
}
