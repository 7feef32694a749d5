//! Several masters in this process, which speak to each other over TLS, while their CA is renewed.

use k8s_openapi::api::core::v1::ConfigMap;
use timonier_proto::v1::{CreateRequest, TrustUpdate, WatchEvent, WatchRequest};
use tonic::Streaming;

use super::*;

struct One {
    master: RunningMaster,
    dir: tempfile::TempDir,
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not come within {DEADLINE:?}"));
}

/// The first one, and those that joined it.
async fn masters(count: usize) -> Vec<One> {
    let mut all: Vec<One> = Vec::new();
    for index in 0..count {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { name: Some(format!("m{index}")), ..Config::new(dir.path()) };
        if let Some(first) = all.first() {
            config.join = vec![first.master.addr().to_string()];
            config.token = Some(token_of(first.dir.path(), "master-token").to_string());
        }
        let master = Master::start(config).await.unwrap();
        // It serves nobody before.
        until("its vote", || master.store().votes()).await;
        all.push(One { master, dir });
    }
    all
}

/// What a master sends while it goes on.
struct Streams {
    node: JoinClient<Channel>,
    updates: Streaming<TrustUpdate>,
    admin: Channel,
    events: Streaming<WatchEvent>,
}

impl Streams {
    async fn of(master: &RunningMaster, node: &Identity) -> Self {
        let mut node = client_of(master, node).await;
        let updates = node.follow(FollowRequest {}).await.unwrap().into_inner();
        let admin = master.dial_as(&Subject::admin()).await.unwrap();
        let watch = WatchRequest { kind: "ConfigMap".into(), ..Default::default() };
        let events = ControlClient::new(admin.clone()).watch(watch).await.unwrap().into_inner();
        Self { node, updates, admin, events }
    }

    /// Who signs from now on.
    async fn issuer(&mut self) -> String {
        let update = timeout(DEADLINE, self.updates.message()).await.expect("it is told in time");
        update.unwrap().expect("the stream goes on").issuer
    }

    async fn create(&self, name: &str) {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        let json = map.into_object().to_json().unwrap().into();
        let create = CreateRequest { json, ..Default::default() };
        ControlClient::new(self.admin.clone()).create(create).await.unwrap();
    }

    async fn sees(&mut self, name: &str) {
        let wanted = format!("\"name\":\"{name}\"");
        loop {
            let event = timeout(DEADLINE, self.events.message()).await.expect("it is told in time");
            let event = event.unwrap().expect("the watch goes on");
            if String::from_utf8_lossy(&event.json).contains(&wanted) {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_ca_reaches_every_master_and_cuts_no_stream() {
    let mut all = masters(3).await;
    let first = &all[0];
    let node = join(&first.master, &token_of(first.dir.path(), "node-token"), "n1").await.unwrap();
    make_node(&first.master, "n1").await;
    let old = node.own().unwrap().issuer;
    let mut streams = Vec::new();
    for one in &all {
        let mut own = Streams::of(&one.master, &node).await;
        assert_eq!(own.issuer().await, old);
        streams.push(own);
    }

    // Asked of any, it is done by all.
    let mut trust = TrustClient::new(streams[2].admin.clone());
    let new = trust.renew_authority(RenewAuthorityRequest {}).await.unwrap().into_inner().issuer;
    assert_ne!(new, old);
    for (one, own) in all.iter().zip(&mut streams) {
        assert_eq!(own.issuer().await, new);
        assert_eq!(one.master.pki().identity().own().unwrap().issuer, new);
    }
    let only_new = all[2].master.pki().authority().pruned(i64::MAX).unwrap().bundle_pem();
    let stranger = Identity::new(None, Trust::Bundle(only_new)).unwrap();
    for own in &mut streams {
        // The agent gets one of the new CA over the connection it has, and all let it in with that
        // one and with the old one. Who knows the new CA only finds a master of it.
        let renewed = renew(&mut own.node).await.unwrap();
        assert_eq!(renewed.own().unwrap().issuer, new);
        for other in &all {
            for identity in [&node, &renewed, &stranger] {
                client_of(&other.master, identity).await;
            }
        }
    }
    for (index, writer) in streams.iter().enumerate() {
        writer.create(&format!("late-{index}")).await;
    }
    for own in &mut streams {
        for index in 0..all.len() {
            own.sees(&format!("late-{index}")).await;
        }
    }

    // A new connection between the masters, by one that starts with the new CA.
    drop(streams);
    let One { master, dir } = all.remove(1);
    master.shutdown().await.unwrap();
    let config = Config { name: Some("m1".into()), ..Config::new(dir.path()) };
    let master = Master::start(config).await.unwrap();
    master.store().linearize().await.unwrap();
    assert_eq!(master.pki().identity().own().unwrap().issuer, new);
    all.push(One { master, dir });
    for one in all {
        one.master.shutdown().await.unwrap();
    }
}
