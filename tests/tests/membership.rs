//! Three real masters: listed, changed, backed up and recovered with `timonctl`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use timonier_tests::cluster::binary;
use timonier_tests::wait::until;

const DEADLINE: Duration = Duration::from_secs(60);

/// Masters as processes, by their names; killed when it is dropped.
struct Masters {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    running: Vec<Option<Child>>,
}

fn text(output: &std::process::Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

impl Masters {
    /// m1 alone; the others join it one after the other.
    async fn start(count: usize) -> Result<Self> {
        let listeners: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<std::io::Result<_>>()?;
        let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<_>>()?;
        drop(listeners);
        let running = (0..count).map(|_| None).collect();
        let mut masters = Self { dir: tempfile::tempdir()?, ports, running };
        masters.run(0, None)?;
        masters.until_ready(1).await?;
        for index in 1..count {
            masters.run(index, Some(0))?;
            masters.until_ready(index + 1).await?;
        }
        Ok(masters)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, index: usize) -> PathBuf {
        self.path(&format!("m{}", index + 1))
    }

    fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    /// Starts it, to join another one where its folder is empty.
    fn run(&mut self, index: usize, join: Option<usize>) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("m{}.log", index + 1)))?;
        let mut command = Command::new(binary("timonier-master")?);
        command.arg("--data-dir").arg(self.data(index)).args([
            "--listen",
            &self.address(index),
            "--name",
            &format!("m{}", index + 1),
        ]);
        if let Some(other) = join {
            let token = self.ok(other, &["token", "create", "--role", "master"])?;
            command.args(["--join", &self.address(other), "--token", token.trim()]);
        }
        let child = command.stdout(Stdio::null()).stderr(log).spawn();
        self.running[index] = Some(child.context("start timonier-master")?);
        Ok(())
    }

    /// `kill -9`.
    fn kill(&mut self, index: usize) -> Result<()> {
        if let Some(mut child) = self.running[index].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn wipe(&self, index: usize) -> Result<()> {
        Ok(std::fs::remove_dir_all(self.data(index))?)
    }

    /// Asks this master only.
    fn ctl(&self, index: usize, args: &[&str]) -> Result<(i32, String)> {
        let config = self.data(index).join("admin.yaml");
        let output = Command::new(binary("timonctl")?)
            .args(args)
            .env("TIMONIER_SERVER", self.address(index))
            .env("TIMONIER_CONFIG", config)
            .env("NO_COLOR", "1")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()?;
        Ok((output.status.code().unwrap_or(-1), text(&output)))
    }

    fn ok(&self, index: usize, args: &[&str]) -> Result<String> {
        let (code, text) = self.ctl(index, args)?;
        ensure!(code == 0, "timonctl {}: {text}", args.join(" "));
        Ok(text)
    }

    fn refused(&self, index: usize, args: &[&str]) -> Result<String> {
        let (code, text) = self.ctl(index, args)?;
        ensure!(code != 0, "timonctl {} did it: {text}", args.join(" "));
        Ok(text)
    }

    async fn until_listed(&self, index: usize, what: &str, parts: &[&str]) -> Result<String> {
        let listed = until(what, DEADLINE, || async {
            let list = self.ok(index, &["master", "list"])?;
            ensure!(parts.iter().all(|part| list.contains(part)), "{list}");
            Ok(list)
        });
        listed.await.with_context(|| self.logs())
    }

    async fn until_ready(&self, count: usize) -> Result<()> {
        let index = self.running.iter().position(Option::is_some).context("a master runs")?;
        let ready = until("all masters to be Ready", DEADLINE, || async {
            let list = self.ok(index, &["master", "list"])?;
            let ready = list.lines().filter(|line| line.contains(" Ready ")).count();
            ensure!(ready == count && list.contains("leader"), "{list}");
            Ok(())
        });
        ready.await.with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let log = |index: usize| {
            let path = self.path(&format!("m{index}.log"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("m{index}:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        (1..=self.running.len()).map(log).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        for index in 0..self.running.len() {
            let _ = self.kill(index);
        }
    }
}

fn lines_of<'a>(list: &'a str, role: &str) -> Vec<&'a str> {
    list.lines().filter(|line| line.contains(role)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_are_listed_moved_and_replaced_and_none_is_removed_that_is_needed() -> Result<()> {
    let mut masters = Masters::start(3).await?;
    let list = masters.ok(1, &["master", "list"])?;
    assert!(list.contains("quorum 2 of 3, tolerates 1 failure"), "{list}");
    assert_eq!(lines_of(&list, "follower").len(), 2, "{list}");
    let names = masters.ok(2, &["master", "list", "-o", "name"])?;
    assert_eq!(names, "master/m1\nmaster/m2\nmaster/m3\n");
    let info = masters.ok(2, &["cluster-info"])?;
    assert!(["m1", "m2", "m3"].iter().all(|name| info.contains(name)), "{info}");
    let add = masters.ok(0, &["master", "add", "--name", "m4", "--address", "10.0.0.4:7443"])?;
    assert!(add.contains("--join") && add.contains(&masters.address(2)), "{add}");
    assert!(masters.refused(0, &["master", "add", "--name", "m2"])?.contains("there already"));

    let moved = masters.ok(2, &["master", "transfer-leader", "m2"])?;
    assert!(moved.contains("master/m2 leads"), "{moved}");
    masters.until_listed(0, "the new leader", &["m2"]).await?;
    let list = masters.ok(0, &["master", "list"])?;
    assert!(lines_of(&list, "leader")[0].starts_with("m2 "), "{list}");
    assert!(masters.ok(0, &["master", "promote", "m3"])?.contains("votes already"));
    assert!(masters.refused(0, &["master", "remove", "m9"])?.contains("no master \"m9\""));

    masters.kill(2)?;
    masters
        .until_listed(0, "m3 to be missed", &["NotReady", "1 away, tolerates no further failure"])
        .await?;
    let why = until("the leader to miss it", DEADLINE, || async {
        let why = masters.refused(0, &["master", "remove", "m1"])?;
        ensure!(why.contains("only 1 would answer"), "{why}");
        Ok(why)
    })
    .await?;
    assert!(why.contains("hint: bring"), "{why}");
    // Its disk is lost: it is taken out, and a new one takes its place.
    masters.ok(0, &["master", "remove", "m3"])?;
    masters.wipe(2)?;
    masters.run(2, Some(0))?;
    masters.until_ready(3).await?;
    masters.ok(2, &["create", "configmap", "after", "--from-literal", "a=b"])?;

    // One that is removed while it runs says so, and ends.
    masters.ok(0, &["master", "remove", "m3"])?;
    until("the removed one to end", DEADLINE, || async {
        let log = std::fs::read_to_string(masters.path("m3.log"))?;
        ensure!(log.contains("this master was removed from the cluster; hint: "), "{log}");
        Ok(())
    })
    .await?;
    masters.ok(0, &["create", "configmap", "without", "--from-literal", "a=b"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_saved_verified_and_restored() -> Result<()> {
    let mut masters = Masters::start(3).await?;
    masters.ok(0, &["create", "configmap", "kept", "--from-literal", "a=b"])?;
    let saved = masters.ok(1, &["backup", "save", "a.backup"])?;
    assert!(saved.contains("saved ") && saved.contains("not encrypted"), "{saved}");
    assert!(masters.refused(1, &["backup", "save", "a.backup"])?.contains("there already"));
    let verified = masters.ok(1, &["backup", "verify", "a.backup"])?;
    assert!(verified.contains("is whole") && verified.contains("by master m2"), "{verified}");
    masters.ok(0, &["create", "configmap", "later", "--from-literal", "a=b"])?;

    let mut bytes = std::fs::read(masters.path("a.backup"))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(masters.path("bad.backup"), &bytes)?;
    let why = masters.refused(1, &["backup", "verify", "bad.backup"])?;
    assert!(why.contains("checksum does not match") && why.contains("hint: "), "{why}");
    let new = masters.path("new");
    let to = new.to_str().context("a plain path")?;
    masters.refused(1, &["backup", "restore", "bad.backup", "--data-dir", to])?;
    assert!(!Path::new(to).exists());
    let taken = masters.data(0);
    let taken = taken.to_str().context("a plain path")?;
    let why = masters.refused(1, &["backup", "restore", "a.backup", "--data-dir", taken])?;
    assert!(why.contains("there is something in it"), "{why}");

    let restored = masters.ok(1, &["backup", "restore", "a.backup", "--data-dir", to])?;
    assert!(restored.contains("it is a new cluster"), "{restored}");
    for index in 0..3 {
        masters.kill(index)?;
        masters.wipe(index)?;
    }
    std::fs::rename(to, masters.data(0))?;
    masters.run(0, None)?;
    masters.until_ready(1).await?;
    masters.ok(0, &["get", "configmap", "kept"])?;
    assert!(masters.refused(0, &["get", "configmap", "later"])?.contains("not found"));
    masters.run(1, Some(0))?;
    masters.until_ready(2).await?;
    masters.ok(1, &["get", "configmap", "kept"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_left_recovers_and_the_others_join_anew() -> Result<()> {
    let mut masters = Masters::start(3).await?;
    masters.ok(0, &["create", "configmap", "kept", "--from-literal", "a=b"])?;
    masters.ok(2, &["get", "configmap", "kept"])?;
    masters.kill(0)?;
    masters.kill(1)?;
    masters.until_listed(2, "the quorum to be lost", &["quorum 2 of 3 is lost"]).await?;
    let data = masters.data(2);
    let data = data.to_str().context("a plain path")?;
    let recover = ["recover", "--from-this-master", "--data-dir", data];
    let why = masters.refused(2, &recover)?;
    assert!(why.contains("another process has it open"), "{why}");
    masters.kill(2)?;
    let why = masters.refused(2, &recover)?;
    assert!(why.contains("LOST") && why.contains("--yes goes on without asking"), "{why}");
    let done = masters.ok(2, &[&recover[..], &["--yes"]].concat())?;
    assert!(done.contains("m1 (id 1") && done.contains("only one of a new cluster"), "{done}");

    masters.run(2, None)?;
    masters.until_ready(1).await?;
    masters.ok(2, &["get", "configmap", "kept"])?;
    masters.ok(2, &["create", "configmap", "alone", "--from-literal", "a=b"])?;
    for index in 0..2 {
        masters.wipe(index)?;
        masters.run(index, Some(2))?;
        masters.until_ready(index + 2).await?;
    }
    masters.ok(0, &["get", "configmap", "alone"])?;
    Ok(())
}
