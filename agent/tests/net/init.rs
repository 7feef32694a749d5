//! The static init: what it waits for, what it becomes, what it says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use timonier_agent::net::{Network, install_init};

use crate::machine::{Machine, config, wait_for};

fn installed() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let init = install_init(dir.path()).unwrap();
    assert_eq!(fs::metadata(&init).unwrap().permissions().mode() & 0o777, 0o755);
    let again = install_init(dir.path()).unwrap();
    assert_eq!(again, init);
    (dir, init)
}

fn run(init: &PathBuf, args: &[&str], path: Option<&str>) -> Output {
    let mut command = Command::new(init);
    command.args(["run", "--no-wait", "--"]).args(args).env_clear().env("A", "b c");
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.current_dir("/usr").output().unwrap()
}

#[test]
fn it_becomes_the_program_and_changes_nothing_else() {
    let (dir, init) = installed();
    let output = run(&init, &["sh", "-c", "echo \"$0 $1 $A $PATH\"; pwd", "x y", ""], None);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().nth(1), Some("/usr"));
    assert!(output.stdout.starts_with(b"x y  b c "), "{output:?}");
    let bin = dir.path().to_str().unwrap();
    let not_executable = dir.path().join("data");
    fs::write(&not_executable, "x").unwrap();
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "no program").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    let absolute = not_executable.to_str().unwrap();
    for (program, code, message) in [
        ("nope", 127, "exec \"nope\": executable file not found in $PATH"),
        ("", 127, "exec \"\": executable file not found in $PATH"),
        ("./nope", 127, "exec \"./nope\": no such file or directory"),
        ("/usr/bin/env/x", 127, "exec \"/usr/bin/env/x\": not a directory"),
        ("data", 126, "exec \"data\": permission denied"),
        (absolute, 126, &format!("exec \"{absolute}\": permission denied")),
        ("garbage", 126, "exec \"garbage\": exec format error"),
    ] {
        let output = run(&init, &[program], Some(bin));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{program}: {said}");
        assert_eq!(said, format!("timonier-init: {message}\n"));
    }
    let found = run(&init, &["echo", "found"], Some(&format!("{bin}::/nowhere:/bin")));
    assert_eq!(found.stdout, b"found\n");
    let usage = Command::new(&init).args(["run", "echo"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(125));
}

#[test]
fn it_waits_for_the_default_route_and_ends_on_a_signal() {
    let (_dir, init) = installed();
    let machine = Machine::new();
    let pod = |init: &PathBuf| {
        Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .arg(init)
            .args(["run", "--", "sh", "-c", "echo up; read answer; echo $$ $answer"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let child_of = |parent: u32| {
        let children = format!("/proc/{parent}/task/{parent}/children");
        let mut found = None;
        wait_for("the init", || {
            let text = fs::read_to_string(&children).unwrap_or_default();
            found = text.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok());
            found.is_some_and(|pid| {
                let command = fs::read_to_string(format!("/proc/{pid}/comm"));
                command.is_ok_and(|name| name == "timonier-init\n")
            })
        });
        found.unwrap()
    };
    let mut started = pod(&init);
    let process = child_of(started.id());
    let waited = machine.block_on(move || async move {
        let network = Network::start(config(1)).await.unwrap();
        let ip = network.allocate("x").unwrap();
        let start = Instant::now();
        network.attach("x", process, ip).await.unwrap();
        wait_for("the program", || {
            fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name == "sh\n")
        });
        start.elapsed()
    });
    eprintln!("from attach to the program: {waited:?}");
    assert!(waited < Duration::from_secs(1));
    use std::io::Write;
    started.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = started.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"up\n1 hello\n", "it is the namespace's first process");

    let started = pod(&init);
    let process = child_of(started.id());
    // Before it has blocked the signal, the kernel keeps it from a namespace's first process.
    wait_for("its mask of signals", || {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & (1 << 14) != 0)
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = started.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    assert_eq!(output.stdout, b"");
}
