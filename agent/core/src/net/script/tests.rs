use std::net::Ipv4Addr;

use expect_test::{Expect, expect};

use crate::net::*;

const TABLE: &str = "timonier-node-1";

fn ranges() -> NodeRanges {
    NodeRanges {
        bridge: "tim-node-1".into(),
        pods: "10.244.1.0/24".parse().unwrap(),
        cluster: "10.244.0.0/16".parse().unwrap(),
        services: "10.96.0.0/16".parse().unwrap(),
    }
}

fn pod(node: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, last)
}

fn web(endpoints: &[Endpoint]) -> ServicePlan {
    ServicePlan {
        name: "web".into(),
        ns: "default".into(),
        cluster_ip: Some(Ipv4Addr::new(10, 96, 0, 10)),
        ports: vec![ServicePortPlan {
            port: 80,
            protocol: Protocol::Tcp,
            node_port: Some(30080),
            endpoints: endpoints.to_vec(),
        }],
        client_ip_affinity: false,
    }
}

fn with(services: Vec<ServicePlan>) -> DesiredNet {
    DesiredNet { services, ..DesiredNet::default() }
}

fn check_change(from: &DesiredNet, to: &DesiredNet, expected: Expect) {
    let [from, to] = [from, to].map(|desired| Ruleset::compile(&ranges(), desired));
    expected.assert_eq(&to.script_from(&from, TABLE));
    assert_eq!(to.script_from(&to, TABLE), "", "nothing to do when nothing changed");
}

#[test]
fn a_full_script_replaces_the_table() {
    let desired = with(vec![web(&[(pod(1, 2), 8080), (pod(2, 7), 8080)])]);
    expect![[r#"
        add table ip timonier-node-1
        delete table ip timonier-node-1
        add table ip timonier-node-1
        add map ip timonier-node-1 isolated { type ipv4_addr : verdict; }
        add map ip timonier-node-1 local_ports { type inet_proto . inet_service : verdict; }
        add set ip timonier-node-1 refused_ports { type inet_proto . inet_service; }
        add set ip timonier-node-1 self { type ipv4_addr . ipv4_addr; }
        add map ip timonier-node-1 services { type ipv4_addr . inet_proto . inet_service : verdict; }
        add chain ip timonier-node-1 filter-forward { type filter hook forward priority filter; policy accept; }
        add chain ip timonier-node-1 filter-input { type filter hook input priority filter; policy accept; }
        add chain ip timonier-node-1 filter-output { type filter hook output priority filter; policy accept; }
        add chain ip timonier-node-1 guard { type filter hook prerouting priority raw; policy accept; }
        add chain ip timonier-node-1 nat-output { type nat hook output priority -100; policy accept; }
        add chain ip timonier-node-1 nat-postrouting { type nat hook postrouting priority srcnat; policy accept; }
        add chain ip timonier-node-1 nat-prerouting { type nat hook prerouting priority dstnat; policy accept; }
        add chain ip timonier-node-1 refuse
        add chain ip timonier-node-1 svc-default/web/tcp/80
        add chain ip timonier-node-1 translate
        add rule ip timonier-node-1 filter-forward ct state established,related accept
        add rule ip timonier-node-1 filter-forward ip daddr vmap @isolated
        add rule ip timonier-node-1 filter-forward ip daddr 10.96.0.0/16 goto refuse
        add rule ip timonier-node-1 filter-input ct state established,related accept
        add rule ip timonier-node-1 filter-input meta l4proto . th dport @refused_ports goto refuse
        add rule ip timonier-node-1 filter-output ct state established,related accept
        add rule ip timonier-node-1 filter-output ip daddr 10.96.0.0/16 goto refuse
        add rule ip timonier-node-1 filter-output fib daddr type local meta l4proto . th dport @refused_ports goto refuse
        add rule ip timonier-node-1 guard iifname "tim-node-1" ip daddr 127.0.0.0/8 drop
        add rule ip timonier-node-1 guard iifname "tim-node-1" ip saddr != 10.244.1.0/24 drop
        add rule ip timonier-node-1 nat-output jump translate
        add rule ip timonier-node-1 nat-postrouting ip saddr . ip daddr @self masquerade fully-random
        add rule ip timonier-node-1 nat-postrouting ip saddr 127.0.0.0/8 ip daddr 10.244.0.0/16 masquerade fully-random
        add rule ip timonier-node-1 nat-postrouting ip saddr 10.244.1.0/24 ip daddr != { 10.244.0.0/16, 10.96.0.0/16 } masquerade fully-random
        add rule ip timonier-node-1 nat-prerouting jump translate
        add rule ip timonier-node-1 refuse meta l4proto tcp reject with tcp reset
        add rule ip timonier-node-1 refuse reject with icmp type port-unreachable
        add rule ip timonier-node-1 svc-default/web/tcp/80 meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.7 . 8080 }
        add rule ip timonier-node-1 translate ip daddr . meta l4proto . th dport vmap @services
        add rule ip timonier-node-1 translate fib daddr type local meta l4proto . th dport vmap @local_ports
        add element ip timonier-node-1 local_ports { tcp . 30080 : goto svc-default/web/tcp/80 }
        add element ip timonier-node-1 self { 10.244.1.2 . 10.244.1.2 }
        add element ip timonier-node-1 services { 10.96.0.10 . tcp . 80 : goto svc-default/web/tcp/80 }
    "#]].assert_eq(&Ruleset::compile(&ranges(), &desired).full_script(TABLE));
}

#[test]
fn one_more_endpoint_rewrites_one_chain() {
    check_change(
        &with(vec![web(&[(pod(1, 2), 8080)])]),
        &with(vec![web(&[(pod(2, 7), 8080), (pod(1, 2), 8080), (pod(2, 7), 8080)])]),
        expect![[r#"
            flush chain ip timonier-node-1 svc-default/web/tcp/80
            add rule ip timonier-node-1 svc-default/web/tcp/80 meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.7 . 8080 }
        "#]],
    );
}

#[test]
fn the_last_endpoint_gone_closes_the_ports() {
    check_change(
        &with(vec![web(&[(pod(1, 2), 8080)])]),
        &with(vec![web(&[])]),
        expect![[r#"
        delete element ip timonier-node-1 local_ports { tcp . 30080 }
        delete element ip timonier-node-1 self { 10.244.1.2 . 10.244.1.2 }
        delete element ip timonier-node-1 services { 10.96.0.10 . tcp . 80 }
        flush chain ip timonier-node-1 svc-default/web/tcp/80
        add element ip timonier-node-1 refused_ports { tcp . 30080 }
        delete chain ip timonier-node-1 svc-default/web/tcp/80
    "#]],
    );
}

#[test]
fn a_service_that_goes_leaves_nothing() {
    let mut other = web(&[(pod(2, 3), 53)]);
    other.name = "dns".into();
    other.cluster_ip = Some(Ipv4Addr::new(10, 96, 0, 11));
    other.ports[0] = ServicePortPlan {
        port: 53,
        protocol: Protocol::Udp,
        node_port: None,
        endpoints: vec![(pod(2, 3), 5353)],
    };
    check_change(
        &with(vec![web(&[(pod(1, 2), 8080)]), other.clone()]),
        &with(vec![other]),
        expect![[r#"
            delete element ip timonier-node-1 local_ports { tcp . 30080 }
            delete element ip timonier-node-1 self { 10.244.1.2 . 10.244.1.2 }
            delete element ip timonier-node-1 services { 10.96.0.10 . tcp . 80 }
            flush chain ip timonier-node-1 svc-default/web/tcp/80
            delete chain ip timonier-node-1 svc-default/web/tcp/80
        "#]],
    );
}

#[test]
fn host_ports_come_and_an_isolated_network_goes() {
    let host_port =
        |host_ip, port, target| HostPortPlan { host_ip, port, protocol: Protocol::Tcp, target };
    let isolated = DesiredNet {
        isolated: [("orchestrateurtest".to_owned(), [pod(1, 2), pod(2, 2)].into())].into(),
        ..DesiredNet::default()
    };
    let ports = DesiredNet {
        host_ports: vec![
            host_port(None, 8080, (pod(1, 2), 80)),
            host_port(Some(Ipv4Addr::new(192, 0, 2, 2)), 8443, (pod(1, 2), 443)),
            host_port(Some(Ipv4Addr::UNSPECIFIED), 8080, (pod(1, 3), 80)),
        ],
        ..DesiredNet::default()
    };
    check_change(
        &DesiredNet::default(),
        &isolated,
        expect![[r#"
        add set ip timonier-node-1 net-orchestrateurtest { type ipv4_addr; }
        add chain ip timonier-node-1 net-orchestrateurtest
        add rule ip timonier-node-1 net-orchestrateurtest ip saddr @net-orchestrateurtest accept
        add rule ip timonier-node-1 net-orchestrateurtest ct status dnat ct original ip daddr != { 10.244.0.0/16, 10.96.0.0/16 } accept
        add rule ip timonier-node-1 net-orchestrateurtest reject with icmp type admin-prohibited
        add element ip timonier-node-1 isolated { 10.244.1.2 : goto net-orchestrateurtest, 10.244.2.2 : goto net-orchestrateurtest }
        add element ip timonier-node-1 net-orchestrateurtest { 10.244.1.2, 10.244.2.2 }
    "#]],
    );
    check_change(
        &isolated,
        &ports,
        expect![[r#"
        add chain ip timonier-node-1 host-192.0.2.2/tcp/8443
        add chain ip timonier-node-1 host-any/tcp/8080
        delete element ip timonier-node-1 isolated { 10.244.1.2, 10.244.2.2 }
        delete element ip timonier-node-1 net-orchestrateurtest { 10.244.1.2, 10.244.2.2 }
        flush chain ip timonier-node-1 net-orchestrateurtest
        add rule ip timonier-node-1 host-192.0.2.2/tcp/8443 meta l4proto tcp dnat to 10.244.1.2:443
        add rule ip timonier-node-1 host-any/tcp/8080 meta l4proto tcp dnat to 10.244.1.2:80
        add element ip timonier-node-1 local_ports { tcp . 8080 : goto host-any/tcp/8080 }
        add element ip timonier-node-1 self { 10.244.1.2 . 10.244.1.2, 10.244.1.3 . 10.244.1.3 }
        add element ip timonier-node-1 services { 192.0.2.2 . tcp . 8443 : goto host-192.0.2.2/tcp/8443 }
        delete chain ip timonier-node-1 net-orchestrateurtest
        delete set ip timonier-node-1 net-orchestrateurtest
    "#]],
    );
}

#[test]
fn headless_services_have_no_rules() {
    let mut headless = web(&[(pod(1, 2), 8080)]);
    headless.cluster_ip = None;
    headless.ports[0].node_port = None;
    check_change(&DesiredNet::default(), &with(vec![headless]), expect![[r#""#]]);
}

/// Which endpoint each bucket of an affinity rule has.
fn buckets(endpoints: &[Endpoint]) -> Vec<String> {
    let mut service = web(endpoints);
    service.client_ip_affinity = true;
    let script = Ruleset::compile(&ranges(), &with(vec![service])).full_script(TABLE);
    let rule = script.lines().find(|line| line.contains("jhash ip saddr")).unwrap();
    let map = rule.split_once("map { ").unwrap().1.trim_end_matches(" }");
    map.split(", ").map(|item| item.split_once(" : ").unwrap().1.to_owned()).collect()
}

#[test]
fn with_affinity_only_the_clients_of_a_gone_endpoint_move() {
    let all = [(pod(1, 2), 80), (pod(1, 3), 80), (pod(1, 4), 80), (pod(2, 2), 80)];
    let (before, after) = (buckets(&all), buckets(&all[1..]));
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before == "10.244.1.2 . 80");
    }
    for endpoint in &all {
        let name = format!("{} . {}", endpoint.0, endpoint.1);
        let share = before.iter().filter(|owner| **owner == name).count();
        assert!((40..=90).contains(&share), "{name} has {share} of {} buckets", before.len());
    }
}

#[test]
fn odd_names_cannot_end_an_identifier() {
    let mut odd = web(&[(pod(1, 2), 80)]);
    odd.name = "x; flush ruleset".into();
    let script = Ruleset::compile(&ranges(), &with(vec![odd])).full_script(TABLE);
    assert!(!script.contains("flush ruleset"));
    assert!(script.contains("svc-default/x__flush_ruleset/tcp/80"));
}
