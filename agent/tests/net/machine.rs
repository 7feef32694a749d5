//! A machine to test on: a network namespace of its own with an uplink to a host outside, so that
//! tests neither see nor touch the real machine's network; and processes that stand for pods.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use timonier_agent::net::{NetConfig, Network};
use tokio::runtime::{Builder, Runtime};

/// The machine's address on its uplink, and that of the host outside.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where every test server listens.
pub const PORT: u16 = 8080;

const DEADLINE: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A process in a network namespace of its own, killed when dropped.
pub struct Namespace {
    child: Child,
}

impl Namespace {
    pub fn new() -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "the tests of the pod network make network namespaces: run them as root");
        let mut command = Command::new("unshare");
        let child = command.args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let namespace = Self { child: child.expect("package util-linux has `unshare`") };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("the new namespace", || {
            let theirs = std::fs::read_link(namespace.path()).ok();
            // Also past `unshare` itself: the process is the one that stays.
            let command = std::fs::read_to_string(format!("/proc/{}/comm", namespace.pid()));
            theirs.is_some_and(|theirs| theirs != own) && command.is_ok_and(|c| c == "sleep\n")
        });
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Runs `work` in the namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(self.path()).unwrap();
        let inside = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        match inside.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Answers each connection and datagram with `name` and the source it saw.
    pub fn serve(&self, name: &str) {
        let greeting = name.to_owned();
        self.run(move || {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            let text = greeting.clone();
            thread::spawn(move || {
                for mut stream in tcp.incoming().flatten() {
                    if let Ok(peer) = stream.peer_addr() {
                        let _ = write!(stream, "{text} {}", peer.ip());
                    }
                }
            });
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{greeting} {}", peer.ip()).as_bytes(), peer);
                }
            });
        });
    }

    /// Who answers at `ip:port`, and the source it saw.
    pub fn ask(&self, ip: Ipv4Addr, port: u16) -> io::Result<(String, IpAddr)> {
        self.run(move || ask(ip, port))
    }

    /// The same with a datagram.
    pub fn ask_udp(&self, ip: Ipv4Addr, port: u16) -> io::Result<(String, IpAddr)> {
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            socket.connect((ip, port))?;
            socket.send(b"hello")?;
            let mut buffer = [0; 128];
            let count = socket.recv(&mut buffer)?;
            Ok(parse(std::str::from_utf8(&buffer[..count]).unwrap()))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who answers at `ip:port` in the calling thread's namespace.
pub fn ask(ip: Ipv4Addr, port: u16) -> io::Result<(String, IpAddr)> {
    let address = SocketAddr::new(ip.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(parse(&answer))
}

fn parse(answer: &str) -> (String, IpAddr) {
    let (name, source) = answer.split_once(' ').expect("a server says its name and the source");
    (name.to_owned(), source.parse().unwrap())
}

/// The machine and the host outside.
pub struct Machine {
    pub namespace: Namespace,
    pub outside: Namespace,
    runtime: Arc<Runtime>,
}

impl Machine {
    pub fn new() -> Self {
        let namespace = Namespace::new();
        // Threads are in the namespace of the thread that starts them.
        let runtime = namespace
            .run(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
        let machine = Self { namespace, outside: Namespace::new(), runtime: runtime.into() };
        let far = machine.outside.pid();
        machine.sh(&format!(
            "ip link set lo up
             ip link add uplink type veth peer name uplink netns {far}
             ip address add {MACHINE}/24 dev uplink
             ip link set uplink up"
        ));
        machine.outside.run(|| {
            run_shell(&format!(
                "ip link set lo up
                 ip address add {OUTSIDE}/24 dev uplink
                 ip link set uplink up"
            ))
        });
        machine.outside.serve("outside");
        machine
    }

    /// Runs a shell script on the machine; what it printed.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.namespace.run(move || run_shell(&script))
    }

    /// Runs `test` on a runtime whose threads all are on the machine.
    pub fn block_on<T: Send + 'static, F: Future<Output = T>>(
        &self,
        test: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        let runtime = Arc::clone(&self.runtime);
        self.namespace.run(move || runtime.block_on(test()))
    }

    /// All that an agent could leave behind, by the command that shows it.
    pub fn traces(&self) -> BTreeMap<&'static str, String> {
        [
            "ip -oneline link show | sed 's/ qlen.*//'",
            "ip -oneline address show",
            "ip route show table all | sort",
            "ip rule show",
            "nft list ruleset",
            "iptables-save | grep -v '^[#:]'",
        ]
        .into_iter()
        .map(|command| (command, self.sh(&format!("{command} || true"))))
        .collect()
    }
}

fn run_shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A process that stands for a pod.
pub struct Pod {
    pub namespace: Namespace,
    pub uid: String,
    pub ip: Ipv4Addr,
}

impl Pod {
    /// A pod that is attached to `network` and serves its name.
    pub async fn start(network: &Network, name: &str) -> Self {
        let pod = Self {
            namespace: Namespace::new(),
            uid: format!("uid-{name}"),
            ip: network.allocate(&format!("uid-{name}")).unwrap(),
        };
        pod.namespace.serve(name);
        network.attach(&pod.uid, pod.namespace.pid(), pod.ip).await.unwrap();
        pod
    }

    pub fn ask(&self, ip: Ipv4Addr, port: u16) -> io::Result<(String, IpAddr)> {
        self.namespace.ask(ip, port)
    }
}

/// The network of the lab's node number `number`.
pub fn config(number: u8) -> NetConfig {
    NetConfig {
        node: format!("node-{number}"),
        bridge: format!("tim-node-{number}"),
        pod_cidr: format!("10.244.{number}.0/24").parse().unwrap(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
    }
}

/// Waits for something outside this process, on a thread that has nothing else to do.
#[allow(clippy::disallowed_methods)]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}: not after {DEADLINE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the kernel can run the IP rules on bridged frames, and whether this was set.
pub fn set_bridge_filter(machine: &Machine, on: bool) -> bool {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if Path::new(SWITCH).exists() {
        machine.sh(&format!("echo {} > {SWITCH}", u8::from(on)));
        return true;
    }
    !on
}
