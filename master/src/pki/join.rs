//! How another master comes by the CA: it shows a token to one that has it.

use std::collections::BTreeMap;
use std::time::Duration;

use timonier_identity::{Authority, DialOptions, Identity, JoinToken, Trust, dial};
use timonier_proto::v1::JoinRequest;
use timonier_proto::v1::join_client::JoinClient;

use super::{PkiError, Safe};

/// How long a master may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Fetches the CA from one of the masters with a token for masters, and keeps it in the safe. Does
/// nothing where one is kept already: a master joins once.
pub async fn obtain(safe: &Safe, masters: &[String], token: &JoinToken) -> Result<(), PkiError> {
    if safe.read()?.is_some() {
        return Ok(());
    }
    let identity = Identity::new(None, Trust::Pinned(token.ca_hash))?;
    let mut last = PkiError::Join { address: "nowhere".into(), why: "no master is named".into() };
    for address in masters {
        match ask(address, &identity, token).await {
            Ok(parts) => return safe.save(&Authority::from_parts(&parts)?),
            Err(why) => last = PkiError::Join { address: address.clone(), why },
        }
    }
    Err(last)
}

async fn ask(
    address: &str,
    identity: &Identity,
    token: &JoinToken,
) -> Result<BTreeMap<String, String>, String> {
    let options = DialOptions::default();
    let channel = dial(address, identity, &options).await.map_err(|error| error.to_string())?;
    let request = JoinRequest { token: token.to_string(), ..Default::default() };
    let mut client = JoinClient::new(channel);
    let reply = tokio::time::timeout(ANSWER_DEADLINE, client.join(request))
        .await
        .map_err(|_| "no answer".to_owned())?
        .map_err(|status| status.message().to_owned())?;
    Ok(reply.into_inner().authority.into_iter().collect())
}
