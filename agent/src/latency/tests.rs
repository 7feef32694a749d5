//! Against servers on this machine, in real time: what is measured are real connections.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers after a while, `None` never. Counts how many ask at a time, at most.
struct Server {
    address: SocketAddr,
    most_at_once: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    async fn start(answer: &'static str, after: Option<Duration>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), most_at_once.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let now = now.clone();
                tokio::spawn(async move {
                    serve(stream, answer, after).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, most_at_once, _task: AbortOnDropHandle::new(task) }
    }

    fn target(&self, path: Option<&str>, deadline_ms: u32) -> Target {
        target(self.address, path, deadline_ms)
    }
}

/// Until the client is gone.
async fn serve(mut stream: TcpStream, answer: &str, after: Option<Duration>) {
    let mut request = vec![0; 4096];
    let read = stream.read(&mut request).await.unwrap_or(0);
    if read > 0
        && let Some(after) = after
    {
        assert!(request.starts_with(b"GET /x HTTP/1.1\r\n"), "{request:?}");
        sleep(after).await;
        let _ = stream.write_all(answer.as_bytes()).await;
    }
    let _ = stream.read(&mut request).await;
}

fn target(address: SocketAddr, path: Option<&str>, deadline_ms: u32) -> Target {
    Target {
        uid: "u".into(),
        namespace: "shop".into(),
        pod: "web-1".into(),
        ip: address.ip(),
        measurements: vec![LatencyMeasurement {
            policy: "web".into(),
            port: address.port(),
            path: path.map(str::to_owned),
            deadline_ms,
        }],
    }
}

/// At least so many beats.
async fn beats(target: Target, count: usize) -> Vec<LatencyBeat> {
    let (sender, mut batches) = mpsc::channel(8);
    let latency = Latency::start(sender);
    latency.set(vec![target]);
    let mut beats = Vec::new();
    while beats.len() < count {
        beats.extend(timeout(PATIENCE, batches.recv()).await.unwrap().unwrap());
    }
    beats
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test(flavor = "multi_thread")]
async fn a_good_server_is_measured_ten_times_a_second() {
    let server = Server::start(GOOD, Some(Duration::ZERO)).await;
    let start = Instant::now();
    let beats = beats(server.target(Some("/x"), 1000), 10).await;
    assert!(start.elapsed() > BEAT_INTERVAL * 8, "{:?}", start.elapsed());
    let first = &beats[0];
    assert_eq!((&*first.namespace, &*first.policy, &*first.pod), ("shop", "web", "web-1"));
    assert!(first.at_unix_ms > 1_600_000_000_000, "{first:?}");
    assert!(beats.iter().all(|beat| !beat.failed && beat.latency_us > 0), "{beats:?}");
    let fast = beats.iter().filter(|beat| beat.latency_us < 50_000).count();
    assert!(fast > 5, "{beats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_asked_once_at_a_time_and_shows_its_latency_each_beat() {
    let server = Server::start(GOOD, Some(Duration::from_millis(350))).await;
    let beats = beats(server.target(Some("/x"), 5000), 12).await;
    let answered = beats.iter().position(|beat| beat.latency_us >= 350_000).unwrap();
    assert!(answered <= 4, "{beats:?}");
    assert!(beats[answered..].iter().all(|beat| beat.latency_us >= 350_000), "{beats:?}");
    assert!(beats.iter().all(|beat| !beat.failed), "{beats:?}");
    assert_eq!(server.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_shows_before_its_deadline_and_fails_at_it() {
    let server = Server::start(GOOD, None).await;
    let beats = beats(server.target(Some("/x"), 450), 8).await;
    assert!(!beats[0].failed && beats[0].latency_us < 450_000, "{beats:?}");
    let failed = beats.iter().position(|beat| beat.failed).unwrap();
    assert!((1..=5).contains(&failed), "{beats:?}");
    assert!(beats[..failed].is_sorted_by_key(|beat| beat.latency_us), "{beats:?}");
    assert!(beats[failed..].iter().all(|beat| beat.latency_us == 450_000), "{beats:?}");
    assert_eq!(server.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_refusals_fail_with_the_deadline_as_latency() {
    let error = Server::start("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", Some(Duration::ZERO));
    let cut = Server::start("HTTP/1.1 200 OK\r\nContent-Le", Some(Duration::ZERO));
    let (error, cut) = (error.await, cut.await);
    let refusing = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody = refusing.local_addr().unwrap();
    drop(refusing);
    for target in [
        error.target(Some("x"), 1500),
        cut.target(Some("/x"), 150),
        target(nobody, Some("/x"), 1500),
        target(nobody, None, 1500),
    ] {
        let deadline_us = target.measurements[0].deadline_ms * 1000;
        let beats = beats(target, 3).await;
        let failed: Vec<_> = beats.iter().filter(|beat| beat.failed).collect();
        assert!(!failed.is_empty(), "{beats:?}");
        assert!(failed.iter().all(|beat| beat.latency_us == deadline_us), "{beats:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_an_answer_and_a_connection_is_enough_for_tcp() {
    let moved = "HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n";
    let moved = Server::start(moved, Some(Duration::ZERO)).await;
    let silent = Server::start(GOOD, None).await;
    for target in [moved.target(Some("/x"), 1000), silent.target(None, 1000)] {
        let beats = beats(target, 3).await;
        assert!(beats.iter().all(|beat| !beat.failed), "{beats:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_is_what_is_measured() {
    let server = Server::start(GOOD, Some(Duration::ZERO)).await;
    let (sender, mut batches) = mpsc::channel(1);
    let latency = Latency::start(sender);
    let target = server.target(Some("/x"), 1000);
    latency.set(vec![target.clone()]);
    let id = |latency: &Latency| {
        latency
            .measured
            .lock()
            .unwrap()
            .values()
            .map(|task| task.abort_handle().id())
            .collect::<Vec<_>>()
    };
    let before = id(&latency);
    assert_eq!(before.len(), 1);
    latency.set(vec![target.clone()]);
    assert_eq!(id(&latency), before, "undisturbed");

    let moved = Target { ip: Ipv4Addr::new(127, 0, 0, 2).into(), ..target };
    latency.set(vec![moved]);
    assert_ne!(id(&latency), before);
    timeout(PATIENCE, batches.recv()).await.unwrap().unwrap();

    latency.set(Vec::new());
    assert!(id(&latency).is_empty());
    drop(latency);
    // What was measured may still come; then it is over.
    while timeout(PATIENCE, batches.recv()).await.unwrap().is_some() {}
}
