//! A master as a process: started again, and beside another one.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_master_has_everything_and_its_watches_go_on() {
    let mut bench = Bench::start().await;
    let (_, made) = bench.apply(&deployment("web", 1)).await.unwrap();
    bench.master.shutdown().await.unwrap();
    let master = Master::start(Config::new(bench._dir.path())).await.unwrap();
    bench.client = ControlClient::new(master.dial_as(&Subject::admin()).await.unwrap());
    let read = bench.client.get(get("Deployment", "", "web")).await.unwrap().into_inner();
    assert_eq!(tree(&read.json)["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(tree(&read.json)["spec"], made["spec"]);
    // What is replayed from the log can be watched again: a client that was away misses nothing.
    let before =
        WatchRequest { kind: "Deployment".into(), from_revision: Some(1), ..Default::default() };
    let mut events = bench.client.watch(before).await.unwrap().into_inner();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "web".into()));
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_masters_do_not_share_a_port_or_a_folder() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let taken = Config { listen: bench.master.addr(), ..Config::new(dir.path()) };
    let error = Master::start(taken).await.unwrap_err().to_string();
    let port = bench.master.addr().port().to_string();
    expect!["listen on 127.0.0.1:PORT: Address already in use (os error 98); hint: another program (perhaps another master) has this port; stop it, or choose another with --listen"]
        .assert_eq(&error.replace(&port, "PORT"));
}
