//! The load generator against a small server of our own.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use timonier_proto::Kind;
use tokio::net::TcpListener;

use super::*;
use crate::exercise::script::{Script, ctx_of, printed};
use crate::fields::Fields;

#[derive(Default)]
struct Server {
    requests: AtomicU64,
    connections: AtomicU64,
    /// One request at a time, each this long.
    busy: Duration,
}

impl Server {
    async fn start(self) -> (Arc<Server>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, turn) = (Arc::new(self), Arc::new(tokio::sync::Mutex::new(())));
        let counted = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.connections.fetch_add(1, Ordering::Relaxed);
                let (server, turn) = (counted.clone(), turn.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    server.clone().answer(turn.clone(), request)
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(connection);
            }
        });
        (server, address)
    }

    async fn answer(
        self: Arc<Self>,
        turn: Arc<tokio::sync::Mutex<()>>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if !self.busy.is_zero() {
            let _turn = turn.lock().await;
            tokio::time::sleep(self.busy).await;
        }
        let body = format!("web v1 pod web-{} request {number}\n", number % 2);
        let mut response = Response::new(Full::new(Bytes::from(body)));
        if request.uri().path() == "/every-third" && number % 3 == 2 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }
}

fn args(url: String, requests: u64) -> Args {
    Args {
        url,
        requests,
        interval: Span(Duration::from_millis(1)),
        concurrency: 100,
        timeout: Span(Duration::from_secs(5)),
        keepalive: false,
        method: "get".into(),
        fail_on_error: false,
        output: Some("json".into()),
    }
}

async fn report(args: Args) -> (Outcome, Value) {
    let master = Script::default().serve().await;
    let (ctx, captured) = ctx_of(&master);
    let result = run(args, &ctx).await;
    (result, serde_json::from_str(&printed(&captured).0).unwrap_or_default())
}

#[tokio::test]
async fn every_request_is_sent_and_counted_by_server() {
    let (server, address) = Server::default().start().await;
    let (result, report) = report(args(format!("http://{address}/"), 50)).await;
    result.unwrap();
    assert_eq!(report["requests"], 50);
    assert_eq!(report["ok"], 50);
    assert_eq!(report["failed"], 0);
    assert_eq!(report["servers"], json!({"web-0": 25, "web-1": 25}));
    assert_eq!(report["errors"], json!({}));
    assert!(report["duration_s"].as_f64().unwrap() >= 0.049);
    assert_eq!(server.connections.load(Ordering::Relaxed), 50, "a fresh connection each");
}

#[tokio::test]
async fn connections_are_kept_when_asked() {
    let (server, address) = Server::default().start().await;
    let (result, report) =
        report(Args { keepalive: true, concurrency: 1, ..args(address, 30) }).await;
    result.unwrap();
    assert_eq!((&report["ok"], server.requests.load(Ordering::Relaxed)), (&json!(30), 30));
    assert!(server.connections.load(Ordering::Relaxed) < 10);
}

#[tokio::test]
async fn failures_go_by_their_cause() {
    let (_, address) = Server::default().start().await;
    let failing = format!("http://{address}/every-third");
    let (result, counted) = report(Args { fail_on_error: true, ..args(failing.clone(), 30) }).await;
    assert_eq!(result, Err(crate::told(1)));
    assert_eq!((&counted["ok"], &counted["failed"]), (&json!(20), &json!(10)));
    assert_eq!(counted["errors"], json!({"status 503": 10}));
    assert_eq!(report(args(failing, 3)).await.0, Ok(()), "without the flag that is no failure");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (result, counted) = report(args(format!("http://{closed}"), 5)).await;
    result.unwrap();
    assert_eq!(counted["errors"], json!({"connection refused": 5}));
    assert_eq!(counted["p50_ms"], Value::Null);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let timeout = Span(Duration::from_millis(50));
    let (_, counted) = report(Args { timeout, ..args(url, 2) }).await;
    assert_eq!(counted["errors"], json!({"timed out": 2}));
}

/// A server that takes 20 ms a request and gets one each 5 ms falls behind by 15 ms with each.
#[tokio::test]
async fn latency_counts_from_when_a_request_was_due() {
    let busy = Duration::from_millis(20);
    let (_, address) = Server { busy, ..Server::default() }.start().await;
    for concurrency in [1, 100] {
        let interval = Span(Duration::from_millis(5));
        let (_, report) = report(Args { interval, concurrency, ..args(address.clone(), 20) }).await;
        let max_ms = report["max_ms"].as_f64().unwrap();
        assert!(max_ms >= 15.0 * 19.0, "{concurrency} in flight: {report}");
    }
}

#[tokio::test]
async fn services_are_found_by_name_and_port() {
    let master = Script::default().serve().await;
    let service = |name: &str, ip: &str| {
        json!({
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": ip, "ports": [{"port": 80, "name": "http"}, {"port": 90}]},
        })
    };
    master.put(Kind::Service, service("web", "10.96.0.7"));
    master.put(Kind::Service, service("headless", "None"));
    assert_eq!(master.get(Kind::Service, "web").unwrap().name(), "web");
    let (ctx, _) = ctx_of(&master);
    let found = async |typed: &str| match target::resolve(&ctx, typed).await {
        Ok(target) => format!("{} {} {}", target.addresses[0], target.host, target.path),
        Err(failure) => failure.to_string(),
    };
    for (typed, expected) in [
        ("svc/web", "10.96.0.7:80 web.default:80 /"),
        ("svc/web:90/a?b=c", "10.96.0.7:90 web.default:90 /a?b=c"),
        ("service/web:http?x", "10.96.0.7:80 web.default:80 /?x"),
        ("10.0.0.1:81/x", "10.0.0.1:81 10.0.0.1:81 /x"),
        ("http://[fd00::1]", "[fd00::1]:80 [fd00::1] /"),
    ] {
        assert_eq!(found(typed).await, expected, "{typed}");
    }
    for (typed, expected) in [
        ("svc/ghost", "\"ghost\" not found"),
        ("svc/web:91", "its ports are: 80, 90"),
        ("svc/headless", "headless"),
        ("https://x/", "only plain http"),
        ("ftp://x/", "only http://"),
        ("http://", "load \"http://\""),
    ] {
        let told = found(typed).await;
        assert!(told.contains(expected), "{typed}: {told}");
    }
}
