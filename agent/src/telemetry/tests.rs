//! The samplers on made-up hosts, and on this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::pods::PodSampler;
use super::{HostSampler, cgroup};
use crate::pods::{RunningContainer, RunningPod};

const UID: &str = "0189f7a2-6c1e-4d6f-9c0a-111213141516";

/// A made-up host: `/proc`, and cgroups where its mountinfo says.
struct Host {
    dir: TempDir,
}

impl Host {
    /// `mounts`: file system type, options (the controllers), folder.
    fn new(mounts: &[(&str, &str, &str)]) -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        let lines: String = mounts
            .iter()
            .map(|(kind, options, folder)| {
                let point = host.dir.path().join(folder);
                format!(
                    "30 20 0:26 / {} rw shared:9 - {kind} {kind} rw,{options}\n",
                    point.display()
                )
            })
            .collect();
        host.write("proc/self/mountinfo", &lines);
        host
    }

    fn v1() -> Self {
        Self::new(&[
            ("tmpfs", "mode=755", "cg"),
            ("cgroup", "cpu,cpuacct", "cg/cpu,cpuacct"),
            ("cgroup", "memory", "cg/memory"),
            ("cgroup2", "nsdelegate", "cg/unified"),
        ])
    }

    fn v2() -> Self {
        Self::new(&[("cgroup2", "nsdelegate", "cg")])
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process_v1(&self, pid: u32, id: &str, cpu_ns: u64, memory: u64, inactive: u64) {
        let lines = format!("5:memory:/docker/{id}\n3:cpu,cpuacct:/docker/{id}\n0::/system\n");
        self.write(&format!("proc/{pid}/cgroup"), &lines);
        self.write(&format!("cg/cpu,cpuacct/docker/{id}/cpuacct.usage"), &format!("{cpu_ns}\n"));
        let memory_dir = format!("cg/memory/docker/{id}");
        self.write(&format!("{memory_dir}/memory.usage_in_bytes"), &format!("{memory}\n"));
        let stat = format!("cache 1\ninactive_file 3\ntotal_inactive_file {inactive}\n");
        self.write(&format!("{memory_dir}/memory.stat"), &stat);
    }

    fn process_v2(&self, pid: u32, id: &str, cpu_us: u64, memory: u64, inactive: u64) {
        self.write(&format!("proc/{pid}/cgroup"), &format!("0::/s.slice/docker-{id}.scope/sub\n"));
        let dir = format!("cg/s.slice/docker-{id}.scope");
        self.write(&format!("{dir}/cpu.stat"), &format!("usage_usec {cpu_us}\nuser_usec 1\n"));
        self.write(&format!("{dir}/memory.current"), &format!("{memory}\n"));
        let stat = format!("anon 9\ninactive_file {inactive}\n");
        self.write(&format!("{dir}/memory.stat"), &stat);
    }

    fn proc(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    fn sampler(&self) -> PodSampler {
        PodSampler::with_proc(self.proc())
    }
}

fn pod(containers: &[(&str, u32)]) -> RunningPod {
    RunningPod {
        uid: UID.into(),
        namespace: "default".into(),
        name: "web".into(),
        ip: None,
        containers: containers
            .iter()
            .map(|(id, pid)| RunningContainer { name: "c".into(), id: (*id).into(), pid: *pid })
            .collect(),
        ready: true,
        terminating: false,
        host_ports: Vec::new(),
    }
}

/// CPU and memory of the only pod.
fn one(sampler: &mut PodSampler, pod: &RunningPod, now: Instant) -> Option<(u32, u64)> {
    let usages = sampler.sample_at(std::slice::from_ref(pod), now);
    let usage = usages.first()?;
    assert_eq!(usage.uid[..], uuid::Uuid::parse_str(UID).unwrap().as_bytes()[..]);
    Some((usage.cpu_millis, usage.memory_bytes))
}

#[test]
fn a_pod_under_version_1_is_the_sum_of_its_containers_since_the_last_sample() {
    let host = Host::v1();
    host.process_v1(7, "aa", 1_000_000_000, 5000, 1000);
    host.process_v1(8, "bb", 0, 700, 900);
    let mut sampler = host.sampler();
    let (web, start) = (pod(&[("aa", 7), ("bb", 8)]), Instant::now());
    assert_eq!(one(&mut sampler, &web, start), Some((0, 4000)), "first; no less than nothing");

    host.process_v1(7, "aa", 1_500_000_000, 6000, 1000);
    host.process_v1(8, "bb", 250_000_000, 700, 0);
    let later = start + Duration::from_secs(2);
    assert_eq!(one(&mut sampler, &web, later), Some((375, 5700)));
    assert_eq!(one(&mut sampler, &web, later), Some((0, 5700)), "no time has passed");
}

#[test]
fn a_pod_under_version_2_is_measured_at_its_containers_own_cgroup() {
    let host = Host::v2();
    host.process_v2(7, "aa", 1_000_000, 5000, 1000);
    let mut sampler = host.sampler();
    let (web, start) = (pod(&[("aa", 7)]), Instant::now());
    assert_eq!(one(&mut sampler, &web, start), Some((0, 4000)));
    host.process_v2(7, "aa", 3_000_000, 5000, 1000);
    assert_eq!(one(&mut sampler, &web, start + Duration::from_secs(1)), Some((2000, 4000)));
}

#[test]
fn on_a_host_with_both_each_number_is_read_where_its_controller_is() {
    let host = Host::new(&[("cgroup", "memory", "cg/memory"), ("cgroup2", "", "cg")]);
    host.process_v1(7, "aa", 0, 5000, 1000);
    host.write("proc/7/cgroup", "5:memory:/docker/aa\n0::/docker/aa\n");
    host.write("cg/docker/aa/cpu.stat", "usage_usec 5\n");
    assert_eq!(one(&mut host.sampler(), &pod(&[("aa", 7)]), Instant::now()), Some((0, 4000)));
}

#[test]
fn what_vanishes_is_left_out_and_forgotten() {
    let host = Host::v1();
    host.process_v1(7, "aa", 0, 5000, 0);
    let mut sampler = host.sampler();
    let (web, start) = (pod(&[("aa", 7)]), Instant::now());
    assert!(one(&mut sampler, &web, start).is_some());
    assert_eq!(sampler.known.len(), 1);

    fs::remove_dir_all(host.dir.path().join("cg")).unwrap();
    assert_eq!(one(&mut sampler, &web, start), None);
    assert_eq!(sampler.known.len(), 0);
    fs::remove_dir_all(host.proc()).unwrap();
    assert_eq!(one(&mut sampler, &web, start), None);

    // Back, as the same container: measured from zero again.
    host.process_v1(7, "aa", 900, 5000, 0);
    assert_eq!(one(&mut sampler, &web, start), Some((0, 5000)));
    assert!(sampler.sample_at(&[], start).is_empty());
    assert_eq!(sampler.known.len(), 0);
}

#[test]
fn pods_that_cannot_be_measured_harm_nobody() {
    let host = Host::new(&[]);
    host.write("proc/7/cgroup", "nonsense\n0::\n:::\n");
    let mut sampler = host.sampler();
    for containers in [&[("aa", 7)][..], &[("aa", 0)], &[("aa", 9)], &[]] {
        assert_eq!(one(&mut sampler, &pod(containers), Instant::now()), None);
    }
    let odd = RunningPod { uid: "not-a-uid".into(), ..pod(&[("aa", 7)]) };
    assert!(sampler.sample(&[odd]).is_empty());
}

/// A process that computes, for as long as it lives.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let mut command = Command::new("sh");
        Self(command.args(["-c", "while :; do :; done"]).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn this_hosts_cgroups_are_found_and_grow() {
    let busy = Busy::start();
    let mounts = cgroup::Mounts::read(Path::new("/proc"));
    let found = cgroup::Cgroup::find(Path::new("/proc"), &mounts, "", busy.0.id()).unwrap();
    let mut buffer = String::new();
    let first = found.cpu_ns(&mut buffer).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while found.cpu_ns(&mut buffer).unwrap() <= first {
        assert!(Instant::now() < deadline, "the CPU time does not grow");
        std::thread::yield_now();
    }
}

/// A container that may use a fifth of a core and wants all of one.
struct Greedy(String);

impl Greedy {
    fn start() -> Self {
        let image = "timonier/debian:bookworm";
        let run = ["run", "--detach", "--network=none", "--cpus=0.2", image];
        let script = ["sh", "-c", "while :; do :; done"];
        Self(docker(&[&run[..], &script].concat()))
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", &self.0]).output();
    }
}

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output();
    let output = output.expect("this test needs Docker and its command line");
    assert!(output.status.success(), "docker {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_containers_limit_is_what_is_measured_of_it() {
    let greedy = Greedy::start();
    let pid = docker(&["inspect", "--format={{.State.Pid}}", &greedy.0]).parse().unwrap();
    let (pod, mut sampler) = (pod(&[(&greedy.0, pid)]), PodSampler::new());
    let mut last = Instant::now();
    let deadline = last + Duration::from_secs(30);
    let first = one(&mut sampler, &pod, last);
    assert_eq!(first.map(|(cpu, _)| cpu), Some(0));
    // Longer than the periods in which the kernel deals out CPU time.
    let window = Duration::from_secs(1);
    loop {
        while last.elapsed() < window {
            std::thread::yield_now();
        }
        last = Instant::now();
        let (cpu, memory) = one(&mut sampler, &pod, last).expect("it runs");
        assert!((1 << 10..1 << 30).contains(&memory), "{memory}");
        if (100..300).contains(&cpu) {
            break;
        }
        assert!(last < deadline, "{cpu} millis");
    }
    drop(greedy);
    assert_eq!(one(&mut sampler, &pod, Instant::now()), None);
}

#[test]
fn this_host_is_measured() {
    let mut sampler = HostSampler::new(std::env::temp_dir());
    let _busy = Busy::start();
    let deadline = Instant::now() + Duration::from_secs(10);
    let usage = loop {
        let usage = sampler.sample();
        if usage.cpu_percent > 0.0 {
            break usage;
        }
        assert!(Instant::now() < deadline, "{usage:?}");
        std::thread::yield_now();
    };
    assert!(usage.cpu_percent <= 100.0 && usage.cores > 0, "{usage:?}");
    assert!(usage.memory_percent > 0.0 && usage.memory_percent <= 100.0, "{usage:?}");
    assert!(usage.memory_used_bytes < usage.memory_total_bytes, "{usage:?}");
    assert!(usage.disk_used_bytes <= usage.disk_total_bytes, "{usage:?}");
    assert!(usage.disk_total_bytes > 0 && usage.load15 >= 0.0, "{usage:?}");
}

#[test]
fn only_links_to_elsewhere_count_as_traffic() {
    let host = Host::new(&[]);
    let lines = |eth0: u64, veth: u64| {
        format!(
            "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes\n\
             \x20   lo: {veth} 1 0 0 0 0 0 0 {veth} 1 0 0 0 0 0 0\n\
             \x20 eth0:{eth0} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n\
             veth12: {veth} 1 0 0 0 0 0 0 {veth} 1 0 0 0 0 0 0\n\
             tim-n1: {veth} 1 0 0 0 0 0 0 {veth} 1 0 0 0 0 0 0\n",
            sent = eth0 * 2
        )
    };
    host.write("proc/net/dev", &lines(1000, 5));
    let start = Instant::now();
    let mut sampler = HostSampler::with_proc(host.proc(), std::env::temp_dir());
    sampler.rates_at(start);
    host.write("proc/net/dev", &lines(3000, 5_000_000));
    assert_eq!(sampler.rates_at(start + Duration::from_secs(2)), (1000, 2000));
    host.write("proc/net/dev", &lines(10, 0));
    assert_eq!(sampler.rates_at(start + Duration::from_secs(3)), (0, 0), "a link was made anew");
    fs::remove_dir_all(host.proc()).unwrap();
    assert_eq!(sampler.rates_at(start + Duration::from_secs(4)), (0, 0));
}

/// What a heartbeat costs with 100 containers: run by hand, in release.
#[test]
#[ignore = "measures; cargo test --release -p timonier-agent -- --ignored --nocapture cost_of"]
fn cost_of_a_sample() {
    let processes: Vec<Busy> =
        (0..100).map(|_| Busy(Command::new("sleep").arg("600").spawn().unwrap())).collect();
    let pods: Vec<RunningPod> = processes
        .iter()
        .map(|process| pod(&[(&format!("id-{}", process.0.id()), process.0.id())]))
        .collect();
    let mut host = HostSampler::new(std::env::temp_dir());
    let mut sampler = PodSampler::new();
    assert_eq!(sampler.sample(&pods).len(), 100);
    let rounds = 100;
    let cost = |sample: &mut dyn FnMut()| {
        let start = cpu_time();
        (0..rounds).for_each(|_| sample());
        (cpu_time() - start) / rounds
    };
    let pods_cost = cost(&mut || _ = sampler.sample(&pods));
    let host_cost = cost(&mut || _ = host.sample());
    eprintln!("CPU time: 100 pods {pods_cost:?}, host {host_cost:?}");
}

/// Of this thread.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}
