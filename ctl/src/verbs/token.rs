//! `token`: join tokens, with which hosts become nodes or masters.
//!
//! A token is made here; the masters get a hash of it, as a Secret.

use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Value, json};
use timonier_identity::{JoinRole, JoinToken};
use timonier_proto::{Kind, ObjectKey};

use crate::cli::duration::Span;
use crate::client::Client;
use crate::client::calls::{Deletion, Filter};
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::output::table::Table;

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "join-token-";
const TYPE: &str = "timonier.io/join-token";
/// Life of a token that a file is given for a while.
const KEPT_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// One that ends sooner is not worth starting with.
const KEPT_TOKEN_MARGIN: Duration = Duration::from_secs(600);

const EXAMPLES: &str = "\
Examples:
  timonctl token create --role node --ttl 24h     print a token that lets hosts join for a day
  timonctl token list
  timonctl token revoke k3f7m2pq                  nobody joins with it any more";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make a token and print it; it cannot be printed again
    Create {
        /// What hosts become with it
        #[arg(long, value_parser = ["node", "master"])]
        role: String,
        /// How long it lets hosts in; 0 means until it is revoked
        #[arg(long, value_name = "TIME", default_value = "24h")]
        ttl: Span,
    },
    /// List the tokens that have not been revoked
    List,
    /// Revoke tokens; those who joined with them stay
    Revoke {
        /// Ids, as list prints them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.action {
        Action::Create { role, ttl } => create(ctx, &role, ttl.0).await,
        Action::List => list(ctx).await,
        Action::Revoke { ids } => {
            for id in ids {
                let id = id.split('.').nth(1).unwrap_or(&id).to_owned();
                let key = ctx.key_in(Kind::Secret, NAMESPACE, &format!("{NAME_PREFIX}{id}"));
                ctx.client.delete(&key, &Deletion::default()).await?;
                ctx.out.line(format!("token {id} revoked"))?;
            }
            Ok(())
        }
    }
}

async fn create(ctx: &Ctx, role: &str, ttl: Duration) -> Outcome {
    let role: JoinRole = role.parse().map_err(|error| fail(format!("{error}")))?;
    let token = make(&ctx.client, role, ttl).await?;
    ctx.out.line(token.to_string())
}

/// A token that lets hosts join for that long, or until it is revoked when that is no time.
pub async fn make(client: &Client, role: JoinRole, ttl: Duration) -> Outcome<JoinToken> {
    let hash = client.identity()?.ca_hash().map_err(|error| fail(error.to_string()))?;
    let token = JoinToken::new(role, hash).map_err(|error| fail(error.to_string()))?;
    let mut data = json!({"role": role.as_str(), "secret-hash": token.secret_hash()});
    if !ttl.is_zero() {
        let expires = Timestamp::now()
            .checked_add(ttl)
            .map_err(|_| fail("the token's life is too long; --ttl 0 makes one without an end"))?;
        data["expires"] = Value::from(expires.to_string());
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": TYPE, "stringData": data,
        "metadata": {"name": format!("{NAME_PREFIX}{}", token.id), "namespace": NAMESPACE},
    });
    client.create(&secret, NAMESPACE, false).await?;
    Ok(token)
}

/// Sees to it that the file has a token that lets in: those which a master writes at its first
/// start end after a day.
pub async fn keep_good(client: &Client, path: &Path, role: JoinRole) -> Outcome {
    let failed = |why: &dyn std::fmt::Display| fail(format!("keep {}: {why}", path.display()));
    let kept = timonier_identity::read_text(path).map_err(|error| failed(&error))?;
    if let Some(token) = kept.and_then(|text| text.parse::<JoinToken>().ok()) {
        let key = ObjectKey::new(Kind::Secret, NAMESPACE, format!("{NAME_PREFIX}{}", token.id));
        match client.get(&key).await {
            Ok(secret) if lets_in(&secret, Timestamp::now()) => return Ok(()),
            Err(failure) if !failure.is_not_found() => return Err(failure),
            _ => {}
        }
    }
    let token = make(client, role, KEPT_TOKEN_TTL).await?;
    timonier_identity::write_private(path, &format!("{token}\n")).map_err(|error| failed(&error))
}

/// Whether a token's Secret lets in at that time and for long enough to start something.
fn lets_in(secret: &Value, now: Timestamp) -> bool {
    text(secret, "expires").is_none_or(|at| {
        let soon = now.checked_add(KEPT_TOKEN_MARGIN);
        at.parse::<Timestamp>().is_ok_and(|at| soon.is_ok_and(|soon| at > soon))
    })
}

async fn list(ctx: &Ctx) -> Outcome {
    let secrets = ctx.client.list(Kind::Secret, &Filter::namespace(NAMESPACE)).await?;
    let mut table = Table::new(["ID", "ROLE", "EXPIRES"].map(str::to_owned).to_vec());
    for secret in secrets.iter().filter(|secret| secret["type"] == TYPE) {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default();
        let expires = match text(secret, "expires") {
            None => "never".to_owned(),
            Some(at) => match at.parse::<Timestamp>() {
                Ok(time) if time <= Timestamp::now() => format!("{at} (expired)"),
                _ => at,
            },
        };
        let id = name.strip_prefix(NAME_PREFIX).unwrap_or(name);
        table.row(vec![id.to_owned(), text(secret, "role").unwrap_or_default(), expires]);
    }
    table.take_lines(true, |_, cell| cell).iter().try_for_each(|line| ctx.out.line(line))
}

/// An entry of a Secret's data.
fn text(secret: &Value, key: &str) -> Option<String> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_ends_soon_lets_nobody_in() {
        use base64::Engine;
        let now: Timestamp = "2027-01-02T10:00:00Z".parse().unwrap();
        let of = |at: &str| {
            let expires = base64::engine::general_purpose::STANDARD.encode(at);
            lets_in(&json!({"data": {"expires": expires}}), now)
        };
        assert!(lets_in(&json!({"data": {}}), now), "it has no end");
        assert!(of("2027-01-02T11:00:00Z"));
        assert!(!of("2027-01-02T10:05:00Z") && !of("2027-01-01T10:00:00Z") && !of("?"));
    }
}
