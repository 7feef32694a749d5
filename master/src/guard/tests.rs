//! The table against the services, and the layers and buckets against hostile callers.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::{Duration, Instant};

use http_body::{Body as _, Frame};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::json;
use timonier_identity::{PeerCertificate, Subject};
use timonier_master_core::op::{Op, Txn};
use timonier_proto::{Kind, Kinded, ObjectKey};
use tonic::Code;
use tower_layer::Layer;

use super::rate::{KNOWN, UNKNOWN};
use super::receive::{RECEIVE_DEADLINE, STRANGER_BYTES_MAX};
use super::standing::RECHECK_INTERVAL;
use super::*;
use crate::caller::{CallerLayer, FindCaller};
use crate::store::{Start, StoreConfig};
use crate::tokens::{self, StoreTokens};

/// Written down last, so that all before it is in the log.
const LAST_PATH: &str = "/timonier.v1.Control/Last";
const DEADLINE: Duration = Duration::from_secs(30);

/// A method behind the guard: answers what it is made of.
#[derive(Clone)]
struct Method(fn(Request<Body>) -> Body);

impl Service<Request<Body>> for Method {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        std::future::ready(Ok(Response::new((self.0)(request))))
    }
}

/// A body of which nothing ever comes.
struct Silent;

impl http_body::Body for Silent {
    type Data = bytes::Bytes;
    type Error = Status;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Poll::Pending
    }
}

/// Longer than anything of the guard lasts.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// What comes of a body next; an end by trailers is one by that error.
async fn next(body: &mut Body) -> Option<Result<bytes::Bytes, Status>> {
    let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
    let frame = tokio::time::timeout(NEVER, frame).await.expect("something comes of it")?;
    Some(frame.and_then(|frame| match frame.into_data() {
        Ok(data) => Ok(data),
        Err(frame) => Err(Status::from_header_map(&frame.into_trailers().unwrap()).unwrap()),
    }))
}

/// A method behind the layers that every call passes.
struct Layers {
    service: FindCaller<Guarded<Method>>,
    store: Store,
    folder: tempfile::TempDir,
    kept: Kept,
}

/// Where a method keeps what it is sent.
type Kept = Arc<std::sync::Mutex<Option<Body>>>;

impl Layers {
    async fn around(method: fn(Request<Body>) -> Body) -> Self {
        Self::of(Start::First, method).await
    }

    async fn of(start: Start, method: fn(Request<Body>) -> Body) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig { start, ..StoreConfig::new(folder.path()) };
        let store = Store::open(config).await.unwrap();
        let guard = Guard::start(store.clone(), folder.path()).unwrap();
        let callers = CallerLayer::new(Arc::new(StoreTokens(store.clone())));
        let callers = callers.telling(guard.clone());
        let service = callers.layer(guard.layer(&callers).layer(Method(method)));
        Self { service, store, folder, kept: Kept::default() }
    }

    /// The code of the answer's head, and the answer.
    async fn call(&mut self, path: &str, from: &Connection, shown: &Shown) -> (Code, Body) {
        self.send(path, from, shown, Body::new(Silent)).await
    }

    async fn send(
        &mut self,
        path: &str,
        from: &Connection,
        shown: &Shown,
        body: Body,
    ) -> (Code, Body) {
        let mut request = Request::builder().uri(path).extension(from.clone());
        request = request.extension(self.kept.clone());
        if let Some((name, value)) = shown {
            request = request.header(*name, value);
        }
        let answer = self.service.call(request.body(body).unwrap()).await.unwrap();
        let status = Status::from_header_map(answer.headers());
        (status.map_or(Code::Ok, |status| status.code()), answer.into_body())
    }

    async fn log(&self) -> String {
        let path = self.folder.path().join("audit.log");
        let read = async {
            loop {
                let text = tokio::fs::read_to_string(&path).await.unwrap_or_default();
                if text.contains("\"method\":\"Last\"") {
                    return text;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, read).await.expect("the last call is written down")
    }
}

type Shown = Option<(&'static str, String)>;

fn from(address: &str, peer: Option<Subject>) -> Connection {
    let peer = peer.map(|subject| PeerCertificate {
        name: subject.name,
        groups: subject.groups,
        serial: "01".into(),
        issuer: "ca".into(),
        not_before: 0,
        not_after: i64::MAX,
    });
    Connection { remote: Some(format!("{address}:1").parse().unwrap()), peer: peer.map(Arc::new) }
}

#[tokio::test]
async fn refused_calls_are_counted_before_they_are_written_down() {
    const CALLS: usize = 3_000;
    let mut layers = Layers::around(|_| Body::empty()).await;
    let root = from("10.0.0.9", Some(Subject::person("root", &[access::SUPERUSERS])));
    let vera = from("10.0.0.4", Some(Subject::person("vera", &[])));
    let get = "/timonier.v1.Control/Get";
    let acts = Some((IMPERSONATE_USER, "root".to_owned()));
    let hostile: [(&str, Connection, Shown, Rate); 5] = [
        ("/timonier.v1.Control/Nothing", from("10.0.0.1", None), None, UNKNOWN),
        (get, from("10.0.0.2", None), acts.clone(), UNKNOWN),
        (get, from("10.0.0.3", None), Some(("authorization", "Bearer x".to_owned())), UNKNOWN),
        // Hosts have a network's worth of addresses.
        ("/timonier.v1.Control/Nothing", from("[2001:db8::0]", None), None, UNKNOWN),
        (get, vera, acts, KNOWN),
    ];
    let mut written = Vec::new();
    for (path, connection, shown, rate) in &hostile {
        let (start, mut refused) = (Instant::now(), 0_u32);
        for call in 0..CALLS {
            let mut connection = connection.clone();
            if let Some(SocketAddr::V6(source)) = &mut connection.remote {
                source.set_ip(format!("2001:db8::{call:x}").parse().unwrap());
            }
            match layers.call(path, &connection, shown).await.0 {
                Code::ResourceExhausted => {}
                Code::PermissionDenied | Code::Unauthenticated => refused += 1,
                other => panic!("{path}: {other:?}"),
            }
        }
        // However long it took: the rate is what lets them be refused with a reason.
        let most = rate.burst + start.elapsed().as_secs_f64() * rate.per_second + 1.0;
        let count = f64::from(refused);
        assert!(count <= most && count >= rate.burst, "{path}: {refused}, at most {most}");
        let source = connection.remote.unwrap().to_string();
        written.push((source.trim_end_matches(":]:1").to_owned(), refused as usize));
    }
    layers.call(LAST_PATH, &root, &None).await;
    let log = layers.log().await;
    for (source, refused) in written {
        let source = format!("\"source\":\"{source}");
        assert_eq!(log.lines().filter(|line| line.contains(&source)).count(), refused, "{source}");
    }
    let mut guessed = log.lines().filter(|line| line.contains("10.0.0.3"));
    assert!(guessed.all(|line| line.contains(r#""result":"Unauthorized""#)), "{log}");
    layers.store.shutdown().await.unwrap();
}

/// It would know of no objects, and of no rights.
#[tokio::test]
async fn a_master_that_has_not_caught_up_answers_masters_and_joiners_only() {
    let start = Start::Joining { cluster_id: "c".to_owned(), id: 7 };
    let mut layers = Layers::of(start, |_| Body::empty()).await;
    let root = from("10.0.0.9", Some(Subject::person("root", &[access::SUPERUSERS])));
    let master = from("10.0.0.1", Some(Subject::master("1", &[])));
    for (path, who, code) in [
        ("/timonier.v1.Control/Get", &root, Code::Unavailable),
        ("/timonier.v1.Control/ListMasters", &root, Code::Unavailable),
        ("/timonier.v1.Raft/Append", &root, Code::PermissionDenied),
        ("/timonier.v1.Raft/Append", &master, Code::Ok),
        ("/timonier.v1.Join/Join", &root, Code::Ok),
    ] {
        assert_eq!(layers.call(path, who, &None).await.0, code, "{path}");
    }
    layers.store.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_one_message_has_to_come_in_time() {
    // Hands the request back, so that it can be looked at.
    let mut layers = Layers::around(Request::into_body).await;
    let somebody = from("10.0.0.1", None);
    let (_, mut unary) = layers.call("/timonier.v1.Control/Create", &somebody, &None).await;
    let (_, mut stream) = layers.call("/timonier.v1.Control/Open", &somebody, &None).await;
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let late = next(&mut unary).await.unwrap().unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(started.elapsed() >= RECEIVE_DEADLINE);
    let quiet = tokio::time::timeout(RECEIVE_DEADLINE * 10, next(&mut stream)).await;
    assert!(quiet.is_err(), "a stream may be silent for as long as it likes");
    tokio::time::resume();
    layers.store.shutdown().await.unwrap();
}

#[tokio::test]
async fn who_has_shown_nothing_sends_little() {
    // Hands the request back, so that it can be looked at.
    let mut layers = Layers::around(Request::into_body).await;
    let vera = from("10.0.0.4", Some(Subject::person("vera", &[])));
    let nobody = from("10.0.0.1", None);
    for (who, bytes, is_taken) in [
        (&nobody, STRANGER_BYTES_MAX, true),
        (&nobody, STRANGER_BYTES_MAX + 1, false),
        (&vera, STRANGER_BYTES_MAX + 1, true),
    ] {
        let body = Body::new("x".repeat(bytes));
        let (_, mut sent) = layers.send("/timonier.v1.Control/Create", who, &None, body).await;
        match next(&mut sent).await.unwrap() {
            Ok(data) => assert!(is_taken && data.len() == bytes),
            Err(status) => assert!(!is_taken && status.code() == Code::ResourceExhausted),
        }
    }
    layers.store.shutdown().await.unwrap();
}

/// The service account robot of team may watch pods there.
async fn robot(store: &Store) -> Shown {
    let meta = json!({"name": "robot", "namespace": "team"});
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": meta})).unwrap();
    let rbac = "rbac.authorization.k8s.io";
    let rules = json!([{"verbs": ["watch"], "apiGroups": [""], "resources": ["pods"]}]);
    let role: Role = serde_json::from_value(json!({"metadata": meta, "rules": rules})).unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({"metadata": meta,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "robot"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "team"}]}))
    .unwrap();
    let objects = [
        tokens::new_keys().unwrap().into_object(),
        account.into_object(),
        role.into_object(),
        binding.into_object(),
    ];
    let now = jiff::Timestamp::now();
    let ops = objects.map(|object| crate::stamp::stamp(Op::Create(object), now));
    store.commit(Txn::of(ops.to_vec())).await.unwrap();
    let state = store.snapshot();
    let account = state.get::<ServiceAccount>("team", "robot").unwrap();
    let signed = tokens::sign(&state, account, &[], None, 0, now).unwrap();
    Some(("authorization", format!("Bearer {}", signed.0)))
}

#[tokio::test]
async fn a_stream_ends_with_the_right_to_it() {
    let may_watch = |request: Request<Body>| {
        let asked = request.extensions().get::<Asked>().expect("streams are asked again");
        asked.note(vec![Attributes::on("watch", Kind::Pod, "team", "")]);
        let kept = request.extensions().get::<Kept>().unwrap().clone();
        *kept.lock().unwrap() = Some(request.into_body());
        Body::new(Silent)
    };
    let (watch, open) = ("/timonier.v1.Control/Watch", "/timonier.v1.Control/Open");
    for (kind, code) in
        [(Kind::RoleBinding, Code::PermissionDenied), (Kind::ServiceAccount, Code::Unauthenticated)]
    {
        let mut layers = Layers::around(may_watch).await;
        let shown = robot(&layers.store).await;
        let somewhere = from("10.0.0.1", None);
        let (_, mut heard) = layers.call(watch, &somewhere, &shown).await;
        let (_, mut told) = layers.call(open, &somewhere, &shown).await;
        let mut sent = layers.kept.lock().unwrap().take().unwrap();
        tokio::time::pause();
        let goes_on = tokio::time::timeout(RECHECK_INTERVAL * 10, next(&mut sent)).await;
        assert!(goes_on.is_err(), "{goes_on:?}");
        tokio::time::resume();
        let key = ObjectKey::new(kind, "team", "robot");
        layers.store.commit(Txn::of(vec![Op::Remove { key, uid: None }])).await.unwrap();
        tokio::time::pause();
        for body in [&mut heard, &mut told, &mut sent] {
            let ended = next(body).await.unwrap().unwrap_err();
            assert_eq!(ended.code(), code, "{ended}");
            assert!(ended.message().starts_with("the stream has ended before its time: "));
            assert!(next(body).await.is_none());
        }
        tokio::time::resume();
        layers.store.shutdown().await.unwrap();
    }
}

#[test]
fn every_method_of_every_service_is_in_the_table() {
    let compiled: BTreeSet<String> =
        timonier_proto::METHODS.iter().map(|path| (*path).to_owned()).collect();
    let known: BTreeSet<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
    let missing: Vec<_> = compiled.difference(&known).collect();
    assert!(missing.is_empty(), "say in guard/table.rs who may call {missing:?}");
    let stale: Vec<_> = known.difference(&compiled).collect();
    assert!(stale.is_empty(), "no service has {stale:?} any more");
    assert_eq!(known.len(), METHODS.len(), "a method stands twice");
}

#[test]
fn a_bucket_gives_its_burst_and_then_its_rate() {
    let buckets = Buckets::default();
    let start = Instant::now();
    let take = |at| buckets.take_from("a".to_owned(), UNKNOWN, at);
    let at_once = (0..1000).filter(|_| take(start).is_none()).count();
    assert_eq!(at_once as f64, UNKNOWN.burst);
    let wait = take(start).unwrap();
    assert!(wait <= Duration::from_secs_f64(1.0 / UNKNOWN.per_second), "{wait:?}");
    let later = start + Duration::from_secs(1);
    let then = (0..1000).filter(|_| take(later).is_none()).count();
    assert_eq!(then as f64, UNKNOWN.per_second);
}

#[test]
fn many_callers_cost_a_bounded_amount() {
    let buckets = Buckets::default();
    let start = Instant::now();
    for index in 0..100_000_u64 {
        let now = start + Duration::from_micros(index);
        assert!(buckets.take_from(format!("user {index}"), KNOWN, now).is_none());
    }
    assert!(buckets.len() <= 16_384, "{}", buckets.len());
}

#[test]
fn superusers_are_never_kept_out() {
    let buckets = Buckets::default();
    let now = Instant::now();
    let admin = UserInfo::authenticated("admin", vec![access::SUPERUSERS.to_owned()]);
    assert!((0..5_000).all(|_| buckets.take(&admin, false, None, now).is_ok()));
    let vera = UserInfo::authenticated("vera", Vec::new());
    assert!((0..5_000).any(|_| buckets.take(&vera, false, None, now).is_err()));
    // Acting as another costs one's own tokens, those of superusers, too.
    let refused = buckets.take(&vera, true, None, now).unwrap_err();
    assert_eq!(refused.reason, Reason::TooManyRequests);
    assert!((0..5_000).any(|_| buckets.take(&admin, true, None, now).is_err()));
}
