//! The trust of a real master in this process, with certificates that live for seconds.

mod several;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node};
use timonier_identity::{
    Credentials, DialOptions, Identity, JoinRole, JoinToken, KeyRequest, Subject, Trust, dial,
    unix_now,
};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::v1::control_client::ControlClient;
use timonier_proto::v1::join_client::JoinClient;
use timonier_proto::v1::trust_client::TrustClient;
use timonier_proto::v1::{
    CertificateStatusRequest, ClusterInfoRequest, FollowRequest, IssueRequest, JoinReply,
    JoinRequest, RenewAuthorityRequest, RenewRequest, RevokeRequest,
};
use timonier_proto::{Kind, Kinded, ObjectKey};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Safe, note, noted, obtain, revoke, tokens};
use crate::stamp::stamp;
use crate::store::Encryption;
use crate::{Config, Master, RunningMaster};

const DEADLINE: Duration = Duration::from_secs(30);

async fn start(dir: &std::path::Path) -> RunningMaster {
    Master::start(Config::new(dir)).await.unwrap()
}

fn token_of(dir: &std::path::Path, file: &str) -> JoinToken {
    std::fs::read_to_string(dir.join(file)).unwrap().parse().unwrap()
}

async fn join(master: &RunningMaster, token: &JoinToken, name: &str) -> Result<Identity, Status> {
    let pinned = Identity::new(None, Trust::Pinned(token.ca_hash)).unwrap();
    let address = master.addr().to_string();
    let channel = dial(&address, &pinned, &DialOptions::default()).await.unwrap();
    let request = KeyRequest::new().unwrap();
    let asked = JoinRequest {
        token: token.to_string(),
        name: name.into(),
        request_pem: request.request_pem,
    };
    let reply = JoinClient::new(channel).join(asked).await?.into_inner();
    Ok(identity(reply, request.key_pem))
}

fn identity(reply: JoinReply, key_pem: String) -> Identity {
    let credentials = Credentials { chain_pem: reply.chain_pem, key_pem };
    Identity::new(Some(credentials), Trust::Bundle(reply.bundle_pem)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_let_in_for_what_they_say_until_they_are_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let token = token_of(dir.path(), "node-token");
    let node = join(&master, &token, "n1").await.unwrap();
    assert_eq!(node.own().unwrap().node(), Some("n1"));
    let bad_name = join(&master, &token, "N_1").await.unwrap_err();
    assert_eq!(bad_name.code(), Code::InvalidArgument);

    let stranger = JoinToken::new(JoinRole::Node, token.ca_hash).unwrap();
    let why = join(&master, &stranger, "n2").await.unwrap_err();
    assert_eq!(why.code(), Code::Unauthenticated);
    assert!(why.message().contains("it is not known here"), "{}", why.message());
    // Its id, with another role or secret.
    let other_role = token.to_string().replace("timonier-node", "timonier-master");
    let why = join(&master, &other_role.parse().unwrap(), "n2").await.unwrap_err();
    assert!(why.message().contains("it is not for a master"), "{}", why.message());
    let secret = token.to_string().split('.').nth(2).unwrap().to_owned();
    let forged = token.to_string().replace(&secret, &"a".repeat(secret.len()));
    let why = join(&master, &forged.parse().unwrap(), "n2").await.unwrap_err();
    assert!(why.message().contains("its secret is wrong"), "{}", why.message());

    let hour = Duration::from_secs(3600);
    let old = Timestamp::now().checked_sub(hour).unwrap();
    let create = Op::Create(tokens::to_secret(&stranger, Some(old)).into_object());
    master.store().commit(Txn::of(vec![stamp(create, Timestamp::now())])).await.unwrap();
    let why = join(&master, &stranger, "n2").await.unwrap_err();
    assert!(why.message().contains("it expired at"), "{}", why.message());
    assert!(why.message().contains("hint: timonctl token create --role node"), "{}", why.message());

    let key = ObjectKey::new(Kind::Secret, "kube-system", format!("join-token-{}", token.id));
    let revoke = Op::Remove { key, uid: None };
    master.store().commit(Txn::of(vec![revoke])).await.unwrap();
    let why = join(&master, &token, "n3").await.unwrap_err();
    assert!(why.message().contains("it was revoked"), "{}", why.message());
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_master_gets_the_ca_with_its_token_only() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let master = start(dir.path()).await;
    let addresses = ["127.0.0.1:1".to_owned(), master.addr().to_string()];
    let wrong = token_of(dir.path(), "node-token");
    let safe = Safe::open(other.path(), &Encryption::DataFolder).unwrap();
    assert!(obtain(&safe, &addresses, &wrong).await.is_err());
    let token = token_of(dir.path(), "master-token");
    obtain(&safe, &addresses, &token).await.unwrap();
    assert_eq!(safe.read().unwrap().as_ref(), Some(&*master.pki().authority()));
    // The key is not in the file as it is.
    let text = std::fs::read_to_string(other.path().join("pki/authority.json")).unwrap();
    assert!(text.contains("sealed") && !text.contains("PRIVATE"), "{text}");
    use std::os::unix::fs::PermissionsExt;
    for file in ["pki/authority.json", "admin.yaml", "node-token", "master-token"] {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_and_an_expired_certificate_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let authority = master.pki().authority();
    let trust = || Trust::Bundle(authority.bundle_pem());
    let long_ago = unix_now() - 7200;
    let expired = authority.issue(&Subject::admin(), long_ago, Duration::from_secs(60)).unwrap();
    let (_, stranger) = timonier_identity::throwaway(&Subject::admin());
    for (shown, word) in [(expired, "expired"), (stranger.credentials().unwrap(), "not of its")] {
        let identity = Identity::new(Some(shown), trust()).unwrap();
        let address = master.addr().to_string();
        let dialled = dial(&address, &identity, &DialOptions::default()).await;
        let why = dialled.unwrap_err().to_string();
        assert!(why.contains(word), "{why}");
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_ca_is_told_and_its_streams_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let node = join(&master, &token_of(dir.path(), "node-token"), "n1").await.unwrap();
    let address = master.addr().to_string();
    let channel = dial(&address, &node, &DialOptions::default()).await.unwrap();
    let mut client = JoinClient::new(channel);
    let mut updates = client.follow(FollowRequest {}).await.unwrap().into_inner();
    let first = timeout(DEADLINE, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.issuer, node.own().unwrap().issuer);

    let admin = master.dial_as(&Subject::admin()).await.unwrap();
    let mut trust = TrustClient::new(admin);
    let renewed = trust.renew_authority(RenewAuthorityRequest {}).await.unwrap().into_inner();
    let second = timeout(DEADLINE, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(second.issuer, renewed.issuer);
    assert_ne!(second.issuer, first.issuer);
    assert_eq!(second.bundle_pem.matches("BEGIN CERTIFICATE").count(), 2);

    // Over the connection that it has, with the certificate of the old CA.
    make_node(&master, "n1").await;
    let request = KeyRequest::new().unwrap();
    let asked = RenewRequest { request_pem: request.request_pem };
    let reply = client.renew(asked).await.unwrap().into_inner();
    let new = identity(reply, request.key_pem);
    assert_eq!(new.own().unwrap().issuer, second.issuer);
    assert_eq!(new.own().unwrap().node(), Some("n1"));
    // Who knows the old CA only, and who knows the new one, are both let in.
    for identity in [&node, &new] {
        let channel = dial(&address, identity, &DialOptions::default()).await.unwrap();
        JoinClient::new(channel).follow(FollowRequest {}).await.unwrap();
    }
    let status = trust.status(CertificateStatusRequest {}).await.unwrap().into_inner();
    let kinds: Vec<&str> = status.certificates.iter().map(|c| c.kind.as_str()).collect();
    assert_eq!(kinds, ["CA", "ReplacedCA", "Master", "Node", "Person"]);
    master.shutdown().await.unwrap();
    // After a restart it is the same CA, with the replaced one beside it.
    let master = start(dir.path()).await;
    assert_eq!(master.pki().authority().certificate().unwrap().name, second.issuer);
    assert_eq!(master.pki().authority().previous().unwrap().len(), 1);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn short_lives_are_renewed_unattended() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = Duration::from_secs;
    let config = Config {
        certificate_lifetime: seconds(6),
        person_certificate_lifetime: seconds(6),
        ca_lifetime: seconds(12),
        ..Config::new(dir.path())
    };
    let master = Master::start(config).await.unwrap();
    let first = master.pki().authority().certificate().unwrap().name;
    let own = master.pki().identity().own().unwrap().serial;
    let admin = std::fs::read_to_string(dir.path().join("admin.yaml")).unwrap();
    let wait = async {
        loop {
            let authority = master.pki().authority();
            let ca = authority.certificate().unwrap().name != first;
            // The first CA is dropped in the end.
            let dropped = ca && authority.previous().unwrap().iter().all(|(p, _)| p.name != first);
            let renewed = master.pki().identity().own().unwrap().serial != own;
            let now = std::fs::read_to_string(dir.path().join("admin.yaml")).unwrap();
            if dropped && renewed && now != admin {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE * 2, wait).await.expect("all is renewed in time");
    // It still answers whoever has a certificate of now.
    let channel = master.dial_as(&Subject::admin()).await.unwrap();
    ControlClient::new(channel).cluster_info(ClusterInfoRequest {}).await.unwrap();
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_certificates_but_not_those_of_machines() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let mut trust = TrustClient::new(master.dial_as(&Subject::admin()).await.unwrap());
    let request = KeyRequest::new().unwrap();
    let asked = |name: &str, group: &str| IssueRequest {
        name: name.into(),
        groups: vec![group.into()],
        request_pem: request.request_pem.clone(),
        ttl_s: 60,
    };
    let reply = trust.issue(asked("ann", "dev")).await.unwrap().into_inner();
    let ann = identity(reply, request.key_pem.clone());
    let own = ann.own().unwrap();
    assert_eq!((own.name.as_str(), own.groups[0].as_str()), ("ann", "dev"));
    assert!(own.not_after <= unix_now() + 60);
    for (name, group) in [("n1", "system:nodes"), ("system:node:n1", "dev"), ("", "dev")] {
        let refused = trust.issue(asked(name, group)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name} {group}");
    }
    // She may not do so herself.
    let address = master.addr().to_string();
    let channel = dial(&address, &ann, &DialOptions::default()).await.unwrap();
    let refused = TrustClient::new(channel).issue(asked("bob", "dev")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_seals_the_ca_and_the_old_one_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let path = dir.path().join("pki/authority.json");
    let read = || std::fs::read_to_string(&path).unwrap();
    let before = read();
    let old_keys = tempfile::tempdir().unwrap();
    let keyring = dir.path().join("pki/keys/keyring.json");
    std::fs::create_dir_all(old_keys.path().join("pki/keys")).unwrap();
    std::fs::copy(&keyring, old_keys.path().join("pki/keys/keyring.json")).unwrap();
    master.pki().rotate_key().await.unwrap();
    assert_ne!(read(), before);
    std::fs::copy(&path, old_keys.path().join("pki/authority.json")).unwrap();
    let old = Safe::open(old_keys.path(), &Encryption::DataFolder).unwrap();
    assert!(old.read().is_err());
    let known = master.pki().authority();
    master.shutdown().await.unwrap();
    let master = start(dir.path()).await;
    assert_eq!(master.pki().authority(), known);
    master.shutdown().await.unwrap();
}

async fn client_of(master: &RunningMaster, identity: &Identity) -> JoinClient<Channel> {
    let address = master.addr().to_string();
    JoinClient::new(dial(&address, identity, &DialOptions::default()).await.unwrap())
}

/// A certificate that this CA signed `ago` seconds ago for `valid` seconds.
fn signed(master: &RunningMaster, subject: &Subject, ago: i64, valid: u64) -> Identity {
    let authority = master.pki().authority();
    let valid = Duration::from_secs(valid);
    let credentials = authority.issue(subject, unix_now() - ago, valid).unwrap();
    Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem())).unwrap()
}

async fn renew(client: &mut JoinClient<Channel>) -> Result<Identity, Status> {
    let request = KeyRequest::new().unwrap();
    let asked = RenewRequest { request_pem: request.request_pem };
    Ok(identity(client.renew(asked).await?.into_inner(), request.key_pem))
}

async fn make_node(master: &RunningMaster, name: &str) {
    let node: Node =
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).unwrap();
    let create = stamp(Op::Create(node.into_object()), Timestamp::now());
    master.store().commit(Txn::of(vec![create])).await.unwrap();
}

const DAY_S: u64 = 86_400;

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_lasts_no_longer_than_the_one_shown() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    make_node(&master, "n1").await;
    // Ninety days are what machines get here, so the second one's are cut.
    for (given, wanted) in [(3_600, 3_600), (365 * DAY_S, 90 * DAY_S)] {
        let node = signed(&master, &Subject::node("n1"), 60, given);
        let renewed = renew(&mut client_of(&master, &node).await).await.unwrap();
        assert_eq!(renewed.own().unwrap().validity_s(), wanted);
    }
    // A person's that was given for an hour ends with that hour; one of the full life goes on.
    let ann = Subject::person("ann", &["dev"]);
    let hour = signed(&master, &ann, 60, 3_600);
    let refused = renew(&mut client_of(&master, &hour).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("hint: ask an administrator"), "{}", refused.message());
    let full = signed(&master, &ann, 200 * 86_400, 365 * DAY_S);
    let renewed = renew(&mut client_of(&master, &full).await).await.unwrap().own().unwrap();
    assert_eq!((renewed.name.as_str(), renewed.groups[0].as_str()), ("ann", "dev"));
    assert_eq!(renewed.validity_s(), 365 * DAY_S);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_node_s_certificate_is_not_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    make_node(&master, "n1").await;
    let mut client = client_of(&master, &signed(&master, &Subject::node("n1"), 0, 3_600)).await;
    renew(&mut client).await.unwrap();
    let key = ObjectKey::cluster(Kind::Node, "n1");
    master.store().commit(Txn::of(vec![Op::Remove { key, uid: None }])).await.unwrap();
    let refused = renew(&mut client).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the cluster has no such node"), "{}", refused.message());
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_ends_at_once_and_its_owner_may_join_again() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    make_node(&master, "n1").await;
    let mut trust = TrustClient::new(master.dial_as(&Subject::admin()).await.unwrap());
    let stolen = signed(&master, &Subject::node("n1"), 60, 3_600);
    let mut open = client_of(&master, &stolen).await;
    renew(&mut open).await.unwrap();
    let neighbour = signed(&master, &Subject::node("n10"), 60, 3_600);
    let name = "system:node:n1".to_owned();
    trust.revoke(RevokeRequest { name }).await.unwrap();
    // Over the connection that is open, and over a new one.
    for mut client in [open, client_of(&master, &stolen).await] {
        let refused = client.follow(FollowRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("was revoked"), "{}", refused.message());
        assert_eq!(renew(&mut client).await.unwrap_err().code(), Code::Unauthenticated);
    }
    client_of(&master, &neighbour).await.follow(FollowRequest {}).await.unwrap();
    // With a token, it gets one that is good: in the next second at the latest.
    let token = token_of(dir.path(), "node-token");
    let again = async {
        loop {
            match join(&master, &token, "n1").await {
                Ok(identity) => return identity,
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
            let second = unix_now();
            while unix_now() == second {
                tokio::task::yield_now().await;
            }
        }
    };
    let joined = timeout(DEADLINE, again).await.unwrap();
    client_of(&master, &joined).await.follow(FollowRequest {}).await.unwrap();

    for (name, why) in [("system:master:1", "master remove"), ("", "1 to 256 bytes")] {
        let refused = trust.revoke(RevokeRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(why), "{}", refused.message());
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_administrator_is_written_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let path = dir.path().join("admin.yaml");
    let stolen = std::fs::read_to_string(&path).unwrap();
    let mut trust = TrustClient::new(master.dial_as(&Subject::admin()).await.unwrap());
    let name = timonier_identity::ADMIN_NAME.to_owned();
    trust.revoke(RevokeRequest { name }).await.unwrap();
    assert_ne!(std::fs::read_to_string(&path).unwrap(), stolen);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn first_tokens_last_a_day_and_are_made_again_at_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let files = ["node-token", "master-token"];
    let first = files.map(|file| token_of(dir.path(), file));
    let (now, day) = (Timestamp::now(), Duration::from_secs(DAY_S));
    let tomorrow = now.checked_add(day).unwrap();
    for token in &first {
        tokens::check(&master.store().snapshot(), token, now).unwrap();
        let why = tokens::check(&master.store().snapshot(), token, tomorrow).unwrap_err();
        let hint = format!("hint: timonctl token create --role {}", token.role);
        let (told, hint) = (why.message(), hint.as_str());
        assert!(told.contains("it expired at") && told.contains(hint), "{told}");
    }
    // The node's is made to have expired yesterday, the masters' is revoked.
    let mut expired = tokens::to_secret(&first[0], now.checked_sub(day).ok());
    expired.metadata.resource_version = None;
    let key = |token: &JoinToken| {
        ObjectKey::new(Kind::Secret, "kube-system", format!("join-token-{}", token.id))
    };
    let ops =
        vec![Op::Replace(expired.into_object()), Op::Remove { key: key(&first[1]), uid: None }];
    master.store().commit(Txn::of(ops)).await.unwrap();
    master.shutdown().await.unwrap();

    let master = start(dir.path()).await;
    let second = files.map(|file| token_of(dir.path(), file));
    assert_ne!(second[0], first[0]);
    assert_eq!(second[1], first[1], "a token that was revoked stays so");
    tokens::check(&master.store().snapshot(), &second[0], now).unwrap();
    assert!(master.store().snapshot().object(&key(&first[0])).is_none(), "the old one is gone");
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_renews_and_certifies_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let token = token_of(dir.path(), "node-token");
    let node = join(&master, &token, "n1").await.unwrap();
    let stranger = JoinToken::new(JoinRole::Master, token.ca_hash).unwrap();
    join(&master, &stranger, "").await.unwrap_err();
    renew(&mut client_of(&master, &node).await).await.unwrap_err();
    let channel = master.dial_as(&Subject::admin()).await.unwrap();
    let asked = IssueRequest {
        name: "ann".into(),
        groups: vec!["dev".into()],
        request_pem: KeyRequest::new().unwrap().request_pem,
        ttl_s: 60,
    };
    TrustClient::new(channel.clone()).issue(asked).await.unwrap();
    let name = "ann".to_owned();
    TrustClient::new(channel.clone()).revoke(RevokeRequest { name }).await.unwrap();
    let change = Some(timonier_proto::v1::change_masters_request::Change::Remove(77));
    let asked = timonier_proto::v1::ChangeMastersRequest { change };
    ControlClient::new(channel).change_masters(asked).await.unwrap_err();

    let log = || std::fs::read_to_string(dir.path().join("audit.log")).unwrap_or_default();
    let written = async {
        while !log().contains("ChangeMasters") {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, written).await.unwrap();
    let lines: Vec<serde_json::Value> =
        log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<String> = lines
        .iter()
        .map(|line| {
            let by = line["by"].as_str().unwrap_or_default();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            let (user, method, result) = (text("user"), text("method"), text("result"));
            format!("{user} {by} {method} {} {result}", line["asked"])
        })
        .collect();
    let id = (&token.id, &stranger.id);
    for wanted in [
        format!(r#"system:anonymous join token {} Join ["join nodes n1"] ok"#, id.0),
        format!(
            r#"system:anonymous join token {} Join ["join masters.timonier.io"] Forbidden"#,
            id.1
        ),
        r#"system:node:n1  Renew ["renew certificates.timonier.io system:node:n1"] Conflict"#.into(),
        r#"admin  Issue ["create certificates.timonier.io ann","create certificates/groups.timonier.io dev"] ok"#.into(),
        r#"admin  Revoke ["delete certificates.timonier.io ann"] ok"#.into(),
        r#"admin  ChangeMasters ["update masters/removal.timonier.io 77"] Conflict"#.into(),
    ] {
        let wanted = wanted.replace("admin ", &format!("{} ", timonier_identity::ADMIN_NAME));
        let times = seen.iter().filter(|line| **line == wanted).count();
        assert_eq!(times, 1, "{wanted} is not once in\n{}", seen.join("\n"));
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_warned_of_also_by_a_master_that_has_just_started() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    let node = |name: &str, ago: i64| {
        let certificate = signed(&master, &Subject::node(name), ago, 90 * DAY_S).own().unwrap();
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        note(node.metadata.annotations.get_or_insert_default(), &certificate);
        stamp(Op::Create(node.into_object()), Timestamp::now())
    };
    // A sixth of ninety days is left after seventy-five.
    let day = 86_400;
    let nodes =
        vec![node("good", 74 * day), node("late", 76 * day), node("over", 91 * day), node("x", 0)];
    master.store().commit(Txn::of(nodes)).await.unwrap();
    master.shutdown().await.unwrap();

    let master = start(dir.path()).await;
    let (pki, now) = (master.pki(), unix_now());
    let late = |now: i64| -> Vec<String> {
        pki.late(&master.store().snapshot(), now).into_iter().map(|one| one.name).collect()
    };
    assert_eq!(late(now), ["system:node:late"]);
    assert_eq!(pki.expiry(&master.store().snapshot()).late, 1);
    // Of people there is only what it has seen.
    let ann = signed(&master, &Subject::person("ann", &[]), 364 * day, 365 * DAY_S).own().unwrap();
    pki.remember(ann);
    assert!(pki.warn(master.store(), now).await);
    let snapshot = master.store().snapshot();
    let events: Vec<(String, String)> = snapshot
        .list::<Event>(None)
        .filter(|event| event.reason.as_deref() == Some("CertificateExpiring"))
        .map(|event| {
            let about = &event.involved_object;
            (about.kind.clone().unwrap(), event.message.clone().unwrap())
        })
        .collect();
    let told = |kind: &str, name: &str| {
        let begins = format!("the certificate of {name} expires at ");
        events.iter().any(|(about, text)| about == kind && text.starts_with(&begins))
    };
    assert!(told("Node", "system:node:late") && told("Secret", "ann"), "{events:?}");
    assert!(!events.iter().any(|(_, text)| text.contains("good") || text.contains("over")));
    // Renewed or revoked, it is no word worth any more.
    let new = signed(&master, &Subject::node("late"), 0, 90 * DAY_S).own().unwrap();
    noted::store_note(master.store(), "late", &new).await;
    revoke(master.store(), "ann", now, i64::MAX).await.unwrap();
    assert!(late(now).is_empty());
    assert!(!pki.warn(master.store(), now).await);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_node_s_certificate_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let master = start(dir.path()).await;
    make_node(&master, "n1").await;
    let shown = signed(&master, &Subject::node("n1"), 60, 3_600);
    let new = renew(&mut client_of(&master, &shown).await).await.unwrap().own().unwrap();
    let snapshot = master.store().snapshot();
    assert_eq!(noted::noted(snapshot.get::<Node>("", "n1").unwrap()), Some(new));
    master.shutdown().await.unwrap();
}
