//! Changing the table bit by bit leads where writing it whole leads.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use timonier_agent::net::Network;
use timonier_agent_core::net::{
    DesiredNet, HostPortPlan, Protocol, Ruleset, ServicePlan, ServicePortPlan,
};

use crate::machine::{Machine, config};

/// Steps of one walk, each from a random wish to the next.
const STEPS: usize = 40;

#[test]
fn a_walk_through_random_wishes_ends_where_a_fresh_table_starts() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("repeat with SEED={seed}");
    let machine = Machine::new();
    let wishes: Vec<_> = {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..STEPS).map(|_| wish(&mut random)).collect()
    };
    let network = machine.block_on(|| async { Network::start(config(1)).await.unwrap() });
    drop(network);
    let table = "timonier-node-1";
    let ranges = timonier_agent_core::net::NodeRanges {
        bridge: "tim-node-1".into(),
        pods: config(1).pod_cidr,
        cluster: config(1).cluster_cidr,
        services: config(1).service_cidr,
    };
    let mut before = Ruleset::default();
    for (step, wish) in wishes.iter().enumerate() {
        let after = Ruleset::compile(&ranges, wish);
        let script = match step {
            0 => after.full_script(table),
            _ => after.script_from(&before, table),
        };
        nft(&machine, &script);
        let stepped = listing(&machine);
        nft(&machine, &after.full_script(table));
        assert_eq!(stepped, listing(&machine), "SEED={seed} step {step}:\n{script}");
        before = after;
    }
}

#[test]
fn wishes_in_a_row_are_merged_and_the_last_one_counts() {
    let machine = Machine::new();
    machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let mut last = None;
        for _ in 0..500 {
            last = Some(network.sync(wish(&mut random)));
        }
        let only = DesiredNet {
            services: vec![service(200, 8, &[(Ipv4Addr::new(10, 244, 1, 8), 80)])],
            ..DesiredNet::default()
        };
        let generation = network.sync(only);
        assert!(Some(generation) > last);
        network.synced(generation).await.unwrap();
    });
    let listing = machine.sh("nft list table ip timonier-node-1");
    assert_eq!(listing.matches("chain svc-").count(), 1, "{listing}");
    assert!(listing.contains("10.96.0.200 . tcp . 8 : goto svc-default/service-200/tcp/8"));
}

#[test]
fn a_change_among_many_services_is_quick() {
    const SERVICES: u16 = 1000;
    let machine = Machine::new();
    let (full, change) = machine.block_on(|| async {
        let network = Network::start(config(1)).await.unwrap();
        let mut desired = DesiredNet::default();
        for number in 0..SERVICES {
            let [high, low] = number.to_be_bytes();
            let pod = Ipv4Addr::new(10, 244, 1, low.max(2));
            let mut plan = service(low, 80, &[(pod, 80), (pod, 81), (pod, 82)]);
            plan.name = format!("service-{number}");
            plan.cluster_ip = Some(Ipv4Addr::new(10, 96, high + 1, low));
            desired.services.push(plan);
        }
        let start = Instant::now();
        network.synced(network.sync(desired.clone())).await.unwrap();
        let full = start.elapsed();
        let mut changes = Vec::new();
        for port in 0..21 {
            desired.services[500].ports[0].endpoints[0].1 = 9000 + port;
            let start = Instant::now();
            network.synced(network.sync(desired.clone())).await.unwrap();
            changes.push(start.elapsed());
        }
        changes.sort();
        (full, changes[changes.len() / 2])
    });
    eprintln!("{SERVICES} services: whole table {full:?}, one endpoint {change:?} (median)");
    assert!(change < Duration::from_secs(1), "{change:?}");
}

fn nft(machine: &Machine, script: &str) {
    machine.sh(&format!("nft -f - <<'END'\n{script}END"));
}

/// The table's chains and sets, in an order of their own.
fn listing(machine: &Machine) -> Vec<String> {
    let listing = machine.sh("nft list table ip timonier-node-1");
    let mut blocks: Vec<String> = listing.split("\n\n").map(str::to_owned).collect();
    for block in &mut blocks {
        *block = block.trim_start_matches("table ip timonier-node-1 {\n").trim_end().to_owned();
        block.truncate(block.trim_end_matches("\n}").len());
    }
    blocks.sort();
    blocks
}

fn service(number: u8, port: u16, endpoints: &[(Ipv4Addr, u16)]) -> ServicePlan {
    ServicePlan {
        name: format!("service-{number}"),
        ns: "default".into(),
        cluster_ip: Some(Ipv4Addr::new(10, 96, 0, number)),
        ports: vec![ServicePortPlan {
            port,
            protocol: Protocol::Tcp,
            node_port: None,
            endpoints: endpoints.to_vec(),
        }],
        client_ip_affinity: false,
    }
}

fn wish(random: &mut fastrand::Rng) -> DesiredNet {
    let pod = |random: &mut fastrand::Rng| Ipv4Addr::new(10, 244, random.u8(1..3), random.u8(2..8));
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let mut desired = DesiredNet::default();
    for number in 1..8 {
        if random.bool() {
            continue;
        }
        let endpoints: Vec<_> =
            (0..random.usize(0..4)).map(|_| (pod(random), 8080 + random.u16(0..2))).collect();
        let mut plan = service(number, 80, &endpoints);
        plan.client_ip_affinity = random.u8(0..6) == 0;
        plan.ports[0].protocol = protocols[random.usize(0..3)];
        plan.ports[0].node_port = random.bool().then(|| 30000 + u16::from(number));
        desired.services.push(plan);
    }
    for port in 1..3 {
        if random.bool() {
            desired.host_ports.push(HostPortPlan {
                host_ip: random.bool().then_some(Ipv4Addr::LOCALHOST),
                port,
                protocol: Protocol::Tcp,
                target: (pod(random), 80),
            });
        }
    }
    for network in ["red", "blue"] {
        if random.bool() {
            let third = if network == "red" { 3 } else { 4 };
            let members = (0..random.usize(0..4))
                .map(|_| Ipv4Addr::new(10, 244, third, random.u8(2..8)))
                .collect();
            desired.isolated.insert(network.to_owned(), members);
        }
    }
    desired
}
