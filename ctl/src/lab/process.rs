//! Background processes: started detached, known by process id *and* start time, so that a process
//! id that the system has given to somebody else is never killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::Lab;
use crate::error::{Outcome, fail};

/// How long a process gets to end by itself.
const TERM_WAIT: Duration = Duration::from_secs(15);
/// How long the system gets to end it after that.
const KILL_WAIT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Which process it is, on which boot of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub pid: i32,
    /// Clock ticks after the boot, from `/proc/PID/stat`.
    pub start_ticks: u64,
    pub boot_id: String,
}

impl Record {
    fn of(pid: i32) -> Option<Record> {
        let (state, start_ticks) = stat(pid)?;
        (state != 'Z').then(|| Record { pid, start_ticks, boot_id: boot_id() })
    }

    pub fn alive(&self) -> bool {
        Record::of(self.pid).as_ref() == Some(self)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// State letter and start time.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, blanks and parentheses included.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// The running process of a part of the lab: by its record, else by what it was started with.
pub fn find(lab: &Lab, name: &str) -> Option<Record> {
    let recorded = std::fs::read(lab.record(name)).ok();
    let recorded = recorded.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
    recorded.filter(Record::alive).or_else(|| find_by_folder(&lab.data(name)))
}

/// A master or agent whose data folder is this one: what an interrupted `up` left unrecorded.
fn find_by_folder(data: &Path) -> Option<Record> {
    let wanted = data.to_str()?;
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id() as i32).find_map(|pid| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> =
            bytes.split(|b| *b == 0).filter_map(|w| std::str::from_utf8(w).ok()).collect();
        let program = Path::new(words.first()?).file_name()?.to_str()?;
        let ours = matches!(program, "timonier-master" | "timonier-agent")
            && !words.contains(&"cleanup")
            && words.windows(2).any(|pair| pair == ["--data-dir", wanted]);
        ours.then(|| Record::of(pid)).flatten()
    })
}

/// Starts a program in a session of its own, its output in the part's log.
pub fn start(lab: &Lab, name: &str, program: &Path, args: &[String]) -> Outcome<Record> {
    let wrong = |what: &str, error: std::io::Error| {
        fail(format!("start {name}: {what}: {}", crate::client::plain_io(&error)))
    };
    let log_path = lab.log(name);
    let log = File::options().create(true).append(true).open(&log_path);
    let log = log.map_err(|error| wrong(&format!("open {}", log_path.display()), error))?;
    let log_too = log.try_clone().map_err(|error| wrong("open the log twice", error))?;
    // setsid(1) becomes the program without another fork, so the process id stays.
    let mut child = Command::new("setsid")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        .current_dir("/")
        .spawn()
        .map_err(|error| wrong("run setsid", error))?;
    let pid = child.id() as i32;
    let Some(record) = Record::of(pid) else {
        let status = child.wait().map(|s| s.to_string()).unwrap_or_default();
        return Err(fail(format!(
            "start {name}: it ended at once ({status}); its log ends in\n{}",
            lab.log_tail(name)
        )));
    };
    let path = lab.record(name);
    let text =
        serde_json::to_vec(&record).map_err(|error| fail(format!("start {name}: {error}")))?;
    std::fs::write(&path, text)
        .map_err(|error| wrong(&format!("write {}", path.display()), error))?;
    // Reaped when it ends while we still run; afterwards it is the system's.
    std::thread::spawn(move || child.wait());
    Ok(record)
}

/// Asks the process to end, then insists. True when there was one.
pub async fn stop(lab: &Lab, name: &str) -> Outcome<bool> {
    let mut found = false;
    // An unrecorded one may stand behind the recorded one.
    while let Some(record) = find(lab, name) {
        found = true;
        for (kind, wait) in [(Signal::TERM, TERM_WAIT), (Signal::KILL, KILL_WAIT)] {
            signal(&record, kind).map_err(|why| fail(format!("stop {name}: {why}")))?;
            if ended(&record, wait).await {
                break;
            }
        }
        if record.alive() {
            return Err(fail(format!("stop {name}: process {} does not end", record.pid)));
        }
    }
    let _ = std::fs::remove_file(lab.record(name));
    Ok(found)
}

fn signal(record: &Record, kind: Signal) -> Result<(), String> {
    if !record.alive() {
        return Ok(());
    }
    let pid = Pid::from_raw(record.pid).ok_or("no such process")?;
    match kill_process(pid, kind) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(format!("signal process {}: {error}", record.pid)),
    }
}

async fn ended(record: &Record, wait: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + wait;
    while record.alive() {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    true
}

/// One of our programs: beside this one, else in the PATH.
pub fn program(name: &str) -> Outcome<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside =
        own.iter().flat_map(|exe| exe.ancestors().skip(1).take(2)).map(|dir| dir.join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>();
    beside.chain(in_path).find(|candidate| candidate.is_file()).ok_or_else(|| {
        fail(format!("program {name} was found neither beside timonctl nor in the PATH"))
            .hint("cargo build --release makes all three")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_and_stopped_and_a_recycled_id_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::open(Some(folder.path().into())).unwrap();
        std::fs::create_dir_all(folder.path().join("run")).unwrap();
        std::fs::create_dir_all(folder.path().join("logs")).unwrap();
        let record = start(&lab, "lab-1", Path::new("/bin/sleep"), &["60".into()]).unwrap();
        assert_eq!(find(&lab, "lab-1"), Some(record.clone()));
        assert!(stop(&lab, "lab-1").await.unwrap());
        assert!(!record.alive());
        assert_eq!(find(&lab, "lab-1"), None);
        assert!(!stop(&lab, "lab-1").await.unwrap());

        let mut own = Record::of(std::process::id() as i32).unwrap();
        own.start_ticks += 1;
        std::fs::write(lab.record("lab-1"), serde_json::to_vec(&own).unwrap()).unwrap();
        assert_eq!(find(&lab, "lab-1"), None);
    }
}
