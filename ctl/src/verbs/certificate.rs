//! `certificate`: until when certificates are valid, and new ones.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use jiff::Timestamp;
use timonier_identity::{Identity, KeyRequest, unix_now};
use timonier_proto::v1::{
    CertificateStatusRequest, IssueRequest, RenewAuthorityRequest, RenewRequest, RevokeRequest,
};

use crate::cli::duration::Span;
use crate::config::{Config, Context};
use crate::context::Ctx;
use crate::error::{Outcome, fail};
use crate::output::table::Table;

const DAY_S: i64 = 24 * 3600;

const EXAMPLES: &str = "\
Examples:
  timonctl certificate status                          until when each is valid
  timonctl certificate renew                           a new one for the current context's user
  timonctl certificate renew --ca                      a new CA; all certificates follow by themselves
  timonctl certificate issue --user ann --group dev > ann.yaml
  timonctl certificate revoke system:node:n1           a stolen key opens nothing any more";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the CA's, the master's, the nodes' and people's certificates, as far as this master has
    /// seen them
    Status,
    /// Renew the certificate of the current context's user in the configuration file
    Renew {
        /// Renew the cluster's CA instead; the old one stays trusted until its certificates expire
        #[arg(long)]
        ca: bool,
    },
    /// Make a certificate for a person or a program and print a configuration with it
    Issue {
        /// Whom it names
        #[arg(long, value_name = "NAME")]
        user: String,
        /// Groups that it puts its owner into; at most two
        #[arg(long, value_name = "NAME")]
        group: Vec<String>,
        /// How long it is valid, after which its owner cannot renew it; default: as the master is
        /// set, and renewed in time
        #[arg(long, value_name = "TIME")]
        ttl: Option<Span>,
    },
    /// End all certificates of a name before their time; new ones of that name are good
    Revoke {
        /// Whom they name, as status shows it: system:node:NAME, or a person
        name: String,
    },
}

pub async fn run(args: Args, ctx: &Ctx) -> Outcome {
    match args.action {
        Action::Status => status(ctx).await,
        Action::Renew { ca: true } => {
            let mut trust = ctx.client.trust().await?;
            let answer = trust.renew_authority(RenewAuthorityRequest {}).await;
            let reply = answer.map_err(|status| ctx.client.explained(status))?.into_inner();
            let until = time(reply.previous_trusted_until_unix_s);
            ctx.out.line(format!(
                "{} signs now; the CA before it is trusted until {until}",
                reply.issuer
            ))
        }
        Action::Renew { ca: false } => renew(ctx).await,
        Action::Issue { user, group, ttl } => issue(ctx, user, group, ttl).await,
        Action::Revoke { name } => revoke(ctx, name).await,
    }
}

async fn status(ctx: &Ctx) -> Outcome {
    let mut trust = ctx.client.trust().await?;
    let answer = trust.status(CertificateStatusRequest {}).await;
    let reply = answer.map_err(|status| ctx.client.explained(status))?.into_inner();
    let now = Timestamp::now().as_second();
    let headers = ["KIND", "NAME", "SIGNED-BY", "VALID-UNTIL", "LEFT"];
    let mut table = Table::new(headers.map(str::to_owned).to_vec());
    let mut late = 0;
    for one in reply.certificates {
        let (left, life) =
            (one.not_after_unix_s - now, one.not_after_unix_s - one.not_before_unix_s);
        // They renew themselves at two thirds.
        let is_late = one.kind != "ReplacedCA" && left < life / 6;
        late += u32::from(is_late);
        let mark = if is_late { " (!)" } else { "" };
        let until = time(one.not_after_unix_s);
        table.row(vec![one.kind, one.name, one.issuer, until, format!("{}{mark}", span(left))]);
    }
    table.take_lines(true, |_, cell| cell).iter().try_for_each(|line| ctx.out.line(line))?;
    if late > 0 {
        ctx.out.note(format!("warning: {late} expire soon, or have expired, and were not renewed"));
    }
    Ok(())
}

/// A time of the masters', for people; `?` where they tell none.
pub fn time(unix_s: i64) -> String {
    let at = Timestamp::from_second(unix_s).ok().filter(|_| unix_s != 0);
    at.map_or_else(|| "?".into(), |at| at.to_string())
}

fn span(seconds: i64) -> String {
    match seconds {
        ..=0 => "expired".into(),
        s if s >= 2 * DAY_S => format!("{}d", s / DAY_S),
        s if s >= 2 * 3600 => format!("{}h", s / 3600),
        s => format!("{}m{}s", s / 60, s % 60),
    }
}

/// Renews the certificate of the context's user when two thirds of its life are over. Best effort: a
/// command that has done its work does not fail for this.
pub async fn renew_in_time(ctx: &Ctx) {
    let own = ctx.client.identity().ok().and_then(Identity::own);
    if own.is_some_and(|own| unix_now() >= own.renew_at())
        && let Ok(user) = renewed(ctx).await
    {
        ctx.out.note(format!("the certificate of user {user:?} is renewed"));
    }
}

async fn renew(ctx: &Ctx) -> Outcome {
    let user = renewed(ctx).await?;
    ctx.out.line(format!("the certificate of user {user:?} is renewed"))
}

/// Puts a new certificate into the configuration file; whose.
async fn renewed(ctx: &Ctx) -> Outcome<String> {
    let mut config = ctx.config.clone();
    let context = config.chosen(None)?.cloned().unwrap_or_default();
    let user = context.user.clone().filter(|name| {
        config.user(name).is_some_and(|user| user.client_certificate_data.is_some())
    });
    let user = user.ok_or_else(|| fail("the current context has no certificate to renew"))?;
    let request = KeyRequest::new().map_err(|error| fail(error.to_string()))?;
    let mut join = ctx.client.join().await?;
    let answer = join.renew(RenewRequest { request_pem: request.request_pem }).await;
    let reply = answer.map_err(|status| ctx.client.explained(status))?.into_inner();
    let name = context.cluster.clone().unwrap_or_default();
    config.cluster_mut(&name).certificate_authority_data = Some(STANDARD.encode(reply.bundle_pem));
    let new = config.user_mut(&user);
    new.client_certificate_data = Some(STANDARD.encode(reply.chain_pem));
    new.client_key_data = Some(STANDARD.encode(request.key_pem));
    config.save(&ctx.config_path)?;
    Ok(user)
}

async fn revoke(ctx: &Ctx, name: String) -> Outcome {
    let mut trust = ctx.client.trust().await?;
    let answer = trust.revoke(RevokeRequest { name: name.clone() }).await;
    answer.map_err(|status| ctx.client.explained(status))?;
    ctx.out.line(format!("the certificates of {name:?} are revoked"))
}

async fn issue(ctx: &Ctx, user: String, groups: Vec<String>, ttl: Option<Span>) -> Outcome {
    let request = KeyRequest::new().map_err(|error| fail(error.to_string()))?;
    let asked = IssueRequest {
        name: user.clone(),
        groups,
        request_pem: request.request_pem,
        ttl_s: ttl.map_or(0, |ttl| ttl.0.as_secs()),
    };
    let mut trust = ctx.client.trust().await?;
    let answer = trust.issue(asked).await;
    let reply = answer.map_err(|status| ctx.client.explained(status))?.into_inner();
    let mut config = Config { current_context: Some(user.clone()), ..Default::default() };
    let cluster = config.cluster_mut("timonier");
    cluster.servers = ctx.target.servers.clone();
    cluster.certificate_authority_data = Some(STANDARD.encode(reply.bundle_pem));
    let own = config.user_mut(&user);
    own.client_certificate_data = Some(STANDARD.encode(reply.chain_pem));
    own.client_key_data = Some(STANDARD.encode(request.key_pem));
    *config.context_mut(&user) = Context {
        name: user.clone(),
        cluster: Some("timonier".into()),
        user: Some(user.clone()),
        ..Default::default()
    };
    let text =
        serde_saphyr::to_string(&config).map_err(|error| fail(format!("write yaml: {error}")))?;
    ctx.out.bytes(text.as_bytes())
}
