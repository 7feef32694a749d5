//! What a run makes on the machine carries its number: bridge, links, namespaces, and the folder with
//! its disks, its logs and its agents' data. So whoever has the number next can remove what a run left
//! that was killed.
//!
//! A number is a run's as long as it holds the number's lock, which the kernel takes back however the
//! run ends: what carries a number that can be locked is nobody's any more.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use crate::cluster;

/// So many runs may be at it at the same time.
const NUMBERS: std::ops::RangeInclusive<u8> = 71..=78;
/// Not where `TMPDIR` says: the names of links are the machine's, and so is the lock.
const FOLDER: &str = "/tmp";
/// Where `ip netns` keeps them.
pub const NAMESPACES: &str = "/run/netns";
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Dropping it removes whatever carries its number.
pub struct Claim {
    number: u8,
    _lock: File,
}

impl Claim {
    /// The first number that no run has, with an empty folder. What dead runs left is removed,
    /// whatever number they had.
    pub fn take() -> Result<Self> {
        let mut taken = None;
        for number in NUMBERS {
            let path = Path::new(FOLDER).join(format!("timonier-chaos-{number}.lock"));
            // No run ever had it.
            if taken.is_some() && !path.exists() {
                continue;
            }
            let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            // Not before it is locked: dropping it removes things, as it does those of the numbers
            // that are not kept.
            let free = Self { number, _lock: lock };
            if taken.is_none() {
                free.clear().context("remove what a run left that was killed")?;
                taken = Some(free);
            }
        }
        let taken = taken.context("as many runs of chaos as can be are under way")?;
        fs::create_dir(taken.folder()).context("make the run's folder")?;
        Ok(taken)
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    pub fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(format!("timonier-chaos-{}", self.number))
    }

    /// The bridge's; those of links and namespaces begin with it.
    pub fn name(&self) -> String {
        format!("tmchaos{}", self.number)
    }

    /// Nothing of it need be there.
    fn clear(&self) -> Result<()> {
        self.kill_all()?;
        for folder in entries(&self.folder()) {
            cluster::clean_up_all(&folder)?;
        }
        self.remove_folder()?;
        for namespace in self.named_in(NAMESPACES) {
            quietly("ip", &["netns", "del", &namespace]);
        }
        for link in self.named_in("/sys/class/net") {
            quietly("ip", &["link", "del", &link]);
        }
        for side in ["-i", "-o"] {
            quietly("iptables", &["-D", "FORWARD", side, &self.name(), "-j", "ACCEPT"]);
        }
        Ok(())
    }

    fn kill_all(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < END_DEADLINE, "processes {processes:?} do not end");
            for process in processes {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
        }
    }

    /// Whatever runs in its namespaces, and its agents.
    fn processes(&self) -> Vec<Pid> {
        let namespaces = self.named_in(NAMESPACES);
        let namespaces: Vec<_> =
            namespaces.iter().filter_map(|name| inode(&Path::new(NAMESPACES).join(name))).collect();
        let is_its_own = |process: &Path| {
            let within = inode(&process.join("ns/net"));
            within.is_some_and(|within| namespaces.contains(&within)) || self.is_agent(process)
        };
        let pid = |process: PathBuf| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?);
        let processes = entries(Path::new("/proc")).into_iter();
        processes.filter(|process| is_its_own(process)).filter_map(pid).collect()
    }

    /// An agent has its data in the folder, and so has the watchdog beside it.
    fn is_agent(&self, process: &Path) -> bool {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(|w| Path::new(OsStr::from_bytes(w)));
        let program = words.next().and_then(Path::file_name);
        program == Some(OsStr::new("timonier-agent"))
            && words.any(|word| word.starts_with(self.folder()))
    }

    fn remove_folder(&self) -> Result<()> {
        let folder = self.folder();
        let mounts = fs::read_to_string("/proc/mounts").context("list what is mounted")?;
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(target).starts_with(&folder) {
                quietly("umount", &["-l", target]);
            }
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    fn named_in(&self, folder: &str) -> Vec<String> {
        let names = entries(Path::new(folder)).into_iter();
        let names = names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        names.filter(|name| name.starts_with(&self.name())).collect()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("remove what chaos made: {error:#}");
        }
    }
}

/// None where there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Tells one namespace from another.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn quietly(program: &str, args: &[&str]) {
    // Whether it was there to be removed does not matter.
    let _ = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
