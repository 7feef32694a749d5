//! The first words of a master that is to join: it asks any member for an id, and is sent on to the
//! one that leads.

use std::collections::VecDeque;
use std::time::Duration;

use timonier_identity::Identity;
use timonier_master_core::level::Level;
use timonier_proto::v1::raft_client::RaftClient;
use timonier_proto::v1::{JoinMasterReply, JoinMasterRequest};
use tonic::{Code, Request};

use super::dial;
use crate::store::WIRE_VERSION;

/// All of it.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
/// One request.
const ASK_DEADLINE: Duration = Duration::from_secs(15);
/// Pause before everyone is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// What a joining master says of itself.
#[derive(Debug, Clone)]
pub struct Joining {
    pub name: String,
    /// Where the others will reach it.
    pub address: String,
    pub token: String,
}

/// Why it could not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("join through {address}: {why}")]
    Refused { address: String, why: String },
    #[error("join through {addresses}: {why}; hint: see that a master answers there")]
    NoAnswer { addresses: String, why: String },
}

/// Asks the masters at `addresses`, one after the other, and answers what the leader says: this
/// master's id, and the cluster's.
pub async fn join(
    addresses: &[String],
    joining: &Joining,
    identity: &Identity,
) -> Result<JoinMasterReply, JoinError> {
    let mut last = "nobody was asked".to_owned();
    let asking = async {
        loop {
            let mut queue: VecDeque<String> = addresses.iter().cloned().collect();
            let mut asked = Vec::new();
            while let Some(address) = queue.pop_front() {
                if asked.contains(&address) {
                    continue;
                }
                asked.push(address.clone());
                match ask(&address, joining, identity).await {
                    Ok(reply) if reply.id != 0 => return Ok(reply),
                    Ok(reply) => {
                        last = format!("{address} does not lead, and knows of no leader");
                        let leader = reply.members.into_iter().find(|member| member.leader);
                        if let Some(leader) = leader {
                            queue.push_front(leader.address);
                        }
                    }
                    Err(status) if is_refusal(status.code()) => {
                        let why = status.message().to_owned();
                        return Err(JoinError::Refused { address, why });
                    }
                    Err(status) => last = format!("{address}: {}", status.message()),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    let joined = tokio::time::timeout(JOIN_DEADLINE, asking).await;
    joined.unwrap_or_else(|_| {
        Err(JoinError::NoAnswer { addresses: addresses.join(", "), why: last.clone() })
    })
}

fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

async fn ask(
    address: &str,
    joining: &Joining,
    identity: &Identity,
) -> Result<JoinMasterReply, tonic::Status> {
    let channel =
        dial(address, identity).map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
    let Joining { name, address, token } = joining.clone();
    let mut request = Request::new(JoinMasterRequest {
        version: WIRE_VERSION,
        name,
        address,
        token,
        level: Level::NEWEST.into(),
    });
    request.set_timeout(ASK_DEADLINE);
    Ok(RaftClient::new(channel).join_master(request).await?.into_inner())
}
