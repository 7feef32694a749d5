//! Lists, watches and monitors.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_selected_and_paged() {
    let mut bench = Bench::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        bench.create(labelled(name, if name == "b" { "x" } else { "y" })).await.unwrap();
    }
    let mut request = ListRequest {
        kind: "ConfigMap".into(),
        label_selector: "tier=y".into(),
        limit: 2,
        ..Default::default()
    };
    let mut names = Vec::new();
    let mut remaining = Vec::new();
    loop {
        let page = bench.client.list(request.clone()).await.unwrap().into_inner();
        names.extend(
            page.items.iter().map(|j| tree(j)["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        remaining.push(page.remaining);
        if page.continue_token.is_empty() {
            break;
        }
        request.continue_token = page.continue_token;
    }
    assert_eq!((names.join(""), remaining), ("acde".to_owned(), vec![2, 0]));
    let by_field = ListRequest {
        kind: "ConfigMap".into(),
        field_selector: "metadata.name!=a,data.k=v".into(),
        ..Default::default()
    };
    assert_eq!(bench.client.list(by_field).await.unwrap().into_inner().items.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_start_resume_and_select() {
    let mut bench = Bench::start().await;
    bench.create(labelled("a", "x")).await.unwrap();
    bench.create(labelled("b", "y")).await.unwrap();
    let request = WatchRequest {
        kind: "ConfigMap".into(),
        namespace: "default".into(),
        label_selector: "tier=x".into(),
        ..Default::default()
    };
    let mut events = bench.watch(request.clone()).await;
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "a".into()));
    bench.update(&labelled("b", "x")).await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Added, "b".into()));
    let left = bench.update(&labelled("a", "z")).await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Deleted, "a".into()));
    bench.create(pod("p")).await.unwrap();
    bench.delete("ConfigMap", "b").await.unwrap();
    assert_eq!(next(&mut events).await.unwrap(), (Type::Deleted, "b".into()));
    drop(events);

    // Resumed, it begins with what came after.
    let revision: u64 = left["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let mut resumed =
        bench.watch(WatchRequest { from_revision: Some(revision), ..request.clone() }).await;
    assert_eq!(next(&mut resumed).await.unwrap(), (Type::Deleted, "b".into()));
    let future = WatchRequest { from_revision: Some(revision + 1_000_000), ..request.clone() };
    let error = bench.client.watch(future).await.map(|_| ()).unwrap_err();
    assert_eq!(ApiError::from_grpc(&error).reason, Reason::Expired);

    // A master that stops says so.
    bench.master.shutdown().await.unwrap();
    let ended = next(&mut resumed).await.unwrap_err();
    assert_eq!(ApiError::from_grpc(&ended).reason, Reason::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_are_bounded() {
    let bench = Bench::start().await;
    let rarely = MonitorRequest { interval_ms: 3_600_000, ..Default::default() };
    let open = || {
        let (mut client, request) = (bench.client.clone(), rarely.clone());
        async move { client.monitor(request).await.map(Response::into_inner) }
    };
    let mut monitors = Vec::new();
    for _ in 0..limits::MONITORS_MAX {
        monitors.push(open().await.unwrap());
    }
    refused(open().await, expect!["TooManyRequests: monitor: 256 monitors are open already"]);
    // The place of one that ends is free again.
    monitors.pop();
    let again = async { while open().await.is_err() {} };
    tokio::time::timeout(DEADLINE, again).await.expect("there is a place again");
    drop(monitors);
    bench.master.shutdown().await.unwrap();
}
