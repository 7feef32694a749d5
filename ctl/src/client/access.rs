//! The master's calls about who one is and what one may do.

use serde_json::Value;
use timonier_proto::v1;

use super::Client;
use super::calls::tree;
use crate::error::Outcome;

impl Client {
    pub async fn can_i(&self, asked: &v1::CanIRequest) -> Outcome<v1::CanIReply> {
        self.read(asked.clone(), |mut control, request| async move { control.can_i(request).await })
            .await
    }

    /// Kubernetes' PolicyRules.
    pub async fn rules(&self, namespace: &str) -> Outcome<Vec<Value>> {
        let message = v1::ListRulesRequest { namespace: namespace.to_owned() };
        let reply = self
            .read(message, |mut control, request| async move { control.list_rules(request).await })
            .await?;
        reply.rules.iter().map(|rule| tree(rule)).collect()
    }

    pub async fn who_am_i(&self) -> Outcome<v1::WhoAmIReply> {
        self.read(v1::WhoAmIRequest {}, |mut control, request| async move {
            control.who_am_i(request).await
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
