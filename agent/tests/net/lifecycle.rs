//! Starting, starting again, attaching again, cleaning up.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use futures::StreamExt;
use timonier_agent::net::{NetConfig, NetError, Network, remove};
use timonier_agent_core::net::{DesiredNet, Protocol, ServicePlan, ServicePortPlan};
use tokio::net::TcpStream;

use crate::machine::{Machine, Namespace, PORT, Pod, config};

fn one_service(pod: &Pod) -> DesiredNet {
    DesiredNet {
        services: vec![ServicePlan {
            name: "web".into(),
            ns: "default".into(),
            cluster_ip: Some("10.96.0.10".parse().unwrap()),
            ports: vec![ServicePortPlan {
                port: 80,
                protocol: Protocol::Tcp,
                node_port: Some(30080),
                endpoints: vec![(pod.ip, PORT)],
            }],
            client_ip_affinity: false,
        }],
        isolated: [("alone".to_owned(), [pod.ip].into())].into(),
        ..DesiredNet::default()
    }
}

async fn program(network: &Network, pod: &Pod) {
    network.synced(network.sync(one_service(pod))).await.unwrap();
}

#[test]
fn teardown_leaves_nothing() {
    for docker in [true, false] {
        let machine = Machine::new();
        if docker {
            machine.sh("iptables -P FORWARD DROP; iptables -N DOCKER-USER; \
                        iptables -A DOCKER-USER -j RETURN; iptables -I FORWARD -j DOCKER-USER");
        } else {
            // Makes iptables' empty tables, which stay, before the first look.
            machine.sh("iptables -A FORWARD -j ACCEPT; iptables -D FORWARD -j ACCEPT");
        }
        let before = machine.traces();
        let (one, two, a, b) = machine.block_on(|| async {
            let one = Network::start(config(1)).await.unwrap();
            let a = Pod::start(&one, "a").await;
            program(&one, &a).await;
            let two = Network::start(config(2)).await.unwrap();
            let b = Pod::start(&two, "b").await;
            (one, two, a, b)
        });
        let with_one = |(command, trace): (&&'static str, &String)| {
            (command.to_string(), trace.lines().filter(|l| !l.contains("node-2")).count())
        };
        assert!(machine.traces() != before);
        machine.block_on(move || async move {
            program(&two, &b).await;
            two.teardown().await.unwrap();
            two.teardown().await.unwrap();
            let refused = two.attach("x", b.namespace.pid(), b.ip).await.unwrap_err();
            assert!(matches!(refused, NetError::Closed { .. }), "{refused}");
        });
        let alone: Vec<_> = machine.traces().iter().map(with_one).collect();
        assert!(!machine.sh("nft list ruleset").contains("node-2"));
        assert!(!machine.sh("ip route").contains("10.244.2."));
        assert_eq!(a.namespace.ask(a.ip, PORT).unwrap().0, "a", "the other agent's pod goes on");
        assert!(machine.traces().iter().map(with_one).eq(alone));
        drop(one);
        machine.block_on(|| async { remove("node-1", "tim-node-1").await.unwrap() });
        assert_eq!(machine.traces(), before, "docker: {docker}");
    }
}

#[test]
fn a_restarted_agent_takes_over() {
    let machine = Machine::new();
    machine.block_on(|| async {
        let first = Network::start(config(1)).await.unwrap();
        let pod = Pod::start(&first, "a").await;
        let gone = Pod::start(&first, "gone").await;
        program(&first, &pod).await;
        drop(first);
        let second = Network::start(config(1)).await.unwrap();
        let service = "10.96.0.10".parse().unwrap();
        assert_eq!(crate::machine::ask(service, 80).unwrap().0, "a", "before anything is synced");
        second.adopt(&pod.uid, pod.ip).unwrap();
        second.attach(&pod.uid, pod.namespace.pid(), pod.ip).await.unwrap();
        let removed = second.remove_leftovers([pod.uid.clone()].into()).await.unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(gone.ask(pod.ip, PORT).is_err());
        assert_eq!(crate::machine::ask(pod.ip, PORT).unwrap().0, "a");
        program(&second, &pod).await;
        assert_eq!(crate::machine::ask(service, 80).unwrap().0, "a");
        assert_ne!(second.allocate("uid-new").unwrap(), pod.ip);
    });
}

#[test]
fn a_range_that_another_link_has_is_refused_and_nothing_is_changed() {
    let machine = Machine::new();
    // The host's own network is larger and has the pods' range in it.
    machine.sh("ip link add up0 type bridge; ip addr add 10.1.2.3/8 dev up0; ip link set up0 up");
    let one = machine.block_on(|| async { Network::start(config(1)).await.unwrap() });
    let before = machine.traces();
    let other = NetConfig { node: "other".into(), bridge: "tim-other".into(), ..config(1) };
    let refused =
        machine.block_on(|| async { Network::start(other).await.err().unwrap().to_string() });
    assert!(refused.contains("link tim-node-1 of this host has 10.244.1.1"), "{refused}");
    assert!(refused.contains("node other") && refused.contains("hint: "), "{refused}");
    assert_eq!(machine.traces(), before);
    drop(one);
    machine.block_on(|| async { remove("node-1", "tim-node-1").await.unwrap() });
}

#[test]
fn attaching_again_keeps_a_link_and_replaces_a_dead_one() {
    let machine = Machine::new();
    machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let pod = Pod::start(&network, "a").await;
        network.attach(&pod.uid, pod.namespace.pid(), pod.ip).await.unwrap();
        assert_eq!(crate::machine::ask(pod.ip, PORT).unwrap().0, "a");
        // The container was started again: same pod, a new process, the old one not yet gone.
        let again = Namespace::new();
        again.serve("a-again");
        network.attach(&pod.uid, again.pid(), pod.ip).await.unwrap();
        assert_eq!(crate::machine::ask(pod.ip, PORT).unwrap().0, "a-again");
        network.detach(&pod.uid).await.unwrap();
        network.detach(&pod.uid).await.unwrap();
        assert!(crate::machine::ask(pod.ip, PORT).is_err());
        let strange = network.attach("uid-b", again.pid(), pod.ip).await;
        strange.expect("its link is gone, so it can be another pod's");
        drop(again);
        network.detach("uid-b").await.unwrap();
    });
}

/// The kernel is told to ask for a hardware address once only, and to give up before TCP tries
/// again: a question that the bridge does not pass on yet makes the connection fail.
#[test]
fn nothing_sent_to_a_pod_that_is_attached_is_lost() {
    const TIMES: usize = 40;
    let machine = Machine::new();
    let network = machine.block_on(|| async { Network::start(config(1)).await.unwrap() });
    machine.sh("cd /proc/sys/net/ipv4/neigh/tim-node-1
                echo 1 > mcast_solicit; echo 500 > retrans_time_ms");
    machine.block_on(|| async move {
        for _ in 0..TIMES {
            // The bridge has none before; the kernel's work for one holds up that for another.
            let pods: Vec<_> = (0..TOGETHER).map(|_| Namespace::new()).collect();
            let attached = pods.iter().enumerate().map(async |(number, pod)| {
                let uid = format!("uid-{number}");
                let ip = network.allocate(&uid).unwrap();
                network.attach(&uid, pod.pid(), ip).await.unwrap();
                // That nobody listens there is an answer.
                let answer = TcpStream::connect((ip, PORT)).await.unwrap_err();
                assert_eq!(answer.kind(), ErrorKind::ConnectionRefused, "{answer}");
                network.detach(&uid).await.unwrap();
            });
            futures::future::join_all(attached).await;
        }
    });
}

#[test]
fn what_cannot_be_attached_is_told() {
    let machine = Machine::new();
    let host = machine.namespace.pid();
    machine.block_on(move || async move {
        let network = Network::start(config(1)).await.unwrap();
        let ip = network.allocate("x").unwrap();
        let error = network.attach("x", host, ip).await.unwrap_err();
        assert!(error.to_string().ends_with("the process is in the host's own network namespace"));
        let error = network.attach("x", u32::MAX, ip).await.unwrap_err().to_string();
        assert!(error.contains("opening the pod's network namespace: No such file"), "{error}");
        let taken = Pod::start(&network, "taken").await;
        let error = network.attach("x", taken.namespace.pid(), ip).await.unwrap_err();
        assert!(error.to_string().contains("eth0"), "{error}");
        assert_eq!(crate::machine::ask(taken.ip, PORT).unwrap().0, "taken", "unharmed");
        let mut bad = config(2);
        bad.bridge = "a-name-that-is-too-long".into();
        let error = Network::start(bad).await.err().unwrap().to_string();
        assert!(error.contains("cannot name a bridge; hint"), "{error}");
    });
}

#[test]
fn what_others_undo_is_made_good() {
    let machine = Machine::new();
    let (network, pod) = machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let pod = Pod::start(&network, "a").await;
        let open = DesiredNet { isolated: Default::default(), ..one_service(&pod) };
        network.synced(network.sync(open)).await.unwrap();
        (network, pod)
    });
    // Docker comes, with its closed FORWARD chain; somebody reloads the firewall.
    machine.sh("nft delete table ip timonier-node-1; iptables -F FORWARD; \
                iptables -P FORWARD DROP; iptables -N DOCKER-USER; \
                iptables -I FORWARD -j DOCKER-USER");
    machine.block_on(move || async move {
        let other = Pod::start(&network, "b").await;
        assert!(other.ask(pod.ip, PORT).is_err(), "the chain is closed");
        network.ensure_forwarding().await.unwrap();
        network.ensure_forwarding().await.unwrap();
        assert_eq!(other.ask(pod.ip, PORT).err().map(|e| e.kind()), None);
        let start = Instant::now();
        while crate::machine::ask("10.96.0.10".parse().unwrap(), 80).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "the table does not come back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let rules = machine.sh("iptables -S DOCKER-USER");
    assert_eq!(rules.matches("timonier agent node-1").count(), 2, "{rules}");
}

/// Pods wired at a time, as when many start at once.
const TOGETHER: usize = 8;

#[test]
fn attaching_takes_few_milliseconds() {
    const PODS: usize = 100;
    let machine = Machine::new();
    let [alone, together, detach] = machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let pods: Vec<_> = (0..2 * PODS).map(|_| Namespace::new()).collect();
        let attach = async |number: usize| {
            let uid = format!("uid-{number}");
            let ip = network.allocate(&uid).unwrap();
            let start = Instant::now();
            network.attach(&uid, pods[number].pid(), ip).await.unwrap();
            start.elapsed()
        };
        let mut alone = Vec::new();
        for number in 0..PODS {
            alone.push(attach(number).await);
        }
        let together = futures::stream::iter(PODS..2 * PODS)
            .map(&attach)
            .buffer_unordered(TOGETHER)
            .collect::<Vec<_>>()
            .await;
        let mut detach = Vec::new();
        for number in 0..2 * PODS {
            let start = Instant::now();
            network.detach(&format!("uid-{number}")).await.unwrap();
            detach.push(start.elapsed());
        }
        [alone, together, detach].map(|mut times| {
            times.sort();
            (times[times.len() / 2], times[times.len() - 1])
        })
    });
    eprintln!(
        "median and worst: attach {alone:?}, {TOGETHER} at a time {together:?}, detach {detach:?}"
    );
    assert!(alone.0 < Duration::from_millis(20), "median {:?}", alone.0);
}
