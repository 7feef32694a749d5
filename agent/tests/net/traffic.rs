//! Who reaches whom: pods, services, node ports, host ports, isolated networks.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use timonier_agent::net::Network;
use timonier_agent_core::net::{
    DesiredNet, Endpoint, HostPortPlan, Protocol, ServicePlan, ServicePortPlan,
};

use crate::machine::{MACHINE, Machine, OUTSIDE, PORT, Pod, ask, config, set_bridge_filter};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A refusal is told, not waited for.
const REFUSAL_DELAY_MAX: Duration = Duration::from_millis(500);

fn service(number: u8, endpoints: &[Endpoint]) -> ServicePlan {
    let port = |protocol| ServicePortPlan {
        port: 80,
        protocol,
        node_port: Some(30000 + u16::from(number)),
        endpoints: endpoints.to_vec(),
    };
    ServicePlan {
        name: format!("service-{number}"),
        ns: "default".into(),
        cluster_ip: Some(service_ip(number)),
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        client_ip_affinity: false,
    }
}

fn service_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, number)
}

fn of(pod: &Pod) -> Endpoint {
    (pod.ip, PORT)
}

/// Gives all agents the same rules, as masters do, and waits for them.
async fn program(networks: &[&Network], desired: &DesiredNet) {
    for network in networks {
        let generation = network.sync(desired.clone());
        network.synced(generation).await.unwrap();
    }
}

fn name(answer: std::io::Result<(String, IpAddr)>) -> String {
    answer.unwrap().0
}

/// Two agents on a machine whose firewall is Docker's.
async fn two_agents() -> (Network, Network) {
    (Network::start(config(1)).await.unwrap(), Network::start(config(2)).await.unwrap())
}

fn machine(bridge_filter: bool) -> Option<Machine> {
    let machine = Machine::new();
    if !set_bridge_filter(&machine, bridge_filter) {
        eprintln!("this kernel has no br_netfilter: there is no filter to switch on");
        return None;
    }
    machine.sh("iptables -P FORWARD DROP; iptables -N DOCKER-USER; \
                iptables -A DOCKER-USER -j RETURN; iptables -I FORWARD -j DOCKER-USER");
    Some(machine)
}

#[test]
fn pods_services_and_ports_with_frames_routed() {
    if let Some(machine) = machine(false) {
        pods_services_and_ports(&machine);
    }
}

#[test]
fn pods_services_and_ports_with_bridged_frames_filtered() {
    if let Some(machine) = machine(true) {
        pods_services_and_ports(&machine);
    }
}

fn pods_services_and_ports(machine: &Machine) {
    machine.block_on(move || async move {
        let (one, two) = two_agents().await;
        let a = Pod::start(&one, "a").await;
        let b = Pod::start(&one, "b").await;
        let c = Pod::start(&two, "c").await;
        check_pods(&a, &b, &c);
        let desired = DesiredNet {
            services: vec![
                service(1, &[of(&a)]),
                service(2, &[of(&b)]),
                service(3, &[of(&c)]),
                service(4, &[of(&a), of(&b), of(&c)]),
                service(5, &[]),
            ],
            ..DesiredNet::default()
        };
        program(&[&one, &two], &desired).await;
        check_services(&a, &b, &c);
        check_host(&a, &c);
        check_spread(&a);
        check_refusals(&a);
    });
}

fn check_pods(a: &Pod, b: &Pod, c: &Pod) {
    for (from, to) in [(a, b), (a, c), (c, a), (b, a)] {
        let (_, source) = from.ask(to.ip, PORT).unwrap();
        assert_eq!(source, IpAddr::V4(from.ip), "pods see each other's own addresses");
    }
    assert_eq!(name(a.ask(a.ip, PORT)), "a");
    assert_eq!(name(ask(c.ip, PORT)), "c", "the host reaches pods");
    let (outside, source) = a.ask(OUTSIDE, PORT).unwrap();
    assert_eq!((outside.as_str(), source), ("outside", IpAddr::V4(MACHINE)), "masqueraded");
}

fn check_services(a: &Pod, b: &Pod, c: &Pod) {
    for (number, target) in [(1, "a"), (2, "b"), (3, "c")] {
        let node_port = 30000 + u16::from(number);
        for from in [a, b, c] {
            assert_eq!(name(from.ask(service_ip(number), 80)), target);
            assert_eq!(name(from.namespace.ask_udp(service_ip(number), 80)), target);
            assert_eq!(name(from.ask(MACHINE, node_port)), target);
            assert_eq!(name(from.ask(Ipv4Addr::new(10, 244, 1, 1), node_port)), target);
        }
    }
    let (_, source) = a.ask(service_ip(2), 80).unwrap();
    assert_eq!(source, IpAddr::V4(a.ip), "a service keeps the client's address");
    let (_, source) = a.ask(service_ip(1), 80).unwrap();
    assert_ne!(source, IpAddr::V4(a.ip), "but not of a pod that meets itself");
}

fn check_host(a: &Pod, c: &Pod) {
    for (number, target) in [(1, "a"), (3, "c")] {
        let node_port = 30000 + u16::from(number);
        assert_eq!(name(ask(service_ip(number), 80)), target);
        assert_eq!(name(ask(LOCALHOST, node_port)), target);
        assert_eq!(name(ask(Ipv4Addr::new(127, 0, 0, 2), node_port)), target);
        assert_eq!(name(ask(MACHINE, node_port)), target);
    }
    assert_eq!(name(ask(a.ip, PORT)), "a");
    assert_eq!(name(ask(c.ip, PORT)), "c");
}

fn check_spread(a: &Pod) {
    const ASKED: usize = 150;
    for asked_by_pod in [true, false] {
        let mut shares = BTreeMap::<String, usize>::new();
        for _ in 0..ASKED {
            let answer =
                if asked_by_pod { a.ask(service_ip(4), 80) } else { ask(LOCALHOST, 30004) };
            *shares.entry(name(answer)).or_default() += 1;
        }
        // Four standard deviations: 50 ± 23.
        assert!(shares.len() == 3 && shares.values().all(|n| (27..=73).contains(n)), "{shares:?}");
    }
}

fn check_refusals(a: &Pod) {
    let nobody = service_ip(99);
    for (ip, port) in [(service_ip(5), 80), (service_ip(1), 81), (nobody, 80), (MACHINE, 30005)] {
        for from_pod in [true, false] {
            let start = Instant::now();
            let answer = if from_pod { a.ask(ip, port) } else { ask(ip, port) };
            let error = answer.expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}:{port} {error}");
            assert!(start.elapsed() < REFUSAL_DELAY_MAX, "{ip}:{port} {:?}", start.elapsed());
        }
    }
    assert_eq!(ask(LOCALHOST, 30005).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let error = a.namespace.ask_udp(service_ip(5), 80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "datagrams too: {error}");
}

#[test]
fn node_ports_and_host_ports_from_outside() {
    let machine = machine(true).or_else(|| machine(false)).unwrap();
    let (one, two, a, c) = machine.block_on(|| async {
        let (one, two) = two_agents().await;
        let a = Pod::start(&one, "a").await;
        let c = Pod::start(&two, "c").await;
        let services = vec![service(1, &[of(&a)]), service(3, &[of(&c)]), service(5, &[])];
        let desired = DesiredNet { services, ..DesiredNet::default() };
        let host_port = |host_ip, port, pod: &Pod| HostPortPlan {
            host_ip,
            port,
            protocol: Protocol::Tcp,
            target: of(pod),
        };
        let ports_one = vec![
            host_port(None, 8081, &a),
            host_port(Some(LOCALHOST), 8082, &a),
            host_port(Some(MACHINE), 8083, &a),
        ];
        program(&[&one], &DesiredNet { host_ports: ports_one, ..desired.clone() }).await;
        let ports_two = vec![host_port(Some(Ipv4Addr::UNSPECIFIED), 8084, &c)];
        program(&[&two], &DesiredNet { host_ports: ports_two, ..desired }).await;
        for (ip, port, target) in [
            (LOCALHOST, 8081, "a"),
            (MACHINE, 8081, "a"),
            (LOCALHOST, 8082, "a"),
            (MACHINE, 8083, "a"),
            (LOCALHOST, 8084, "c"),
        ] {
            assert_eq!(name(ask(ip, port)), target, "{ip}:{port}");
        }
        assert!(ask(MACHINE, 8082).is_err(), "only at the address that was asked for");
        assert!(ask(LOCALHOST, 8083).is_err());
        assert_eq!(name(a.ask(MACHINE, 8081)), "a", "a pod meets itself through its host port");
        assert_eq!(name(c.ask(MACHINE, 8081)), "a");
        (one, two, a, c)
    });
    for (port, target) in [(30001, "a"), (30003, "c"), (8081, "a"), (8083, "a"), (8084, "c")] {
        let (who, source) = machine.outside.ask(MACHINE, port).unwrap();
        assert_eq!(who, target, "port {port}");
        assert_eq!(source, IpAddr::V4(OUTSIDE), "the client's address is kept");
    }
    let refused = machine.outside.ask(MACHINE, 30005).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop((one, two, a, c));
}

#[test]
fn isolated_networks_keep_others_out() {
    let machine = machine(true).or_else(|| machine(false)).unwrap();
    let networks = machine.block_on(|| async {
        let (one, two) = two_agents().await;
        let member = Pod::start(&one, "member").await;
        let friend = Pod::start(&two, "friend").await;
        let stranger = Pod::start(&one, "stranger").await;
        let far_stranger = Pod::start(&two, "far").await;
        let desired = DesiredNet {
            services: vec![service(1, &[of(&member)]), service(2, &[of(&friend)])],
            isolated: [("orchestrateurtest".to_owned(), [member.ip, friend.ip].into())].into(),
            ..DesiredNet::default()
        };
        program(&[&one, &two], &desired).await;
        assert_eq!(name(friend.ask(member.ip, PORT)), "member");
        assert_eq!(name(member.ask(friend.ip, PORT)), "friend");
        assert_eq!(name(friend.ask(service_ip(1), 80)), "member");
        assert_eq!(name(member.ask(service_ip(1), 80)), "member", "itself");
        for stranger in [&stranger, &far_stranger] {
            for target in [&member, &friend] {
                assert!(stranger.ask(target.ip, PORT).is_err(), "directly");
                assert!(stranger.namespace.ask_udp(target.ip, PORT).is_err());
            }
            assert!(stranger.ask(service_ip(1), 80).is_err(), "through a service");
            assert!(stranger.ask(service_ip(2), 80).is_err());
            assert_eq!(name(stranger.ask(MACHINE, 30001)), "member", "through a node port");
        }
        assert_eq!(name(ask(member.ip, PORT)), "member", "the host");
        assert_eq!(name(ask(service_ip(2), 80)), "friend");
        assert_eq!(name(ask(LOCALHOST, 30002)), "friend");
        assert_eq!(name(member.ask(stranger.ip, PORT)), "stranger", "going out is free");
        (one, two, member, friend, stranger, far_stranger)
    });
    assert_eq!(name(machine.outside.ask(MACHINE, 30002)), "friend");
    machine.outside.run(|| {
        std::process::Command::new("ip")
            .args(["route", "add", "10.244.0.0/16", "via", "198.51.100.1"])
            .status()
            .unwrap()
    });
    assert!(machine.outside.ask(networks.2.ip, PORT).is_err(), "not around the node port");
    assert_eq!(name(machine.outside.ask(networks.4.ip, PORT)), "stranger");
}

#[test]
fn connections_outlive_their_endpoint_in_the_rules() {
    use std::io::{Read, Write};
    let machine = machine(true).or_else(|| machine(false)).unwrap();
    machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let a = Pod::start(&network, "a").await;
        let b = Pod::start(&network, "b").await;
        let with = |endpoints: &[Endpoint]| DesiredNet {
            services: vec![ServicePlan {
                ports: vec![ServicePortPlan {
                    port: 90,
                    protocol: Protocol::Tcp,
                    node_port: None,
                    endpoints: endpoints.to_vec(),
                }],
                ..service(1, &[])
            }],
            ..DesiredNet::default()
        };
        let listener =
            a.namespace.run(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).unwrap());
        program(&[&network], &with(&[(a.ip, 9090)])).await;
        let mut client = b.namespace.run(|| {
            std::net::TcpStream::connect_timeout(
                &(service_ip(1), 90).into(),
                Duration::from_secs(2),
            )
            .unwrap()
        });
        let (mut server, _) = listener.accept().unwrap();
        program(&[&network], &with(&[])).await;
        assert!(b.ask(service_ip(1), 90).is_err(), "new connections are refused");
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        server.write_all(b"still here").unwrap();
        let mut buffer = [0; 10];
        client.read_exact(&mut buffer).unwrap();
        client.write_all(b"me too").unwrap();
        server.read_exact(&mut buffer[..6]).unwrap();
    });
}

#[test]
fn with_affinity_a_client_stays() {
    let machine = machine(true).or_else(|| machine(false)).unwrap();
    machine.block_on(|| async {
        let (one, two) = two_agents().await;
        let mut pods = Vec::new();
        for pod in ["a", "b", "c", "d"] {
            pods.push(Pod::start(if pod < "c" { &one } else { &two }, pod).await);
        }
        let endpoints: Vec<_> = pods.iter().map(of).collect();
        let sticky = ServicePlan { client_ip_affinity: true, ..service(1, &endpoints) };
        program(&[&one, &two], &DesiredNet { services: vec![sticky], ..DesiredNet::default() })
            .await;
        for pod in &pods {
            let first = name(pod.ask(service_ip(1), 80));
            for _ in 0..10 {
                assert_eq!(name(pod.ask(service_ip(1), 80)), first);
            }
        }
    });
}
