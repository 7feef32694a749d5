//! Certificates and tokens on real programs: who joins, and what goes on while all is renewed.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_identity::{DialOptions, Identity, PeerCertificate, Trust, dial, unix_now};
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::{WatchRequest, WhoAmIRequest};
use timonier_tests::cluster::{Cluster, Options, binary};
use timonier_tests::wait;

const SECONDS_30: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

/// What the certificate says that the agent keeps.
fn of_agent(cluster: &Cluster, index: usize) -> Result<PeerCertificate> {
    let path = cluster.dir().join(cluster.node_name(index)).join("pki/node.json");
    let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    Ok(PeerCertificate::from_pem(kept["chain_pem"].as_str().context("no certificate")?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_renewed_while_streams_go_on() -> Result<()> {
    let short = ["--certificate-lifetime", "12s"].map(str::to_owned).to_vec();
    let options = Options { agents: 1, master_args: short, ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let mut client = cluster.client().await?;
    let watch = WatchRequest { kind: "ConfigMap".into(), ..Default::default() };
    let mut events = client.watch(watch).await?.into_inner();

    let first = of_agent(&cluster, 0)?;
    cluster.ctl(&["certificate", "renew", "--ca"]).await?.ok()?;
    let mut serials = BTreeSet::from([first.serial]);
    let last = wait::until("the agent to renew its certificate twice", MINUTE, || {
        let own = of_agent(&cluster, 0);
        if let Ok(own) = &own {
            serials.insert(own.serial.clone());
        }
        let count = serials.len();
        async move {
            ensure!(count > 2, "{count} certificates were seen");
            own
        }
    })
    .await?;
    ensure!(last.issuer != first.issuer, "the old CA still signs");

    let first_ends = first.not_after;
    wait::until("the first certificate to end", MINUTE, || async move {
        ensure!(unix_now() > first_ends, "it is still valid");
        Ok(())
    })
    .await?;
    cluster.ctl(&["create", "configmap", "late", "--from-literal", "a=b"]).await?.ok()?;
    let seen = async {
        while let Some(event) = events.message().await? {
            if String::from_utf8_lossy(&event.json).contains("\"late\"") {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(SECONDS_30, seen).await.context("the watch goes on")??;
    let log = std::fs::read_to_string(cluster.dir().join(cluster.node_name(0) + ".log"))?;
    let sessions = log.matches("session opened").count();
    ensure!(sessions == 1, "{sessions} sessions:\n{log}");
    let status = cluster.ctl(&["certificate", "status"]).await?.ok()?;
    for kind in ["CA ", "ReplacedCA", "Master", "Node", "Person"] {
        ensure!(status.contains(kind), "no {kind} in\n{status}");
    }
    let info = cluster.ctl(&["cluster-info"]).await?.ok()?;
    ensure!(info.contains("CA valid until:"), "{info}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_a_node_in_until_it_is_revoked() -> Result<()> {
    let mut cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    let token = cluster.ctl(&["token", "create", "--role", "node", "--ttl", "1h"]).await?.ok()?;
    let token = token.trim().to_owned();
    let id = token.split('.').nth(1).context("a token has an id")?.to_owned();
    let listed = cluster.ctl(&["token", "list"]).await?.ok()?;
    ensure!(listed.contains(&id) && !listed.contains(&token), "{listed}");
    cluster.ctl(&["token", "revoke", &id]).await?.ok()?;

    let join = |node: &str| -> Result<std::process::Output> {
        let output = Command::new(binary("timonier-agent")?)
            .args(["--master", &cluster.address(), "--node-name", node, "--token", &token])
            .arg("--data-dir")
            .arg(cluster.dir().join(node))
            .args(["--bridge", "ttnone"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()?;
        Ok(output)
    };
    let refused = join("late")?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && text.contains("it was revoked"), "{text}");

    // Who has joined stays, and needs no token when it starts again.
    cluster.kill_agent(0)?;
    std::fs::remove_file(cluster.master_dir().join("node-token"))?;
    cluster.start_agent(0)?;
    cluster.wait_nodes_ready().await
}

const ROBOT: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot}
---
apiVersion: v1
kind: Pod
metadata: {name: robot}
spec:
  serviceAccountName: robot
  containers:
  - name: web
    image: timonier/web:v1
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: vault, mountPath: /vault}]
  volumes:
  - name: vault
    projected:
      sources:
      - serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_token_of_its_service_account() -> Result<()> {
    let cluster = Cluster::start(Options { agents: 1, ..Options::default() }).await?;
    cluster.apply(ROBOT).await?;
    let wait = ["wait", "--for", "condition=Ready", "pod/robot", "--timeout", "30s"];
    cluster.ctl(&wait).await?.ok()?;
    let cat = async |path: &str| -> Result<String> {
        let exec = ["exec", "robot", "--", "/web", "--cat", path, "--exit-after-ms", "0"];
        cluster.ctl(&[&exec[..], &["--exit-code", "0"]].concat()).await?.ok()
    };
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    ensure!(cat(&format!("{folder}/namespace")).await?.trim() == "default");
    ensure!(cat(&format!("{folder}/ca.crt")).await?.contains("BEGIN CERTIFICATE"));
    let token = cat(&format!("{folder}/token")).await?;
    ensure!(token.trim() != cat("/vault/token").await?.trim(), "audiences differ");

    // It opens the masters' door as its service account, and for another audience it does not.
    let nobody = Identity::new(None, Trust::Bundle(cat(&format!("{folder}/ca.crt")).await?))?;
    let channel = dial(&cluster.address(), &nobody, &DialOptions::default()).await?;
    let who = async |token: &str| {
        let mut request = tonic::Request::new(WhoAmIRequest {});
        let bearer = format!("Bearer {}", token.trim()).parse().expect("a token is plain text");
        request.metadata_mut().insert("authorization", bearer);
        ControlClient::new(channel.clone()).who_am_i(request).await
    };
    ensure!(who(&token).await?.into_inner().name == "system:serviceaccount:default:robot");
    let other = who(&cat("/vault/token").await?).await;
    ensure!(other.is_err_and(|status| status.code() == tonic::Code::Unauthenticated));
    // With the pod, its token ends.
    cluster.ctl(&["delete", "pod", "robot", "--now"]).await?.ok()?;
    ensure!(who(&token).await.is_err_and(|status| status.code() == tonic::Code::Unauthenticated));
    Ok(())
}

/// timonctl's words and exit codes for what a real master decides.
#[tokio::test(flavor = "multi_thread")]
async fn who_one_is_and_what_one_may_is_told_by_words_and_exit_codes() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let issue = ["certificate", "issue", "--user", "vera", "--group", "dev"];
    std::fs::write(cluster.dir().join("vera.yaml"), cluster.ctl(&issue).await?.ok()?)?;
    let who = cluster.ctl_by("vera.yaml", &["auth", "whoami"]).await?.ok()?;
    ensure!(who.contains("vera") && who.contains("[dev system:authenticated]"), "{who}");

    let role = ["create", "role", "reader", "--verb", "get,list", "--resource", "pods"];
    cluster.ctl(&role).await?.ok()?;
    let bind = ["create", "rolebinding", "reader", "--role", "reader", "--group", "dev"];
    cluster.ctl(&bind).await?.ok()?;
    for (asked, code) in [
        (&["get", "pods"][..], 0),
        (&["get", "pods/web"], 0),
        (&["get", "pods", "-n", "kube-system"], 1),
        (&["get", "pods", "-A"], 1),
        (&["get", "pods", "--subresource", "log"], 1),
        (&["delete", "pods"], 1),
        (&["get", "secrets"], 1),
    ] {
        let words = if code == 0 { "yes\n" } else { "no\n" };
        let args = [&["auth", "can-i"], asked].concat();
        let own = cluster.ctl_by("vera.yaml", &args).await?;
        ensure!((own.code, own.stdout.as_str()) == (code, words), "{asked:?}: {own:?}");
        // Whoever may act as her is told the same.
        let acting = [&["--as", "vera", "--as-group", "dev"], &args[..]].concat();
        let told = cluster.ctl(&acting).await?;
        ensure!((told.code, told.stdout.as_str()) == (code, words), "{asked:?}: {told:?}");
        let admin = cluster.ctl(&args).await?;
        ensure!((admin.code, admin.stdout.as_str()) == (0, "yes\n"), "{asked:?}: {admin:?}");
    }
    let list = cluster.ctl_by("vera.yaml", &["auth", "can-i", "--list"]).await?.ok()?;
    let pods = list.lines().find(|line| line.starts_with("pods ")).context("a line of pods")?;
    ensure!(pods.contains("[get list]"), "{list}");
    let list = cluster.ctl(&["auth", "can-i", "--list"]).await?.ok()?;
    ensure!(list.contains("*.*") && list.contains("[*]"), "{list}");
    Ok(())
}
