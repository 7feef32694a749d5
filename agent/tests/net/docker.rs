//! With the real Docker, in the machine's own namespace: the sandbox image, a container that waits
//! for its network, and the firewall Docker has set up.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use timonier_agent::net::{
    INIT_PATH_IN_CONTAINER, NetConfig, Network, init_bytes, install_init, remove, sandbox_image,
    sandbox_image_tar,
};

use crate::machine::{PORT, Pod, ask, wait_for};

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output();
    let output = output.expect("this test needs Docker and its command line");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "docker {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A container, removed when dropped.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", &self.0]).output();
    }
}

fn load_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("sandbox.tar");
    fs::write(&archive, sandbox_image_tar()).unwrap();
    docker(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
}

#[test]
fn the_sandbox_image_holds_a_pod() {
    assert_eq!(sandbox_image_tar(), sandbox_image_tar(), "the same bytes each time");
    assert!(init_bytes().len() < 64 * 1024);
    load_sandbox();
    let image = sandbox_image();
    let confined = ["--network=none", "--read-only", "--user=65534", "--cap-drop=ALL"];
    let pod = Container(docker(&[&["run", "--detach"], &confined[..], &[&image]].concat()));
    assert_eq!(docker(&["inspect", "--format={{.State.Running}}", &pod.0]), "true");
    let start = Instant::now();
    docker(&["stop", "--time=20", &pod.0]);
    assert!(start.elapsed() < Duration::from_secs(10), "it ends on SIGTERM");
    assert_eq!(docker(&["inspect", "--format={{.State.ExitCode}}", &pod.0]), "0");
}

/// Networks of their own beside those of agents that may run here.
fn config(number: u8) -> NetConfig {
    NetConfig {
        node: format!("net-test-{number}"),
        bridge: format!("tim-nettest-{number}"),
        pod_cidr: format!("10.251.{number}.0/24").parse().unwrap(),
        cluster_cidr: "10.251.0.0/16".parse().unwrap(),
        service_cidr: "10.250.0.0/16".parse().unwrap(),
    }
}

fn clean_up(runtime: &tokio::runtime::Runtime) {
    for number in [1, 2] {
        let NetConfig { node, bridge, .. } = config(number);
        runtime.block_on(remove(&node, &bridge)).unwrap();
    }
}

#[test]
fn containers_start_once_wired_and_pass_dockers_firewall() {
    load_sandbox();
    let dir = tempfile::tempdir().unwrap();
    let bind =
        format!("{}:{INIT_PATH_IN_CONTAINER}:ro", install_init(dir.path()).unwrap().display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    clean_up(&runtime);
    runtime.block_on(async {
        let one = Network::start(config(1)).await.unwrap();
        let two = Network::start(config(2)).await.unwrap();
        let (a, b) = (Pod::start(&one, "a").await, Pod::start(&two, "b").await);
        assert_eq!(a.ask(b.ip, PORT).unwrap().0, "b", "through Docker's FORWARD chain");
        assert_eq!(b.ask(a.ip, PORT).unwrap().0, "a");
        let entrypoint = format!("--entrypoint={INIT_PATH_IN_CONTAINER}");
        let container = Container(docker(&[
            "run",
            "--detach",
            "--network=none",
            "--read-only",
            "--user=65534",
            "--cap-drop=ALL",
            "--volume",
            &bind,
            &entrypoint,
            &sandbox_image(),
            "run",
            "--",
            "/timonier-init",
            "sandbox",
        ]));
        let pid = docker(&["inspect", "--format={{.State.Pid}}", &container.0]);
        let command = || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command().starts_with(INIT_PATH_IN_CONTAINER), "it waits: {}", command());
        let ip = one.allocate("c").unwrap();
        one.attach("c", pid.parse().unwrap(), ip).await.unwrap();
        wait_for("the container's program", || command().starts_with("/timonier-init"));
        let refused = ask(ip, PORT).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "there, and no server");
    });
    clean_up(&runtime);
    for command in ["ip link", "ip route", "nft list tables", "iptables-save"] {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        let traces = String::from_utf8_lossy(&output.stdout).into_owned();
        for trace in ["nettest", "net-test", "10.251.", "10.250."] {
            assert!(!traces.contains(trace), "{command}: {traces}");
        }
    }
}
