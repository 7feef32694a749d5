use timonier_proto::v1::LogsRequest;

use super::*;

fn request() -> LogsRequest {
    LogsRequest { pod_uid: "u".into(), pod: "web".into(), ..Default::default() }
}

async fn read(container: &Container, request: LogsRequest) -> Said {
    let tool = Tool::ask(pod(vec![container.view()]), Request::Logs(request)).await;
    tool.hear_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_log_that_were_asked_for() {
    let script = "echo one; echo two >&2; sleep 0.05; echo three";
    let container = Container::run(&["--network=none", DEBIAN, "sh", "-c", script]);
    docker(&["wait", &container.0]);

    let all = read(&container, request()).await;
    let mut lines: Vec<&str> = all.out.lines().collect();
    lines[..2].sort_unstable();
    assert_eq!(lines, ["one", "two", "three"], "both outputs");
    assert_eq!((all.end.exit_code, all.end.error.as_str(), all.error.as_str()), (0, "", ""));

    let last = read(&container, LogsRequest { tail_lines: Some(1), ..request() }).await;
    assert_eq!(last.out, "three\n");
    let cut = read(&container, LogsRequest { limit_bytes: Some(5), ..request() }).await;
    assert_eq!(cut.out.len(), 5);
    let dated = read(&container, LogsRequest { timestamps: true, ..request() }).await;
    let (time, rest) = dated.out.lines().last().unwrap().split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(rest, "three");
    let later = jiff::Timestamp::now().as_millisecond() + 3_600_000;
    let none = read(&container, LogsRequest { since_unix_ms: Some(later), ..request() }).await;
    assert_eq!(none.out, "");
    // It follows to the end, which is over.
    let followed = read(&container, LogsRequest { follow: true, ..request() }).await;
    assert_eq!(followed.out.lines().count(), 3);

    let view =
        ContainerView { previous_id: Some(container.0.clone()), id: None, ..container.view() };
    let previous = LogsRequest { previous: true, container: "c".into(), ..request() };
    let tool = Tool::ask(pod(vec![view]), Request::Logs(previous.clone())).await;
    assert_eq!(tool.hear_all().await.out.lines().count(), 3);
    let none = read(&container, previous).await;
    let text = "previous terminated container \"c\" in pod \"web\" not found";
    assert_eq!(none.end.error, text);

    let id = container.0.clone();
    let view = container.view();
    drop(container);
    let tool = Tool::ask(pod(vec![view]), Request::Logs(request())).await;
    let gone = tool.hear_all().await.end.error;
    assert!(gone.contains("No such container") && gone.contains(&id), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_goes_on_until_someone_leaves() {
    let container = Container::run(&["--network=none", WEB, "--print-every-ms", "20"]);
    let follow = LogsRequest { follow: true, ..request() };
    let mut tool = Tool::ask(pod(vec![container.view()]), Request::Logs(follow.clone())).await;
    let mut out = String::new();
    while out.lines().count() < 5 {
        out += &tool.hear_until("\n").await;
    }
    tool.leave().await;

    let mut tool = Tool::ask(pod(vec![container.view()]), Request::Logs(follow)).await;
    // The tool has no more to say, but listens.
    tool.say(Frame::HalfClose(true)).await;
    tool.hear_until("\n").await;
    docker(&["kill", &container.0]);
    assert_eq!(tool.hear_all().await.end.error, "");
}
