use timonier_proto::v1::PortForwardRequest;

use super::*;

fn request(port: u16) -> Request {
    Request::PortForward(PortForwardRequest {
        pod_uid: "u".into(),
        namespace: "shop".into(),
        pod: "web".into(),
        port: port.into(),
    })
}

/// A port that nobody uses now.
async fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port()
}

async fn get(pod: PodView, port: u16) -> Said {
    let tool = Tool::ask(pod, request(port)).await;
    tool.say(data("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")).await;
    tool.say(Frame::HalfClose(true)).await;
    tool.hear_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_reached_by_the_pods_address() {
    let container = Container::run(&[WEB]);
    let format = "--format={{.NetworkSettings.IPAddress}}";
    let ip = docker(&["inspect", format, &container.0]).parse().unwrap();
    let pod = PodView { ip: Some(ip), ..pod(vec![container.view()]) };
    let said = loop {
        let said = get(pod.clone(), 8080).await;
        if !said.end.error.contains("refused") {
            break said;
        }
    };
    assert!(said.out.starts_with("HTTP/1.1 200 OK"), "{said:?}");
    assert_eq!((said.end.exit_code, said.end.error.as_str()), (0, ""));

    let said = get(pod.clone(), 1).await;
    let text = "connect to port 1 of pod shop/web: Connection refused";
    assert!(said.end.error.starts_with(text), "{said:?}");

    // Idle, then left.
    Tool::ask(pod, request(8080)).await.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_listens_only_inside_is_reached_too() {
    let port = free_port().await;
    let container = Container::run(&["--network=none", WEB, "--port", &port.to_string()]);
    // Nobody listens at this address outside.
    let ip = Some([127, 0, 0, 2].into());
    let pod = PodView { ip, ..pod(vec![container.view()]) };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let said = get(pod.clone(), port).await;
        if said.out.starts_with("HTTP/1.1 200 OK") {
            break;
        }
        assert!(said.end.error.contains("refused"), "{said:?}");
        assert!(tokio::time::Instant::now() < deadline, "{said:?}");
    }
}
