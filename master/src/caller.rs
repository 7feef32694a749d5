//! [`Caller`]: who makes a request. One layer finds it out, from the connection's certificate or a
//! bearer token, and puts it into the request's extensions.
//!
//! What a caller may do is decided elsewhere. A certificate that is not the cluster's own never
//! gets here: the handshake refuses it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either, FutureExt, Map};
use timonier_identity::{
    ANONYMOUS, GROUP_AUTHENTICATED, GROUP_MASTERS, GROUP_UNAUTHENTICATED, PeerCertificate, unix_now,
};
use tonic::Status;
use tonic::codegen::http::{self, HeaderMap, header};
use tower_layer::Layer;
use tower_service::Service;

use crate::incoming::Connection;

/// Metadata by which a master says for whom it passes a request on: the name, then the groups,
/// separated by commas. Believed from masters alone.
pub const ON_BEHALF_OF: &str = "timonier-on-behalf-of";
/// A longer list is not a caller of ours.
const ON_BEHALF_BYTES_MAX: usize = 4096;
const BEARER: &str = "Bearer ";

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub groups: Vec<String>,
    pub via: Via,
}

/// How a caller is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// By the certificate of its connection.
    Certificate(Arc<PeerCertificate>),
    /// By a bearer token.
    Token,
    /// Another master, of this name, passes the request on.
    Master { name: String },
    /// Not at all.
    Nothing,
}

impl Caller {
    /// Who showed nothing.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![GROUP_UNAUTHENTICATED.to_owned()],
            via: Via::Nothing,
        }
    }

    /// The owner of a certificate of this cluster.
    pub fn of_certificate(peer: &Arc<PeerCertificate>) -> Self {
        let via = Via::Certificate(Arc::clone(peer));
        Self::known(&peer.name, peer.groups.clone(), via)
    }

    /// Somebody whose token was found good.
    pub fn of_token(name: &str, groups: Vec<String>) -> Self {
        Self::known(name, groups, Via::Token)
    }

    fn known(name: &str, mut groups: Vec<String>, via: Via) -> Self {
        if !groups.iter().any(|group| group == GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        Self { name: name.to_owned(), groups, via }
    }

    /// The caller that the layer found; anonymous where no layer was.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_else(Self::anonymous)
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// The certificate that it speaks with itself.
    pub fn certificate(&self) -> Option<&Arc<PeerCertificate>> {
        match &self.via {
            Via::Certificate(shown) => Some(shown),
            _ => None,
        }
    }

    /// Whether it is a master of this cluster, speaking for itself.
    pub fn is_master(&self) -> bool {
        self.certificate().is_some() && self.in_group(GROUP_MASTERS)
    }

    /// The node whose agent it is.
    pub fn node(&self) -> Option<&str> {
        let by_certificate = self.certificate().is_some();
        let is_node = by_certificate && self.in_group(timonier_identity::GROUP_NODES);
        self.name.strip_prefix(timonier_identity::NODE_PREFIX).filter(|_| is_node)
    }

    /// The value of [`ON_BEHALF_OF`] by which this master passes the caller's request on.
    pub fn on_behalf(&self) -> String {
        let names = std::iter::once(&self.name).chain(&self.groups);
        names.map(|name| encode(name)).collect::<Vec<_>>().join(",")
    }

    fn from_on_behalf(text: &str, master: &Self) -> Option<Self> {
        if text.len() > ON_BEHALF_BYTES_MAX {
            return None;
        }
        let mut names = text.split(',').map(decode);
        let name = names.next()??;
        let groups = names.collect::<Option<Vec<_>>>()?;
        Some(Self { name, groups, via: Via::Master { name: master.name.clone() } })
    }
}

/// As in URLs: what is not a letter, a digit or one of `-._:/@` is `%` and two hexadecimal digits.
fn encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/@".contains(&byte);
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

/// Tells whose a bearer token is, and which certificates were revoked.
pub trait TokenReview: Send + Sync + 'static {
    /// The owner's name and groups; `Unauthenticated` with the reason where the token is not good.
    fn review(&self, token: &str) -> Result<(String, Vec<String>), Status>;

    /// Whether this certificate, which the handshake took, is good no more before its time.
    fn is_revoked(&self, _: &PeerCertificate) -> bool {
        false
    }
}

/// Knows no tokens.
#[derive(Debug, Clone, Copy)]
pub struct NoTokens;

impl TokenReview for NoTokens {
    fn review(&self, _: &str) -> Result<(String, Vec<String>), Status> {
        Err(Status::unauthenticated("the bearer token is not one of this cluster's"))
    }
}

/// Hears of the requests that are refused here: nobody behind the layer does.
pub trait Refusals: Send + Sync + 'static {
    /// What is answered: the refusal, or that there were too many of them.
    fn refused(&self, refused: Refused) -> BoxFuture<'static, Status>;
}

/// A request that showed something that is no good.
#[derive(Debug)]
pub struct Refused {
    pub path: String,
    pub headers: HeaderMap,
    pub source: Option<SocketAddr>,
    pub why: Status,
}

/// Puts a [`Caller`] into each request, or refuses it where what it shows is no good.
#[derive(Clone)]
pub struct CallerLayer {
    tokens: Arc<dyn TokenReview>,
    refusals: Option<Arc<dyn Refusals>>,
}

impl CallerLayer {
    pub fn new(tokens: Arc<dyn TokenReview>) -> Self {
        Self { tokens, refusals: None }
    }

    /// Has the refusals counted and written down.
    pub fn telling(self, refusals: impl Refusals) -> Self {
        Self { refusals: Some(Arc::new(refusals)), ..self }
    }

    /// Who makes a request with these headers over this connection.
    pub fn caller(
        &self,
        connection: Option<&Connection>,
        headers: &HeaderMap,
    ) -> Result<Caller, Status> {
        let peer = connection.and_then(|connection| connection.peer.as_ref());
        if peer.is_some_and(|peer| peer.is_person() && peer.not_after <= unix_now()) {
            // A machine's connection outlives its certificate: it has renewed that meanwhile.
            return Err(Status::unauthenticated(
                "the certificate shown has expired since; hint: timonctl certificate issue makes a new one",
            ));
        }
        if peer.is_some_and(|peer| peer.master().is_none() && self.tokens.is_revoked(peer)) {
            return Err(Status::unauthenticated(
                "the certificate shown was revoked; hint: a node joins again with a token, a person asks an administrator for a new one",
            ));
        }
        let by_certificate = peer.map(Caller::of_certificate);
        if let (Some(caller), Some(text)) = (&by_certificate, headers.get(ON_BEHALF_OF)) {
            if !caller.is_master() {
                let who = &caller.name;
                let text = format!("{who} may not speak for others; only masters may");
                return Err(Status::permission_denied(text));
            }
            let other = text.to_str().ok().and_then(|text| Caller::from_on_behalf(text, caller));
            return other.ok_or_else(|| {
                Status::invalid_argument(
                    "read the caller that a master passes on: not a list of names",
                )
            });
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(by_certificate.unwrap_or_else(Caller::anonymous));
        };
        let token = value.to_str().ok().and_then(|text| text.strip_prefix(BEARER));
        let Some(token) = token else {
            return Err(Status::unauthenticated(
                "the authorization is not understood; hint: it is `Bearer TOKEN`",
            ));
        };
        let (name, groups) = self.tokens.review(token.trim())?;
        Ok(Caller::of_token(&name, groups))
    }
}

impl fmt::Debug for CallerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for CallerLayer {
    type Service = FindCaller<S>;

    fn layer(&self, inner: S) -> FindCaller<S> {
        FindCaller { layer: self.clone(), inner }
    }
}

/// The answer of a request that goes no further.
type Answered<R, E> = Map<BoxFuture<'static, Status>, fn(Status) -> Result<R, E>>;

fn answered<R: Default, E>(status: Status) -> Result<http::Response<R>, E> {
    Ok(status.into_http())
}

/// [`CallerLayer`] around a service.
#[derive(Debug, Clone)]
pub struct FindCaller<S> {
    layer: CallerLayer,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for FindCaller<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Answered<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let connection = request.extensions().get::<Connection>();
        let why = match self.layer.caller(connection, request.headers()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                return Either::Left(self.inner.call(request));
            }
            Err(why) => why,
        };
        let answer = match &self.layer.refusals {
            None => std::future::ready(why).boxed(),
            Some(refusals) => refusals.refused(Refused {
                path: request.uri().path().to_owned(),
                source: connection.and_then(|connection| connection.remote),
                headers: std::mem::take(request.headers_mut()),
                why,
            }),
        };
        Either::Right(answer.map(answered::<R, S::Error> as fn(Status) -> _))
    }
}

/// For tests without TLS: everybody is the node that the metadata `played-node` names, n1 where
/// there is none.
#[cfg(test)]
pub(crate) fn played_node(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
    let named = request.metadata().get("played-node").and_then(|name| name.to_str().ok());
    let subject = timonier_identity::Subject::node(named.unwrap_or("n1"));
    let peer = PeerCertificate {
        name: subject.name,
        groups: subject.groups,
        serial: "01".to_owned(),
        issuer: "ca".to_owned(),
        not_before: 0,
        not_after: i64::MAX,
    };
    let caller = Caller::of_certificate(&Arc::new(peer));
    request.extensions_mut().insert(caller);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use timonier_identity::{GROUP_NODES, Subject};

    fn peer(subject: Subject) -> Connection {
        let peer = PeerCertificate {
            name: subject.name,
            groups: subject.groups,
            serial: "01".into(),
            issuer: "ca".into(),
            not_before: 0,
            not_after: 1,
        };
        Connection { remote: None, peer: Some(Arc::new(peer)) }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    struct OneToken;

    impl TokenReview for OneToken {
        fn review(&self, token: &str) -> Result<(String, Vec<String>), Status> {
            match token {
                "good" => Ok(("robot".into(), vec!["robots".into()])),
                _ => Err(Status::unauthenticated("revoked")),
            }
        }

        fn is_revoked(&self, certificate: &PeerCertificate) -> bool {
            certificate.name.ends_with(":stolen") || certificate.name.ends_with(":9")
        }
    }

    #[test]
    fn who_shows_a_revoked_certificate_is_refused_but_masters_are_not_asked() {
        let layer = CallerLayer::new(Arc::new(OneToken));
        let stolen = layer.caller(Some(&peer(Subject::node("stolen"))), &headers(&[]));
        let status = stolen.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert!(status.message().contains("was revoked; hint: a node joins again"), "{status}");
        assert!(layer.caller(Some(&peer(Subject::master("9", &[]))), &headers(&[])).is_ok());
    }

    #[test]
    fn callers_are_who_they_show_to_be() {
        let layer = CallerLayer::new(Arc::new(OneToken));
        let node = peer(Subject::node("n1"));
        let caller = layer.caller(Some(&node), &headers(&[])).unwrap();
        assert_eq!(caller.node(), Some("n1"));
        assert_eq!(caller.groups, [GROUP_NODES, GROUP_AUTHENTICATED]);
        assert_eq!(layer.caller(None, &headers(&[])).unwrap(), Caller::anonymous());
        // All of these have expired since; a machine has renewed its own meanwhile.
        let late = layer.caller(Some(&peer(Subject::admin())), &headers(&[])).unwrap_err();
        assert_eq!(late.code(), tonic::Code::Unauthenticated, "{late}");
        let robot = layer.caller(None, &headers(&[("authorization", "Bearer good")])).unwrap();
        assert_eq!((robot.name.as_str(), robot.via), ("robot", Via::Token));
        for text in ["Bearer bad", "Basic x", "good"] {
            let refused = layer.caller(Some(&node), &headers(&[("authorization", text)]));
            assert_eq!(refused.unwrap_err().code(), tonic::Code::Unauthenticated, "{text}");
        }
    }

    #[test]
    fn only_masters_speak_for_others() {
        let layer = CallerLayer::new(Arc::new(NoTokens));
        let ann = Caller::of_token("ann, of é", vec!["dev,ops".into()]);
        let passed_on = headers(&[(ON_BEHALF_OF, &ann.on_behalf())]);
        let heard = layer.caller(Some(&peer(Subject::master("2", &[]))), &passed_on).unwrap();
        assert_eq!((&heard.name, &heard.groups), (&ann.name, &ann.groups));
        assert_eq!(heard.via, Via::Master { name: "system:master:2".into() });
        assert!(!heard.is_master());
        let refused = layer.caller(Some(&peer(Subject::node("n1"))), &passed_on).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        // Nobody's word counts for nothing.
        assert_eq!(layer.caller(None, &passed_on).unwrap(), Caller::anonymous());
        for text in ["", "%zz", "a,,b"] {
            let master = peer(Subject::master("2", &[]));
            assert!(layer.caller(Some(&master), &headers(&[(ON_BEHALF_OF, text)])).is_err());
        }
    }
}
