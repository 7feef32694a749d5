//! Real handshakes over loopback: who is believed, who is refused, and with what words.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use timonier_identity::{
    Authority, Bounds, Credentials, DialOptions, GROUP_NODES, Identity, Lifetimes, PeerCertificate,
    Subject, Trust, dial, explain, incoming_within, install_provider, unix_now,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::StreamExt;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority() -> Authority {
    Authority::create(unix_now(), &Lifetimes::default()).unwrap()
}

fn issue(authority: &Authority, subject: Subject) -> Credentials {
    authority.issue(&subject, unix_now(), DAY).unwrap()
}

fn master(authority: &Authority) -> Identity {
    let credentials = issue(authority, Subject::master("1", &["127.0.0.1".into()]));
    Identity::new(Some(credentials), Trust::Bundle(authority.bundle_pem())).unwrap()
}

fn client(authority: &Authority, credentials: Option<Credentials>) -> Identity {
    Identity::new(credentials, Trust::Bundle(authority.bundle_pem())).unwrap()
}

/// Who the server saw, or why either side refused the other.
type Met = Result<Option<PeerCertificate>, String>;

/// One handshake, and a byte each way.
async fn meet(server: &Identity, client: &Identity) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server.server_config().expect("a server's identity"));
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        let seen = chain.map(|chain| PeerCertificate::from_der(&chain[0]).unwrap());
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.shutdown().await?;
        io::Result::Ok(seen)
    });
    let talking = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(timonier_identity::MASTER_NAME).unwrap();
        let mut stream = TlsConnector::from(client.client_config()).connect(name, stream).await?;
        stream.write_u8(7).await?;
        stream.read_u8().await
    };
    let told: io::Result<u8> = talking.await;
    let told = told.map_err(|error| explain(&error).unwrap());
    let seen = serving.await.unwrap();
    assert_eq!(told?, 7);
    Ok(seen.unwrap())
}

#[tokio::test]
async fn each_knows_the_other_by_its_certificate() {
    let ca = authority();
    let node = client(&ca, Some(issue(&ca, Subject::node("n1"))));
    let seen = meet(&master(&ca), &node).await.unwrap().unwrap();
    assert_eq!(seen.node(), Some("n1"));
    assert_eq!(seen.master(), None);
    assert_eq!(seen.groups, [GROUP_NODES]);
    assert_eq!(node.own().unwrap(), seen);
    let person = Subject::person("ann", &["dev", "ops"]);
    let seen = meet(&master(&ca), &client(&ca, Some(issue(&ca, person)))).await.unwrap();
    assert_eq!(seen.unwrap().groups, ["dev", "ops"]);
    assert_eq!(meet(&master(&ca), &client(&ca, None)).await.unwrap(), None);
}

#[tokio::test]
async fn strangers_are_refused() {
    let (ca, other) = (authority(), authority());
    let why = meet(&master(&other), &client(&ca, None)).await.unwrap_err();
    assert!(why.starts_with("its certificate is not of the cluster"), "{why}");
    let forged = client(&ca, Some(issue(&other, Subject::admin())));
    let why = meet(&master(&ca), &forged).await.unwrap_err();
    assert!(why.contains("not of its cluster"), "{why}");
    // A node of the cluster that plays the master.
    let node = client(&ca, Some(issue(&ca, Subject::node("n1"))));
    let why = meet(&node, &client(&ca, None)).await.unwrap_err();
    assert!(why.starts_with("what answers there is not a master"), "{why}");
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let ca = authority();
    let expired = |subject| {
        let then = unix_now() - 3600;
        Some(ca.issue(&subject, then, Duration::from_secs(60)).unwrap())
    };
    let why = meet(&master(&ca), &client(&ca, expired(Subject::node("n1")))).await.unwrap_err();
    assert!(why.contains("refuses the certificate shown to it: expired"), "{why}");
    let old = client(&ca, expired(Subject::master("1", &[])));
    let why = meet(&old, &client(&ca, None)).await.unwrap_err();
    assert!(why.starts_with("its certificate has expired"), "{why}");
}

#[tokio::test]
async fn a_token_s_hash_is_enough_to_know_the_master() {
    let (ca, other) = (authority(), authority());
    let pinned =
        |ca: &Authority| Identity::new(None, Trust::Pinned(ca.ca_hash().unwrap())).unwrap();
    assert_eq!(meet(&master(&ca), &pinned(&ca)).await, Ok(None));
    assert_eq!(master(&ca).ca_hash().unwrap(), ca.ca_hash().unwrap());
    let why = meet(&master(&ca), &pinned(&other)).await.unwrap_err();
    assert!(why.starts_with("its certificate is not of the cluster"), "{why}");
}

#[tokio::test]
async fn what_is_replaced_online_is_used_by_the_next_handshake() {
    let ca = authority();
    let server = master(&ca);
    let shared = server.clone();
    let first = meet(&server, &client(&ca, None)).await;
    assert_eq!(first, Ok(None));
    let other = authority();
    let credentials = issue(&other, Subject::master("1", &[]));
    shared.replace(Some(credentials), Trust::Bundle(other.bundle_pem())).unwrap();
    assert!(meet(&server, &client(&ca, None)).await.is_err());
    assert_eq!(meet(&server, &client(&other, None)).await, Ok(None));
    // What cannot be read changes nothing.
    assert!(shared.replace(None, Trust::Bundle("nonsense".into())).is_err());
    assert_eq!(meet(&server, &client(&other, None)).await, Ok(None));
}

#[tokio::test]
async fn a_new_ca_stands_beside_the_old_one_until_its_last_certificate_expired() {
    let lifetimes = Lifetimes { person: DAY, machine: DAY, ..Lifetimes::default() };
    let old = Authority::create(unix_now(), &lifetimes).unwrap();
    let new = old.renewed(unix_now(), &lifetimes).unwrap();
    let newest = new.renewed(unix_now(), &lifetimes).unwrap();
    let read = Authority::from_parts(&newest.to_parts()).unwrap();
    assert!(read == newest);
    for serving in [&new, &newest] {
        for knowing in [&old, &new] {
            // Certificates of either, trust in either, and tokens of either.
            let known = client(knowing, Some(issue(knowing, Subject::node("n1"))));
            assert!(meet(&master(serving), &known).await.is_ok());
            let pinned = Trust::Pinned(knowing.ca_hash().unwrap());
            let joining = Identity::new(None, pinned).unwrap();
            assert!(meet(&master(serving), &joining).await.is_ok());
        }
    }
    assert!(newest.pruned(unix_now()).is_none());
    let later = newest.pruned(unix_now() + 2 * 24 * 3600).unwrap();
    assert!(later.previous().unwrap().is_empty());
    let forgotten = client(&later, Some(issue(&old, Subject::node("n1"))));
    assert!(meet(&master(&later), &forgotten).await.is_err());
}

#[tokio::test]
async fn a_dial_says_what_is_wrong() {
    let ca = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let identity = client(&ca, None);
    let why = dial(&address, &identity, &DialOptions::default()).await.unwrap_err().to_string();
    assert_eq!(why, "what answers there does not speak TLS");
    plain.abort();
    let _ = plain.await;
    let why = dial(&address, &identity, &DialOptions::default()).await.unwrap_err().to_string();
    assert_eq!(why, "connection refused");
    let why = dial("no address", &identity, &DialOptions::default()).await.unwrap_err();
    assert!(why.to_string().contains("is not an address"), "{why}");
}

#[test]
fn the_provider_is_installed_once_and_for_all() {
    install_provider();
    install_provider();
    let installed = CryptoProvider::get_default();
    assert!(installed.is_some());
    // Builders that choose the provider by themselves find exactly one.
    let _ = ClientConfig::builder();
}

/// A listener with few places, whose handshakes have all the time in the world.
async fn crowded(bounds: Bounds, identity: Identity) -> SocketAddr {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut accepted = incoming_within(listener, identity, bounds);
    tokio::spawn(async move {
        // Whoever is let in stays, and is greeted with a byte.
        let mut open = Vec::new();
        while let Some(Ok(mut connection)) = accepted.next().await {
            connection.write_u8(7).await.unwrap();
            connection.flush().await.unwrap();
            open.push(connection);
        }
    });
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn tcp(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether somebody from that address is let in.
async fn knock(
    from: [u8; 4],
    to: SocketAddr,
    who: &Identity,
) -> io::Result<(u8, TlsStream<TcpStream>)> {
    let name = ServerName::try_from(timonier_identity::MASTER_NAME).unwrap();
    let connector = TlsConnector::from(who.client_config());
    let mut stream = connector.connect(name, tcp(from, to).await).await?;
    Ok((stream.read_u8().await?, stream))
}

const DEADLINE: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn silent_connections_of_one_address_hold_up_no_other() {
    let ca = authority();
    let bounds = Bounds {
        handshake_deadline: NEVER,
        handshakes: 4,
        handshakes_per_address: 2,
        ..Bounds::default()
    };
    let to = crowded(bounds, master(&ca)).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tcp([127, 0, 0, 2], to).await);
    }
    let nobody = client(&ca, None);
    let let_in = timeout(DEADLINE, knock([127, 0, 0, 3], to, &nobody)).await;
    assert_eq!(let_in.expect("it is not held up").unwrap().0, 7);
    // Their own address has its turns again when they go.
    drop(silent);
    let let_in = timeout(DEADLINE, knock([127, 0, 0, 2], to, &nobody)).await;
    assert_eq!(let_in.expect("its turn comes").unwrap().0, 7);
}

#[tokio::test]
async fn connections_without_a_certificate_are_bounded_by_address() {
    let ca = authority();
    let bounds = Bounds { strangers_per_address: 3, ..Bounds::default() };
    let to = crowded(bounds, master(&ca)).await;
    let (nobody, node) = (client(&ca, None), client(&ca, Some(issue(&ca, Subject::node("n1")))));
    let from = [127, 0, 0, 2];
    let mut open = Vec::new();
    // Behind one address, any number of agents: they are known once their handshake is done.
    for _ in 0..10 {
        open.push(knock(from, to, &node).await.unwrap());
    }
    for _ in 0..3 {
        open.push(knock(from, to, &nobody).await.unwrap());
    }
    assert!(knock(from, to, &nobody).await.is_err());
    knock([127, 0, 0, 3], to, &nobody).await.unwrap();
    drop(open);
}
