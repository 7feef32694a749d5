use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::pods::tests::fake::FakeRuntime;

/// Answers each connection with `answer` after reading a request; the requests' first lines.
async fn server(answer: &'static str) -> (u16, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, requests) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            seen.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).await.ok();
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    (port, requests)
}

async fn look(port: u16, what: serde_json::Value) -> Result<(), String> {
    let runtime = FakeRuntime::new();
    let container: Container = serde_json::from_value(json!({
        "name": "c", "ports": [{"name": "http", "containerPort": port}]
    }))
    .unwrap();
    let target = Target {
        runtime: runtime.as_ref(),
        container_id: "id",
        container: &container,
        ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    probe(target, &serde_json::from_value(what).unwrap()).await
}

#[tokio::test]
async fn http_counts_the_status_and_sends_what_it_is_told() {
    let (port, mut requests) =
        server("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").await;
    let headers = json!([{"name": "X-A", "value": "1"}]);
    let get = json!({"httpGet": {"path": "healthz", "port": "http", "httpHeaders": headers}});
    assert_eq!(look(port, get).await, Ok(()));
    let request = requests.recv().await.unwrap().to_lowercase();
    assert!(request.starts_with("get /healthz http/1.1"), "{request}");
    assert!(request.contains("x-a: 1") && request.contains(&format!("host: 127.0.0.1:{port}")));

    let (port, _requests) = server("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno").await;
    let error = look(port, json!({"httpGet": {"port": port}})).await.unwrap_err();
    assert_eq!(error, "HTTP probe failed with statuscode: 500");
    let https = json!({"httpGet": {"port": port, "scheme": "HTTPS"}});
    assert!(look(port, https).await.unwrap_err().contains("https probes are not supported"));
    let unknown = json!({"httpGet": {"port": "admin"}});
    assert!(look(port, unknown).await.unwrap_err().contains("no port named \"admin\""));
}

#[tokio::test]
async fn tcp_wants_a_connection() {
    let (port, _requests) = server("").await;
    assert_eq!(look(port, json!({"tcpSocket": {"port": port}})).await, Ok(()));
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let error = look(port, json!({"tcpSocket": {"port": port}})).await.unwrap_err();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn commands_have_a_code_and_a_deadline() {
    let run = |command: &str| json!({"exec": {"command": [command]}, "timeoutSeconds": 2});
    assert_eq!(look(0, run("true")).await, Ok(()));
    assert!(look(0, run("false")).await.unwrap_err().starts_with("command exited with code 1"));
    let begun = tokio::time::Instant::now();
    assert_eq!(look(0, run("hang")).await.unwrap_err(), "no answer within 2 s");
    assert_eq!(begun.elapsed().as_secs(), 2);
}
